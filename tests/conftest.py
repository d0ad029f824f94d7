"""Fixtures of all tests: temporary cache, real data where there is any, tiny folders, scripts as processes."""

import fcntl
import json
import os
import shutil
import signal
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
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background starts with it ignored


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
def once(tmp_path_factory):
    """once(name, make): the folder that `make(folder)` filled, for all workers of xdist; tests must not change it.

    The first worker that asks makes it, the others wait.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make) -> Path:
        folder, done = root / "once" / name, root / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def faces_300w(once) -> Path:
    """A folder of a few synthetic faces in the layout of 300W (COUNTS_300W); copy it before changing anything."""
    from asmnet_tf.synthetic.dataset import write_dataset

    return once("300w", lambda folder: write_dataset(folder, counts=tuple(COUNTS_300W.values()), workers=1))


@pytest.fixture(scope="session")
def faces_wflw(once) -> Path:
    """The same in the layout of WFLW (COUNTS_WFLW)."""
    from asmnet_tf.data.layouts import DATASETS
    from asmnet_tf.synthetic.dataset import write_dataset

    counts = tuple(COUNTS_WFLW.values())
    return once("wflw", lambda folder: write_dataset(folder, DATASETS["synthetic_wflw"], counts, workers=1))


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
def run_batch(cache_folder, run_python, tmp_path_factory):
    """run_batch([("train", [args...]), ...]): one after the other in one process.

    It is forked from one that has TensorFlow imported, or, fresh, a new one that tells which modules it came to import.
    small: a network of a few layers in ASMNet's place. figures: runs and reports have them; drawing costs much.
    """
    from forked import Forked  # it imports this module

    def run(commands: list[tuple[str, list]], small=False, fresh=False, figures=False) -> Batch:
        folder = tmp_path_factory.mktemp("batch")
        texts = [(script, [str(arg) for arg in argv]) for script, argv in commands]
        if fresh:
            code = f"import sys; sys.path[:0] = {[str(REPO), str(REPO / 'tests')]}; import forked; forked.run_commands"
            run_python("-c", f"{code}({texts}, {str(folder)!r}, {small}, {figures})")
        else:
            Forked().run_commands(texts, folder, small, figures)
        results = json.loads((folder / "results.json").read_text())
        done = [
            subprocess.CompletedProcess([script, *argv], *outcome)
            for (script, argv), outcome in zip(texts, results["done"])
        ]
        return Batch(done, set(results["modules"]))

    return run


@pytest.fixture(scope="session")
def shape_models(run_batch, faces_300w, faces_wflw, once) -> Path:
    """The folder that pca_builder.py filled: 300w and wflw, square crop."""

    def make(folder: Path) -> None:
        data = {"300w": faces_300w, "wflw": faces_wflw}
        flags = [["--dataset", name, "--data-dir", path, "--output", folder] for name, path in data.items()]
        for done in run_batch([("pca_builder", argv) for argv in flags]).done:
            assert done.returncode == 0, done.stderr

    return once("shape_models", make)


def training_flags(dataset: str, faces: Path, shape_models: Path, epochs: int) -> tuple[str, ...]:
    flags = ("--dataset", dataset, "--data-dir", faces, "--shape-model", shape_models / f"{dataset}_pca90.npz")
    return (*map(str, flags), "--input-size", "32", "--batch-size", "8", "--epochs", str(epochs))


@pytest.fixture(scope="session")
def run_300w(run_script, faces_300w, shape_models, once) -> TrainedRun:
    """Three epochs of train.py on the tiny 300W folder."""
    flags = training_flags("300w", faces_300w, shape_models, 3)

    def make(folder: Path) -> None:
        done = run_script("train.py", *flags, "--output", folder, "--name", "tiny")
        (folder / "stdout").write_text(done.stdout)

    folder = once("run_300w", make)
    return TrainedRun(folder / "tiny", (folder / "stdout").read_text(), flags)


@pytest.fixture(scope="session")
def small_runs(run_batch, faces_300w, faces_wflw, shape_models, once) -> dict[str, TrainedRun]:
    """300w: `run_300w` with a small network. wflw: one epoch on the tiny WFLW folder, a small network of 98 points."""
    flags = {"300w": training_flags("300w", faces_300w, shape_models, 3)}
    flags["wflw"] = training_flags("wflw", faces_wflw, shape_models, 1)
    names = {"300w": "tiny", "wflw": "tiny98"}

    def make(folder: Path) -> None:
        commands = [("train", [*flags[key], "--output", folder, "--name", name]) for key, name in names.items()]
        for done in run_batch(commands, small=True, figures=True).done:
            assert done.returncode == 0, done.stderr

    folder = once("small_runs", make)
    return {key: TrainedRun(folder / name, "", flags[key]) for key, name in names.items()}


@pytest.fixture(scope="session")
def trained_64(once) -> Path:
    """The folder of m.keras, an ASMNet of 64 px with trained weights, whose maps have the ranges of a real one."""

    def make(folder: Path) -> None:
        import asmnet_tf
        from asmnet_tf.network import asmnet, checkpoints

        model = asmnet.build_asmnet(68, 64)
        model.set_weights(asmnet_tf.load_pretrained("asmnet_300w_112_60").get_weights())
        sidecar = {"dataset": "300w", "crop": "square", "crop_scale": 1.2, "commit": "abc", "stored": "as float16"}
        checkpoints.save_model(model, folder / "m.keras", sidecar)

    return once("trained_64", make)
