"""train.py on several workers and replicas: processes of this machine, connected over 127.0.0.1, and logical CPUs.

With batch norm frozen, a step depends on nothing but the whole batch, so its losses equal those of one process. With
it live each replica normalises its own rows; then workers are compared with each other, bit for bit.
"""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from conftest import REPO, TIMEOUT_S
from forked import small_network

from asmnet_tf.network.asmnet import build_asmnet
from asmnet_tf.training import distribution

# Runs train.py and appends one line of JSON for each step (losses, checksums of every copy of the trainable weights)
# and for each re-estimation of the batch-norm statistics (checksums of every copy of the others).
# With $SMALL in the environment a network of a few layers takes ASMNet's place.
DRIVER = """
import json, os, sys, zlib
repo, record, *argv = sys.argv[1:]
sys.path[:0] = [repo, repo + "/tests"]
import train
from asmnet_tf import cli
from asmnet_tf.training import trainer

def checksums(variables):
    copies = [getattr(v.value, "values", [v.value]) for v in variables]
    return [zlib.crc32(b"".join(v.numpy().tobytes() for v in replica)) for replica in zip(*copies)]

def write(**line):
    with open(record, "a") as file:
        file.write(json.dumps(line) + "\\n")

make, reestimate = trainer.Trainer.__init__, trainer.Trainer._reestimate

def recorded_make(self, *args, **kwargs):
    make(self, *args, **kwargs)
    step = self.step
    def recorded(batch):
        losses = step(batch)
        numbers = {k: float(v) for k, v in losses.items() if k.startswith("loss")}
        write(**numbers, weights=checksums(self.model.trainable_variables))
        return losses
    self.step = recorded

def recorded_reestimate(self, *args):
    reestimate(self, *args)
    norms = [v for v in self.model.non_trainable_variables if "moving" in v.path]
    write(statistics=checksums(norms))

trainer.Trainer.__init__, trainer.Trainer._reestimate = recorded_make, recorded_reestimate
if "SMALL" in os.environ:
    from asmnet_tf.network.asmnet import BUILDERS
    from forked import small_network
    BUILDERS["asmnet"] = small_network
cli.run(train.main, lambda: train.parse_args(argv))
"""

# Of the start weights. Sums are taken in another order, 1e-7 apart in the first step; of ten draws of the small network
# Adam makes 2e-4 of it within ten steps in two, and with this one it stays at 1e-7.
SEED = 0
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Process:
    """One recorded train.py, or another script, in the background."""

    def __init__(self, folder: Path, flags, environment=None, script=None) -> None:
        folder.mkdir(parents=True)
        self.record, self.output = folder / "record.jsonl", folder / "output.txt"
        program = ["-c", DRIVER, str(REPO), str(self.record)] if script is None else [str(REPO / script)]
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TF_CONFIG")}
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, flags)],
                cwd=folder,
                env=clean | ONE_THREAD | (environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def lines(self, key: str) -> list[dict]:
        """Returns the recorded lines that have a key."""
        text = self.record.read_text() if self.record.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [line for line in map(json.loads, whole.splitlines()) if key in line]

    def wait(self, expect: int = 0) -> str:
        """Waits for the end; returns what was printed."""
        code = self.process.wait(timeout=TIMEOUT_S)
        text = self.output.read_text()
        assert code == expect, text[-5000:]
        return text

    def wait_for(self, steps: int) -> None:
        """Waits until so many steps are done."""
        end = time.monotonic() + TIMEOUT_S
        while len(self.lines("loss")) < steps:
            assert self.process.poll() is None, self.output.read_text()[-5000:]
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.fixture
def start(tmp_path):
    """start(name, flags, environment, script): a `Process`, killed at the end of the test if it still runs."""
    started = []

    def begin(name, *arguments) -> Process:
        started.append(Process(tmp_path / name, *arguments))
        return started[-1]

    yield begin
    for process in started:
        with contextlib.suppress(OSError):
            process.process.kill()
        process.process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def start_workers(start):
    """start_workers(name, [flags of worker 0, ...]): the workers, connected by TF_CONFIG."""

    def begin(name, flags, script=None) -> list[Process]:
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(len(flags))]}
        configs = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(len(flags))]
        environments = [{"TF_CONFIG": json.dumps(config)} for config in configs]
        return [start(f"{name}{i}", flags[i], environments[i], script) for i in range(len(flags))]

    return begin


@pytest.fixture(scope="module")
def flags(faces_300w):
    """41 training faces in 5 steps of 8, 7 held out; the shape model is the shipped one."""
    return (
        "--dataset",
        "300w",
        "--data-dir",
        faces_300w,
        "--input-size",
        32,
        "--batch-size",
        8,
        "--epochs",
        2,
        "--loss",
        "asm",
    )


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A network of stored weights whose batch norms stand still, so that a batch may be split."""
    path = tmp_path_factory.mktemp("start") / "backbone.weights.h5"
    keras.utils.set_random_seed(SEED)
    build_asmnet(98, 32).save_weights(path)  # its landmarks do not fit 68 points
    return "--weights", path, "--freeze-batch-norm"


def log_of(folder: Path) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if v and k not in ("images_per_s", "seconds")}
            for row in csv.DictReader(file)
        ]


def assert_same_losses(ours: Process, theirs: Process) -> None:
    for a, b in zip(ours.lines("loss"), theirs.lines("loss"), strict=True):
        for key in ("loss", "loss_landmarks", "loss_asm", "loss_pose"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), key


def assert_same_workers(workers: list[Process], steps: int) -> None:
    """Every copy of the weights of every worker is the same, bit for bit, after each step."""
    first, *others = (worker.lines("loss") for worker in workers)
    assert len(first) == steps
    assert all(other == first for other in others)
    assert all(len(set(line["weights"])) == 1 for line in first)
    assert len({line["weights"][0] for line in first}) == steps  # and they move


# --- the quick part ---------------------------------------------------------------------------------------------------


def test_two_workers_equal_one_process(start, start_workers, flags, tmp_path, monkeypatch):
    """A small network. Each worker is given an output folder of its own, to see that only the chief writes one."""
    monkeypatch.setenv("SMALL", "1")
    keras.utils.set_random_seed(SEED)
    small_network(98, 32).save_weights(tmp_path / "start.weights.h5")
    flags = (*flags, "--weights", tmp_path / "start.weights.h5", "--freeze-batch-norm", "--dropout", 0, "--name", "run")
    workers = start_workers("worker", [(*flags, "--output", tmp_path / f"of{i}") for i in range(2)])
    one = start("one", (*flags, "--output", tmp_path / "one_process", "--strategy", "one"))
    printed = [worker.wait() for worker in workers]
    one.wait()
    assert_same_workers(workers, steps=10)
    assert_same_losses(workers[0], one)
    for ours, theirs in zip(log_of(tmp_path / "of0/run"), log_of(tmp_path / "one_process/run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)  # the sums of the validation faces as well
    files = {path.name for path in (tmp_path / "of0/run").iterdir()}
    assert files == {path.name for path in (tmp_path / "one_process/run").iterdir()}
    assert not (tmp_path / "of1").exists()
    assert json.loads((tmp_path / "of0/run/args.json").read_text())["replicas"] == 2
    assert "worker 1 of 2" in printed[1]
    assert "epoch 2/2" in printed[0]
    assert "epoch" not in printed[1]


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_workers_with_parts_of_unequal_size(start, start_workers, flags, frozen, tmp_path):
    """A batch of 8 is split as 2, 3 and 3, the 7 held-out faces as 2, 2 and 3."""
    flags = (*flags, *frozen, "--name", "run")
    one = start("one", (*flags, "--output", tmp_path / "one_process", "--strategy", "one"))
    one.wait()
    workers = start_workers("worker", [(*flags, "--output", tmp_path / "shared")] * 3)
    for worker in workers:
        worker.wait()
    assert_same_workers(workers, steps=10)
    assert_same_losses(workers[0], one)
    for ours, theirs in zip(log_of(tmp_path / "shared/run"), log_of(tmp_path / "one_process/run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_live_batch_norm_is_the_same_in_all_workers(start_workers, flags, tmp_path):
    flags = (*flags, "--name", "run", "--output", tmp_path / "shared", "--dropout", 0.2, "--scale-lr")
    workers = start_workers("worker", [flags] * 2)
    for worker in workers:
        worker.wait()
    assert_same_workers(workers, steps=10)
    first, second = (worker.lines("statistics") for worker in workers)
    assert len(first) == 2
    assert first == second
    assert first[0] != first[1]
    recorded = json.loads((tmp_path / "shared/run/args.json").read_text())["flags"]
    assert recorded["lr"] == 2 * 1.5e-3


@pytest.mark.slow
def test_two_logical_cpus_equal_one_process(start, flags, frozen, tmp_path):
    flags = (*flags, *frozen, "--name", "run")
    one = start("one", (*flags, "--output", tmp_path / "one_process", "--strategy", "one"))
    two = start("two", (*flags, "--output", tmp_path / "two", "--strategy", "mirrored", "--devices", "CPU:0", "CPU:1"))
    one.wait()
    two.wait()
    assert_same_workers([two], steps=10)
    assert len(two.lines("loss")[0]["weights"]) == 2
    assert_same_losses(two, one)
    for ours, theirs in zip(log_of(tmp_path / "two/run"), log_of(tmp_path / "one_process/run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [(), ("--mixed-precision",)])
def test_two_logical_cpus_with_all_that_keeps_state(start, flags, tmp_path, precision):
    """Live batch norm, dropout, weights' average, weight decay, head L2, loss scaling: the copies stay the same."""
    flags = (*flags, "--name", "run", "--output", tmp_path / "runs", "--devices", "CPU:0", "CPU:1", *precision)
    flags = (*flags, "--ema", 0.9, "--weight-decay", 0.01, "--l2-heads", 0.01, "--dropout", 0.3)
    two = start("two", flags)
    two.wait()
    assert_same_workers([two], steps=10)
    assert all(len(set(line["statistics"])) == 1 for line in two.lines("statistics"))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_ends_the_others_and_all_resume(start, start_workers, flags, frozen, tmp_path, killed):
    flags = (*flags, *frozen, "--epochs", 12, "--name", "run")
    shared = (*flags, "--output", tmp_path / "shared")
    workers = start_workers("before", [shared] * 2)
    workers[0].wait_for(steps=12)  # two epochs are saved, or will be by the next start
    workers[killed].process.kill()
    died = time.monotonic()
    printed = workers[1 - killed].wait(expect=75)
    assert time.monotonic() - died < 60
    assert printed.splitlines()[-1].startswith("error: another worker has ended or cannot be reached")
    assert "Traceback" not in printed

    workers = start_workers("after", [(*shared, "--resume")] * 2)
    one = start("one", (*flags, "--output", tmp_path / "one_process", "--strategy", "one"))
    for process in (*workers, one):
        process.wait()
    resumed_at = 60 - len(workers[0].lines("loss"))
    assert resumed_at in range(5, 60, 5)
    assert_same_workers(workers, steps=60 - resumed_at)
    assert workers[0].lines("loss")[-1]["loss"] == pytest.approx(one.lines("loss")[-1]["loss"], rel=1e-4)
    rows = log_of(tmp_path / "shared/run")
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    for ours, theirs in zip(rows, log_of(tmp_path / "one_process/run"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_at_the_same_step(start_workers, flags, frozen, tmp_path):
    flags = (*flags, *frozen, "--epochs", 12, "--name", "run", "--output", tmp_path / "shared")
    workers = start_workers("before", [flags] * 2)
    workers[1].wait_for(steps=7)
    workers[1].process.send_signal(signal.SIGTERM)
    printed = [worker.wait() for worker in workers]
    assert all("is saved; go on with --resume" in text for text in printed)
    done = len(workers[0].lines("loss"))
    assert 7 <= done < 60
    workers = start_workers("after", [(*flags, "--resume")] * 2)
    for worker in workers:
        worker.wait()
    assert_same_workers(workers, steps=60 - done)


@pytest.mark.slow
def test_workers_that_do_not_agree_end_with_one_line(start_workers, flags, frozen, tmp_path):
    flags = (*flags, *frozen, "--epochs", 1, "--name", "run")
    workers = start_workers("seeds", [(*flags, "--output", tmp_path / "a", "--seed", i) for i in range(2)])
    for worker in workers:
        last = worker.wait(expect=2).splitlines()[-1]
        assert last.startswith("error: seed: 0 in worker 0, 1 in worker 1.")
    workers = start_workers("first", [(*flags, "--output", tmp_path / "b")] * 2)
    for worker in workers:
        worker.wait()
    apart = [(*flags, "--output", tmp_path / name, "--resume") for name in ("b", "elsewhere")]
    for worker in start_workers("second", apart):
        last = worker.wait(expect=2).splitlines()[-1]
        assert last.startswith("error: epochs done: 1 in worker 0, 0 in worker 1.")
        assert "folder that they share" in last


@pytest.mark.slow
def test_tasks_of_a_slurm_job_step(start, flags, frozen, tmp_path):
    """Two nodes, of this machine: `worker.sh` of the docstring of `distribution`, with a `scontrol` that lists them."""
    (port,) = free_ports(1)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 127.0.0.1\necho localhost\n")
    (tmp_path / "scontrol").chmod(0o755)
    *lines, call = [line for line in distribution.__doc__.splitlines() if line.startswith("    ")]
    assert "train.py" in call
    job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "both", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    tasks = []
    for i in range(2):
        script = "\n".join([*lines, 'printf %s "$TF_CONFIG"'])
        config = subprocess.check_output(["bash", "-ec", script], env=job | {"SLURM_PROCID": str(i)}, text=True)
        shared = ("--epochs", 1, "--name", "run", "--output", tmp_path / "shared", "--strategy", "multiworker")
        tasks.append(start(f"task{i}", (*flags, *frozen, *shared), {"TF_CONFIG": config}))
    for task in tasks:
        task.wait()
    assert_same_workers(tasks, steps=5)


@pytest.mark.slow
def test_evaluation_by_two_workers_equals_one(start, start_workers, faces_300w, tmp_path):
    name = "asmnet_300w_112_60"
    flags = (name, "--dataset", "300w", "--data-dir", faces_300w, "--strategy")
    one = start("one", (*flags, "one", "--output", tmp_path / "one_process"), None, "evaluate.py")
    outputs = [tmp_path / f"of{i}" for i in range(2)]
    workers = start_workers("worker", [(*flags, "multiworker", "--output", path) for path in outputs], "evaluate.py")
    expected = json.loads(one.wait().splitlines()[-1])
    printed = [worker.wait() for worker in workers]
    ours = json.loads(printed[0].splitlines()[-1])
    for subset, numbers in expected[name].items():
        for key, number in numbers.items():
            assert ours[name][subset][key] == pytest.approx(number, rel=1e-4, nan_ok=True), (subset, key)
    assert not outputs[1].exists()
