"""Rules of the house that a machine can check: who imports whom, and what an import costs."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "asmnet_tf"
# one way only, lazy imports included: a room may import itself and those before it
ROOMS = ["config", "files", "data", "shape", "synthetic", "network", "formats", "faces", "evaluation", "training"]
PROGRAMS = {"cli", "predict", "export"}  # they alone know the command line; scripts do, too
WITH_TENSORFLOW = ("data/batches", "network/", "formats/keras_runners", "formats/release", "formats/exporters")
WITH_TENSORFLOW += ("training/",)
STANDARD_LIBRARY_ONLY = ["__init__", "config", "files", "cli", "predict", "export", "data/layouts", "data/sidecars"]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
SCRIPTS = ["train", "evaluate", "pca_builder"]


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports_of(body):
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"asmnet_tf.{alias.name}" for alias in node.names]
            yield from names if node.module == "asmnet_tf" else [node.module]


def room_of(name):
    return name.split(".")[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    own = module.split("/")[0]
    for name in imports_of(ast.walk(tree(module))):
        if name.startswith("asmnet_tf.") and own in ROOMS:
            assert room_of(name) in ROOMS[: ROOMS.index(own) + 1], f"{module} imports {name}"


@pytest.mark.parametrize("module", [module for module in MODULES if module not in PROGRAMS])
def test_library_code_takes_values(module):
    names = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    assert "Namespace" not in names
    assert "argparse" not in imports_of(ast.walk(tree(module)))


@pytest.mark.parametrize("module", ["network/asmnet", "network/loss", "shape/shape_model"])
def test_the_paper_is_read_in_three_short_files(module):
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_what_scripts_import_first_is_standard_library(module):
    for name in imports_of(tree(module).body):
        top = name.split(".")[0]
        assert top == "asmnet_tf" or top in sys.stdlib_module_names, f"{module} imports {name}"


@pytest.mark.parametrize("program", ["export", "predict"])
def test_help_of_a_program_is_quick(run_python, program):
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module('asmnet_tf.{program}', run_name='__main__')\n"
        "except SystemExit: assert not {'numpy', 'tensorflow'} & set(sys.modules)"
    )
    assert "--model" in run_python("-c", code, PACKAGE.parent).stdout or program == "export"


def test_the_package_changes_nothing_in_its_host_and_inference_needs_no_matplotlib(run_python):
    light = [m for m in MODULES if not m.startswith(WITH_TENSORFLOW) and "__init__" not in m]
    names = ", ".join(f"asmnet_tf.{m.replace('/', '.')}" for m in light if m != "evaluation/figures")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); before = dict(os.environ)\n"
        "import asmnet_tf; assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())\n"
        f"import {names}\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "from asmnet_tf import FaceAligner; assert 'matplotlib' not in sys.modules\n"
    )
    run_python("-c", code, PACKAGE.parent)


def test_nothing_unpickles():
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / f"{script}.py" for script in SCRIPTS)]:
        content = ast.parse(path.read_text(encoding="utf-8"))
        loads = [
            node
            for node in ast.walk(content)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"
            and isinstance(node.func.value, ast.Name) and node.func.value.id == "np"
        ]  # fmt: skip
        for call in loads:
            flags = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            assert flags.get("allow_pickle") is False, f"{path.name}, line {call.lineno}"
        assert "pickle" not in set(imports_of(ast.walk(content)))
