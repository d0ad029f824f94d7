"""Rules of the house that a machine can check: who imports whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "asmnet_tf"
# one way only: a module may import modules of earlier rows (and config, files, cli of the first)
ORDER = [
    {"config", "files", "cli"},
    {"distribution"},
    {"model_zoo", "hdf5", "engine"},
    {"geometry", "metrics", "tables", "detection"},
    {"pose", "shape_model", "augmentation"},
    {"datasets", "face_renderer", "synthetic", "mean_face", "plots", "comparison", "report"},
    {"training_shapes"},
    {"prediction_files", "evaluation", "face_files", "overlay", "tracking", "video"},
    {"twins", "models", "losses", "patch_cache"},
    {"input_pipeline"},
    {"original"},
    {"model_files"},
    {"prediction"},
    {"aligner"},
    {"training"},
    {"ship", "converters"},
    {"export", "predict"},
]
WITH_TENSORFLOW = {
    *("engine", "twins", "models", "losses", "patch_cache", "input_pipeline"),
    *("original", "model_files", "prediction", "aligner", "training", "converters"),
}
STANDARD_LIBRARY_ONLY = {"__init__", "config", "files", "cli", "model_zoo", "ship", "export", "predict"}


def rank(module):
    return next(i for i, row in enumerate(ORDER) if module in row)


def imports_of(path, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "asmnet_tf":
                yield from (f"asmnet_tf.{alias.name}" for alias in node.names)
            else:
                yield node.module


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    for name in imports_of(PACKAGE / f"{module}.py", top_level_only=True):
        if name.startswith("asmnet_tf."):
            other = name.split(".")[1]
            assert rank(other) <= rank(module), f"{module} imports {other}"
    if {"models", "losses"} >= {module}:
        assert "asmnet_tf.datasets" not in imports_of(PACKAGE / f"{module}.py")


def test_models_and_losses_do_not_know_each_other():
    assert "asmnet_tf.losses" not in imports_of(PACKAGE / "models.py")
    assert "asmnet_tf.models" not in imports_of(PACKAGE / "losses.py")


@pytest.mark.parametrize("module", sorted(STANDARD_LIBRARY_ONLY))
def test_what_scripts_import_first_is_standard_library(module):
    for name in imports_of(PACKAGE / f"{module}.py", top_level_only=True):
        top = name.split(".")[0]
        assert top == "asmnet_tf" or top in sys.stdlib_module_names, f"{module} imports {name}"


@pytest.mark.parametrize(("module", "word"), [("export", "--quantise"), ("ship", "RUN_FOLDER")])
def test_help_of_a_command_is_quick(run_python, module, word):
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module('asmnet_tf.{module}', run_name='__main__')\n"
        "except SystemExit: assert not {'numpy', 'tensorflow'} & set(sys.modules)"
    )
    assert word in run_python("-c", code, PACKAGE.parent).stdout


def test_numpy_modules_do_not_import_tensorflow():
    names = ", ".join(f"asmnet_tf.{m}" for m in MODULES if m not in WITH_TENSORFLOW)
    code = f"import sys, {names}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0


def test_the_package_changes_nothing_in_its_host():
    state = "dict(os.environ), list(warnings.filters)"
    code = f"import os, warnings; before = {state}; import asmnet_tf; assert before == ({state})"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0


def test_nothing_unpickles():
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.parent.glob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        loads = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
        ]  # fmt: skip
        for call in loads:
            flags = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            assert flags.get("allow_pickle") is False, f"{path.name}, line {call.lineno}"
        assert "pickle" not in set(imports_of(path))
