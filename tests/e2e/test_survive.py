"""Killed, preempted and full-disk runs: --resume ends where the uninterrupted run ends, bit for bit, nothing lost.

Every start of train.py is a process of its own, killed by SIGKILL at a moment that is seen from outside: a line it
printed, a temporary file that it is writing, or a time.
"""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import REPO, TIMEOUT_S
from forked import Forked

from asmnet_tf.config import Phase

SCHEDULE = ("--epochs", "6", "--validate-every", "2", "--dropout", "0.2", "--ema", "0.9", "--weight-decay", "0.01")
ENGINE = ("--deterministic", "--threads", "2")
TIMING = {"images_per_s", "seconds"}


@dataclass(frozen=True)
class Moment:
    """When to send a signal: while the n-th file with `writing` as ending is written, or `delay_s` after `line`."""

    writing: str | None = None
    nth: int = 1
    line: str | None = None
    delay_s: float = 0.0

    def __str__(self) -> str:
        if self.writing is not None:
            return f"while writing {self.writing} for the {self.nth}. time"
        return f"{self.delay_s:.2f} s after {self.line or 'the start'}"


class Run:
    """The folder of a run and the command that starts it; --resume where it exists."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self.folder = folder
        self.printed = folder.with_suffix(".txt")
        self.command = [sys.executable, str(REPO / "train.py"), *flags, "--output", str(folder.parent)]
        self.command += ["--name", folder.name]

    def start(self, moment: Moment | None = None, number: int = signal.SIGKILL) -> int:
        """Starts or resumes the run; returns its exit code. It may end before its moment comes."""
        resume = ["--resume"] if self.folder.exists() else []
        with (
            open(self.printed, "w") as file,
            subprocess.Popen([*self.command, *resume], stdout=file, stderr=file) as process,
        ):
            if moment is not None and self._comes(moment, process):
                process.send_signal(number)
            code = process.wait(TIMEOUT_S)
        return code

    def _comes(self, moment: Moment, process: subprocess.Popen) -> bool:
        start, seen = time.monotonic(), set()
        since = None if moment.line else start
        while process.poll() is None:
            if moment.writing is not None:
                names = os.listdir(self.folder) if self.folder.exists() else []
                seen |= {name for name in names if name.startswith(".writing-") and name.endswith(moment.writing)}
                if len(seen) >= moment.nth:
                    return True
            elif since is None:
                since = time.monotonic() if moment.line in self.printed.read_text() else None
            elif time.monotonic() - since >= moment.delay_s:
                return True
            time.sleep(0.002)
        return False

    def text(self) -> str:
        return self.printed.read_text()


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of state.npz, or of the weights in a .keras file, as they are stored."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != "progress"}
    found = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(
            lambda name, entry: found.update({name: entry[()]}) if isinstance(entry, h5py.Dataset) else None
        )
    return found


def log_of(folder: Path) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)]


def assert_same_run(ours: Path, reference: Path) -> None:
    """Weights, optimiser, averages and dropout seeds by bits; every epoch once in the log; no temporary file left."""
    for name in ("best.keras", "last.keras", "state.npz"):
        a, b = arrays_of(ours / name), arrays_of(reference / name)
        assert a.keys() == b.keys()
        assert [key for key in b if a[key].tobytes() != b[key].tobytes()] == [], name
    assert log_of(ours) == log_of(reference)
    assert [row["epoch"] for row in log_of(ours)] == [str(k + 1) for k in range(len(log_of(reference)))]
    for name in ("best.json", "last.json"):
        a, b = (json.loads((folder / name).read_text()) for folder in (ours, reference))
        assert a | {"commit": None} == b | {"commit": None}
    assert list(ours.glob(".writing-*")) == []


@pytest.fixture(scope="module")
def flags(faces_300w, shape_models) -> list[str]:
    data = ("--dataset", "300w", "--data-dir", faces_300w, "--shape-model", shape_models / "300w_pca90.npz")
    return [*map(str, data), "--input-size", "32", "--batch-size", "8", *SCHEDULE, *ENGINE]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("survive")


@pytest.fixture(scope="module")
def reference(place, flags):
    """The uninterrupted run, in the making while the first kills happen: a function that waits for its folder."""
    run = Run(place / "reference", flags)
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(run.start)

        def finished() -> Path:
            assert code.result() == 0, run.text()
            return run.folder

        yield finished


@pytest.mark.slow  # .ci/run runs it where time is left
def test_three_kills(place, flags, reference):
    run = Run(place / "killed", flags)
    moments = [Moment(writing=".keras", nth=2), Moment(line="epoch 2/", delay_s=0.05), Moment(writing=".npz")]
    for moment in moments:
        assert run.start(moment) == -signal.SIGKILL, f"{moment}\n{run.text()}"
    assert run.start() == 0, run.text()
    assert_same_run(run.folder, reference())


def test_a_run_has_one_owner(place, flags, run_script):
    """From before the data are read; also for --resume, which takes over once the first is killed."""
    run = Run(place / "owned", flags)
    with subprocess.Popen(run.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (run.folder / ".lock").exists() or not (run.folder / ".lock").read_text():
            assert first.poll() is None
            time.sleep(0.002)
        for more in ([], ["--resume"]):
            done = run_script("train.py", *run.command[2:], *more, expect=2)
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: {run.folder}: in use by process {first.pid} on ")
        first.kill()
    done = run_script("train.py", *run.command[2:], "--resume", "--data-dir", place / "absent", expect=2)
    assert "absent: no such folder" in done.stderr  # it came as far as the data


# --- phases -----------------------------------------------------------------------------------------------------------

PHASES = (
    Phase(2, lr=1e-3, augment="tuned", input_size=32),
    Phase(2, lr=5e-4, augment="tuned", input_size=64, pose_weight=2.0),
    Phase(1, augment="mild", input_size=64, freeze_batch_norm=True, pose_weight=2.0),
)


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_phases_are_stopped_and_resumed(tmp_path, faces_300w, small):
    """Of 5 epochs of 5 steps: SIGTERM in the last step of a phase, a kill soon after it, SIGTERM in each later one."""
    forked = Forked()
    flags = ("--dataset", "300w", "--data-dir", faces_300w, "--batch-size", "8", "--ema", "0.9", *ENGINE)

    def start(name: str, *more: str, **moment) -> dict:
        """Starts the run; returns what its best.json says then, and its number of epochs done."""
        argv = (*flags, "--output", tmp_path, "--name", name, *more)
        code = forked.train(argv, tmp_path / f"{name}.txt", small, phases=PHASES, **moment)
        assert code == (-signal.SIGKILL if "fatal_write" in moment else 0), (tmp_path / f"{name}.txt").read_text()
        with np.load(tmp_path / name / "state.npz") as state:
            progress = json.loads(str(state["progress"]))
        sidecar = json.loads((tmp_path / name / "best.json").read_text())
        return sidecar | {"done": (progress["epoch"], progress["step"])}

    whole = start("whole")
    assert (whole["done"], whole["input_size"]) == ((5, 0), 64)
    assert whole["epoch"] > 2
    assert keras.models.load_model(tmp_path / "whole/best.keras").input_shape == (None, 64, 64, 3)
    log = log_of(tmp_path / "whole")
    assert [float(row["alpha"]) for row in log] == [2.0, 2.0, 1.0, 1.0, 0.5]  # thirds of the whole run
    text = (tmp_path / "whole.txt").read_text()
    assert "on this machine: 2 epochs at 32 px, 2 epochs at 64 px, 1 epoch at 64 px" in text
    moments = (
        ({"last_step": 10}, (1, 5), 32),
        ({"fatal_write": 12}, (2, 0), 64),  # args.json, the six or eight files of epoch 2, best.keras of epoch 3
        ({"last_step": 3}, (2, 3), 64),
        ({"last_step": 9}, (4, 2), 64),
        ({}, (5, 0), 64),
    )
    for i, (moment, done, size) in enumerate(moments):
        there = start("stopped", *(["--resume"] if i else []), **moment)
        assert (there["done"], there["input_size"]) == (done, size), (tmp_path / "stopped.txt").read_text()
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


# --- twenty kills -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_kills(place, flags):
    """At moments drawn from a fixed seed: 8 during a write, 12 by the clock, start-up and graph building included.

    A run that ends before its moment must equal the uninterrupted one, and another begins.
    """
    forked = Forked()

    def start(name: str, **moment) -> int:
        argv = [*flags, "--epochs", "8", "--output", place, "--name", name]
        return forked.train(
            [*argv, *(["--resume"] if (place / name).exists() else [])], place / f"{name}.txt", **moment
        )

    began = time.monotonic()
    assert start("uninterrupted") == 0
    whole_s = time.monotonic() - began
    rng = np.random.default_rng(7)
    moments = [{"fatal_write": int(n)} for n in rng.integers(1, 25, 8)]
    moments += [{"seconds": whole_s * share} for share in rng.random(12)]
    rng.shuffle(moments)
    kills, runs = 0, ["run0"]
    while kills < len(moments):
        code = start(runs[-1], **moments[kills])
        print(f"{runs[-1]}, {moments[kills]}: exit code {code}", flush=True)
        if code:
            kills += 1
        else:
            runs.append(f"run{len(runs)}")
            moments[kills] = {key: value * 0.7 for key, value in moments[kills].items()}  # the machine is quicker now
    assert start(runs[-1]) == 0
    for name in runs:
        assert_same_run(place / name, place / "uninterrupted")
    print(f"{kills} kills survived by {len(runs)} runs; an uninterrupted one takes {whole_s:.1f} s")
