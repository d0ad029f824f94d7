"""Schedules and what a run leaves on disk, without training anything real."""

import numpy as np
import pytest

from asmnet_tf.training import Schedule


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
