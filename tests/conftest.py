"""Fixtures of all tests: temporary cache, real data where there is any, tiny folders, scripts as processes."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
COUNTS_300W = {"helen/trainset": 24, "lfpw/trainset": 12, "afw": 12, "helen/testset": 8, "lfpw/testset": 7, "ibug": 6}
COUNTS_WFLW = {"train": 24, "test": 12}
TIMEOUT_S = 600  # for one script; the slowest takes 30 s on two quiet cores

if str(REPO) not in sys.path:
    sys.path.insert(0, str(REPO))  # `pytest` alone, unlike `python -m pytest`, does not add it
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before any test module imports TensorFlow

# Runs several commands of the three scripts in one process, each as if it were the script's own: TensorFlow is imported
# once. Writes exit codes and what each printed; an exception that escapes is a traceback and exit code 1, as in Python.
DRIVER = """
import contextlib, importlib, io, json, sys, traceback
repo, commands, results = sys.argv[1:]
sys.path.insert(0, repo)
from asmnet_tf import cli
done = []
for script, argv in json.loads(commands):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            module = importlib.import_module(script)
            cli.run(module.main, lambda: module.parse_args(argv))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    done.append([code, out.getvalue(), err.getvalue()])
with open(results, "w") as file:
    json.dump({"done": done, "modules": sorted(sys.modules)}, file)
"""


@dataclass(frozen=True)
class TrainedRun:
    """What a training command left: its folder, output, and the flags to repeat it with. Tests must not change it."""

    folder: Path
    stdout: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Outcomes of several commands that ran in one process, and the modules imported by its end."""

    done: list[subprocess.CompletedProcess]
    modules: set[str]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Keeps what the package caches out of the user's home, in subprocesses too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASMNET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real faces: $ASMNET_DATA, default ../shared/data, both relative to the repository."""
    folder = (REPO / os.environ.get("ASMNET_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (ASMNET_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def faces_300w(tmp_path_factory) -> Path:
    """A folder of a few synthetic faces in the layout of 300W (COUNTS_300W); copy it before changing anything."""
    from asmnet_tf.synthetic.dataset import write_dataset

    folder = tmp_path_factory.mktemp("faces") / "300w"
    write_dataset(folder, "300w", counts=tuple(COUNTS_300W.values()), workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def faces_wflw(tmp_path_factory) -> Path:
    """The same in the layout of WFLW (COUNTS_WFLW)."""
    from asmnet_tf.synthetic.dataset import write_dataset

    folder = tmp_path_factory.mktemp("faces") / "wflw"
    write_dataset(folder, "wflw", counts=tuple(COUNTS_WFLW.values()), workers=1, progress=False)
    return folder


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """run_python(*args, cwd=None, expect=0): this Python in a subprocess, outside the repository."""

    def run(*args, cwd: Path | None = None, expect: int = 0) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, args)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            command,
            cwd=cwd or tmp_path_factory.mktemp("cwd"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        shown = " ".join(arg if len(arg) < 200 else f"{arg[:200]}..." for arg in command)
        assert done.returncode == expect, f"{shown}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def run_script(run_python):
    """run_script("train.py", *args, cwd=None, expect=0): a script of the repository in a process of its own."""

    def run(script: str, *args, cwd: Path | None = None, expect: int = 0) -> subprocess.CompletedProcess:
        return run_python(REPO / script, *args, cwd=cwd, expect=expect)

    return run


@pytest.fixture(scope="session")
def run_batch(run_python, tmp_path_factory):
    """run_batch([("train", [args...]), ...]): one after the other in one process; one each would cost much."""

    def run(commands: list[tuple[str, list]]) -> Batch:
        folder = tmp_path_factory.mktemp("batch")
        texts = [(script, [str(arg) for arg in argv]) for script, argv in commands]
        run_python("-c", DRIVER, REPO, json.dumps(texts), folder / "results.json", cwd=folder)
        results = json.loads((folder / "results.json").read_text())
        done = [
            subprocess.CompletedProcess([script, *argv], *outcome)
            for (script, argv), outcome in zip(texts, results["done"])
        ]
        return Batch(done, set(results["modules"]))

    return run


@pytest.fixture(scope="session")
def shape_models(run_script, faces_300w, faces_wflw, tmp_path_factory) -> Path:
    """The folder that pca_builder.py filled: 300w and wflw, square crop."""
    folder = tmp_path_factory.mktemp("shape_models")
    run_script("pca_builder.py", "--dataset", "300w", "--data-dir", faces_300w, "--output", folder)
    run_script("pca_builder.py", "--dataset", "wflw", "--data-dir", faces_wflw, "--output", folder)
    return folder


@pytest.fixture(scope="session")
def run_300w(run_script, faces_300w, shape_models, tmp_path_factory) -> TrainedRun:
    """Three epochs of train.py on the tiny 300W folder."""
    output = tmp_path_factory.mktemp("runs")
    flags = ("--dataset", "300w", "--data-dir", faces_300w, "--shape-model", shape_models / "300w_pca90.npz")
    flags = (*map(str, flags), "--input-size", "32", "--batch-size", "8", "--epochs", "3")
    done = run_script("train.py", *flags, "--output", output, "--name", "tiny")
    return TrainedRun(output / "tiny", done.stdout, flags)


@pytest.fixture(scope="session")
def run_wflw(run_script, faces_wflw, shape_models, tmp_path_factory) -> TrainedRun:
    """One epoch of train.py on the tiny WFLW folder: a network of 98 points."""
    output = tmp_path_factory.mktemp("runs")
    flags = ("--dataset", "wflw", "--data-dir", faces_wflw, "--shape-model", shape_models / "wflw_pca90.npz")
    flags = (*map(str, flags), "--input-size", "32", "--batch-size", "8", "--epochs", "1")
    done = run_script("train.py", *flags, "--output", output, "--name", "tiny98")
    return TrainedRun(output / "tiny98", done.stdout, flags)
