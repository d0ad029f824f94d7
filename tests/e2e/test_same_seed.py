"""The same seed twice gives the same run on the CPU, bit for bit; another seed gives another.

The number of threads must be the same, since sums are split among them.
"""

import csv
import json

import keras
import numpy as np
import pytest

VARY = {"images_per_s", "seconds"}


def log_of(folder) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in VARY} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def again(run_batch, run_300w, small_runs, tmp_path_factory):
    """The folder of more runs with the flags of `run_300w`: `tiny`, and of the small network `small` and `other`."""
    output = tmp_path_factory.mktemp("again")
    flags = [*run_300w.flags, "--output", output, "--name"]
    for small, runs in ((False, [["tiny"]]), (True, [["small"], ["other", "--seed", 1]])):
        for done in run_batch([("train", [*flags, *more]) for more in runs], small).done:
            assert done.returncode == 0, done.stderr
    return output


def test_losses_and_scores_are_the_same(run_300w, small_runs, again):
    """Each loss is the mean of an epoch's steps, with all digits; 15 steps and three validations in all."""
    assert len(log_of(again / "tiny")) == 3
    assert log_of(again / "tiny") == log_of(run_300w.folder)
    assert log_of(again / "small") == log_of(small_runs["300w"].folder)
    assert log_of(again / "other")[0]["loss"] != log_of(again / "small")[0]["loss"]


def test_weights_are_the_same(run_300w, again):
    ours, theirs = (keras.models.load_model(folder / "last.keras") for folder in (again / "tiny", run_300w.folder))
    assert len(ours.weights) > 200
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        assert np.array_equal(a, b), a.path


def test_seed_and_commit_are_recorded(again):
    flags = json.loads((again / "other/args.json").read_text())
    assert flags["flags"]["seed"] == 1
    assert flags["commit"]
