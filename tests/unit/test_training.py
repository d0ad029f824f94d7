"""Schedules and what a run leaves on disk, without training anything real."""

import json

import numpy as np
import pytest

import train
from asmnet_tf.config import DATASETS, RECIPES
from asmnet_tf.datasets import read_samples, with_pose
from asmnet_tf.files import InputError
from asmnet_tf.losses import alpha_at
from asmnet_tf.shape_model import ShapeModel
from asmnet_tf.training import Schedule, check_flags, content_hashes, make_plan, write_arguments


def test_constant_schedule_with_inverse_time_decay():
    schedule = Schedule(lr=1e-2, kind="constant", steps=100, warmup_steps=0, inverse_time_decay=1e-5)
    assert schedule.at(0) == 1e-2
    assert schedule.at(100_000) == pytest.approx(1e-2 / 2)


def test_cosine_schedule_with_warm_up():
    schedule = Schedule(lr=1.0, kind="cosine", steps=110, warmup_steps=10, inverse_time_decay=0.0)
    assert [schedule.at(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.at(10) == pytest.approx(1.0)
    assert schedule.at(60) == pytest.approx(0.5)
    assert schedule.at(110) == pytest.approx(0.0, abs=1e-12)
    assert np.all(np.diff([schedule.at(s) for s in range(10, 111)]) < 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [2.0] * 3 + [1.0] * 3 + [0.5] * 3),
        (["--alpha-schedule", "epochs"], [2.0] * 3 + [1.0] * 3 + [0.5] * 3),
        (["--alpha-schedule", "release"], [2.0] * 2 + [1.0] * 2 + [0.5] * 5),  # thirds of 6 steps
        (["--alpha-schedule", "release", "--alpha", "3", "2", "0"], [3.0] * 2 + [2.0] * 2 + [0.0] * 5),
    ],
)
def test_alpha_of_a_run_with_9_epochs_of_6_steps(tmp_path, flags, expected):
    args = train.parse_args(["--recipe", "paper", "--epochs", "9", *flags])
    plan = make_plan(args, RECIPES["paper"], steps_per_epoch=6)
    assert [alpha_at(epoch, plan.alpha_length, plan.alphas) for epoch in range(plan.epochs)] == expected
    write_arguments(tmp_path, args, {})
    recorded = json.loads((tmp_path / "args.json").read_text())["flags"]["alpha_schedule"]
    assert recorded == ("release" if "release" in flags else "epochs")


def test_a_deterministic_run_keeps_its_number_of_threads(tmp_path):
    write_arguments(tmp_path / "fixed", train.parse_args(["--deterministic", "--threads", "2"]), {})
    check_flags(tmp_path / "fixed", train.parse_args(["--deterministic", "--threads", "2", "--resume"]))
    with pytest.raises(
        InputError, match=r"args\.json: the run has --threads 2, now it is 4\. Resume with the same flags"
    ):
        check_flags(tmp_path / "fixed", train.parse_args(["--deterministic", "--threads", "4", "--resume"]))
    with pytest.raises(InputError, match="the run has --deterministic True, now it is False"):
        check_flags(tmp_path / "fixed", train.parse_args(["--threads", "2", "--resume"]))
    write_arguments(tmp_path / "free", train.parse_args(["--threads", "2"]), {})
    check_flags(tmp_path / "free", train.parse_args(["--threads", "4", "--resume"]))


@pytest.mark.parametrize("epochs", ["2", "4"])
def test_another_number_of_epochs_is_another_run(tmp_path, epochs):
    write_arguments(tmp_path, train.parse_args(["--epochs", "3"]), {})
    (tmp_path / "last.keras").touch()
    with pytest.raises(InputError, match=f"--epochs 3, now it is {epochs}.*--weights .*last.keras --name NEW"):
        check_flags(tmp_path, train.parse_args(["--epochs", epochs, "--resume"]))


def contents(folder, faces_300w, bias=0.0, labels=True, weights=b"w", mean=0.0):
    """`content_hashes` of a run whose files lie in `folder`."""
    folder.mkdir()
    samples = read_samples(DATASETS["300w"], faces_300w, "train", 4, quiet=True)
    lines = [f"{s.name},{i + bias},2,3" for i, s in enumerate(samples)]
    (folder / "poses.csv").write_text("\n".join(["name,yaw,pitch,roll", *lines]))
    samples = with_pose(samples, DATASETS["300w"], faces_300w, folder / "poses.csv" if labels else None)
    ShapeModel(np.full(136, mean), np.eye(136)[:, :2], np.ones(2), "300w", 4, 90, "square", 1.2).save(folder / "s.npz")
    (folder / "w.keras").write_bytes(weights)
    shape_model = ShapeModel.load(folder / "s.npz")
    return content_hashes(samples, folder if labels else None, shape_model, str(folder / "w.keras"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"bias": 0.5}, "--pose-labels"),
        ({"labels": False}, "--pose-labels"),
        ({"weights": b"v"}, "--weights"),
        ({"mean": 0.1}, "--shape-model"),
    ],
)
def test_a_run_goes_on_from_the_same_content_wherever_it_lies(tmp_path, faces_300w, change, told):
    args = train.parse_args(["--resume"])
    write_arguments(tmp_path, args, {}, content=contents(tmp_path / "before", faces_300w))
    now = contents(tmp_path / "moved", faces_300w, **change)
    if told is None:
        check_flags(tmp_path, args, now)
        return
    with pytest.raises(InputError, match=rf"args\.json: {told} changed since the run began"):
        check_flags(tmp_path, args, now)


def test_a_run_goes_on_with_the_same_faces_only(tmp_path):
    args = train.parse_args([])
    write_arguments(tmp_path, args, {"train": 40, "skipped": 1})
    write_arguments(tmp_path, args, {"train": 40, "skipped": 1})
    with pytest.raises(InputError, match=r"'train': 40.*'train': 41.*Resume with the same data"):
        write_arguments(tmp_path, args, {"train": 41, "skipped": 0})
    assert len(json.loads((tmp_path / "args.json").read_text())["resumed_from"]) == 1
