"""Schedules and what a run leaves on disk, without training anything real."""

import json

import numpy as np
import pytest

import train
from asmnet_tf.config import RECIPES
from asmnet_tf.losses import alpha_at
from asmnet_tf.training import Schedule, make_plan, write_arguments


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
