"""Who takes part in a run, from flags and environment, without connecting; tests/e2e connects processes."""

import json
import os
import subprocess

import numpy as np
import pytest

import train
from asmnet_tf.files import InputError
from asmnet_tf.training import distribution
from asmnet_tf.training.distribution import Replicas, joined

CLUSTER = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.parametrize(("count", "workers"), [(8, 3), (4, 4), (3, 5), (0, 2), (1000, 7)])
def test_parts_are_contiguous_and_without_overlap(count, workers):
    things = list(range(count))
    parts = [things[Replicas(worker=w, workers=workers).part(count)] for w in range(workers)]
    assert [thing for part in parts for thing in part] == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_the_default():
    with joined("auto") as replicas:
        assert (replicas.worker, replicas.workers, replicas.count, replicas.is_chief) == (0, 1, 1, True)
        assert replicas.total([1.5, 2]).tolist() == [1.5, 2]
        replicas.check_agreement(epochs=3)
        batch = {"image": np.zeros((4, 2))}
        assert replicas.split(batch) is batch


@pytest.mark.parametrize(("task", "worker"), [(("chief", 0), 0), (("worker", 0), 1), (("worker", 1), 2)])
def test_workers_are_numbered_from_the_chief(monkeypatch, task, worker):
    config = {"cluster": CLUSTER, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    resolver, number, addresses = distribution._tf_config()
    assert (number, addresses) == (worker, ["a:1", "b:2", "c:3"])
    assert (resolver.task_type, resolver.task_id) == task


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"cluster": {}, "task": {"type": "worker", "index": 0}}'),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": -1}}),
        json.dumps({"cluster": CLUSTER | {"ps": ["d:4"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_bad_tf_config_is_told_in_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=r"^TF_CONFIG: cannot be used .* Expected the form of"):
        distribution._tf_config()


def slurm_config(folder, nodes, task):
    """TF_CONFIG of a task, by the lines in the docstring of `distribution`, where `scontrol` lists these nodes."""
    (folder / "scontrol").write_text("#!/bin/sh\n[ $3 = THE_NODES ] && printf '%s\\n' " + " ".join(nodes))
    (folder / "python").write_text('#!/bin/sh\necho "$TF_CONFIG" "$@"')
    for name in ("scontrol", "python"):
        (folder / name).chmod(0o755)
    lines = [line for line in distribution.__doc__.splitlines() if line.startswith("    ")]
    step = {"SLURM_JOB_ID": "7", "SLURM_PROCID": str(task), "SLURM_STEP_NODELIST": "THE_NODES"}
    environment = os.environ | step | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines), "worker.sh", "--epochs", "2"], env=environment, capture_output=True
    )
    assert not done.returncode, done.stderr
    config, words = done.stdout.decode().split(" train.py ")
    assert words.split() == ["--strategy", "multiworker", "--epochs", "2"]
    return config


def test_slurm_tasks_are_numbered_in_the_order_of_the_node_list(tmp_path, monkeypatch):
    """n2 comes before n10, though not by name."""
    monkeypatch.setenv("TF_CONFIG", slurm_config(tmp_path, ["n2", "n10"], task=1))
    resolver, number, addresses = distribution._tf_config()
    assert addresses == ["n2:10008", "n10:10009"]
    assert (number, resolver.task_type, resolver.task_id) == (1, "worker", 1)


def test_multiworker_without_a_cluster_is_told_in_one_line():
    with pytest.raises(InputError, match="TF_CONFIG is not set"):
        distribution._tf_config()


@pytest.mark.parametrize("name", ["cpu:0", "GPU", "GPU:", "TPU:0", "GPU:-1", "GPU:x"])
def test_a_bad_device_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--devices", name])
    assert "is not of the form GPU:0 or CPU:0" in capsys.readouterr().err


def test_a_device_that_is_not_there():
    with joined("mirrored", ["GPU:7"]) as replicas, pytest.raises(InputError, match="--devices GPU:7: not on this"):
        _ = replicas.strategy
