"""metrics.py against numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation import metrics

ROOT = Path(__file__).resolve().parents[2]
S300W, WFLW = DATASETS["300w"], DATASETS["wflw"]
SUMMARY_KEYS = [
    *("n", "n_scored", "nme_pct", "nme_interpupil_pct", "fr_pct@0.08", "auc_pct@0.08", "fr_pct@0.10", "auc_pct@0.10"),
    *("pose_mae_deg", "pose_n_scored", "pose_pnp_mae_deg", "pose_pnp_n_scored", "ci95"),
]


def faces_68(count: int = 1) -> np.ndarray:
    """Outer eye corners at x = 0 and 100, the other five points of each eye at x = 20 and 80."""
    points = np.zeros((count, 68, 2))
    points[:, :, 1] = 50.0
    points[:, 36:42] = (20.0, 0.0)
    points[:, 42:48] = (80.0, 0.0)
    points[:, 36], points[:, 45] = (0.0, 0.0), (100.0, 0.0)
    return points


def unknown(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan)


def test_normaliser_68_by_hand():
    # pupils: x = 5 * 20 / 6 = 16.667 and (5 * 80 + 100) / 6 = 83.333
    assert metrics.normaliser(faces_68(2), S300W) == pytest.approx([100.0, 100.0])
    assert metrics.normaliser(faces_68(), S300W, "inter-pupil") == pytest.approx([200 / 3])


def test_normaliser_98_by_hand():
    points = np.zeros((1, 98, 2))
    points[0, 60], points[0, 72] = (10.0, 20.0), (90.0, 80.0)  # 80 and 60 apart
    points[0, 96], points[0, 97] = (30.0, 40.0), (33.0, 44.0)
    assert metrics.normaliser(points, WFLW) == pytest.approx([100.0])
    assert metrics.normaliser(points, WFLW, "inter-pupil") == pytest.approx([5.0])


def test_normaliser_of_zero_is_nan_and_an_unknown_kind_is_refused():
    assert np.isnan(metrics.normaliser(np.zeros((1, 68, 2)), S300W)).all()
    with pytest.raises(ValueError, match="diagonal"):
        metrics.normaliser(faces_68(), S300W, "diagonal")


def test_perfect_prediction():
    truth = faces_68(3)
    errors = metrics.nme(truth, truth, metrics.normaliser(truth, S300W))
    assert errors.tolist() == [0.0, 0.0, 0.0]
    assert metrics.failures(errors, 0.08).mean() == 0.0
    assert metrics.gains(errors, 0.08).mean() == 1.0  # exactly


@pytest.mark.parametrize("landmark", [0, 30, 36, 67])
def test_one_landmark_moved(landmark):
    truth, moved = faces_68(), faces_68()
    moved[0, landmark] += (3.0, -4.0)  # 5 px
    lengths = metrics.normaliser(truth, S300W)
    assert metrics.nme(moved, truth, lengths) == pytest.approx([5 / (68 * 100)])
    points = metrics.point_errors(moved, truth, lengths)
    assert points.shape == (1, 68)
    assert points[0, landmark] == pytest.approx(0.05)
    assert np.delete(points[0], landmark).max() == 0.0


def test_auc_of_known_values():
    # gains 1, 1/2, 0 (at the threshold), 0 (beyond): 1.5 / 4
    assert metrics.gains(np.array([0.0, 0.04, 0.08, 0.3]), 0.08).mean() == pytest.approx(0.375)


def test_auc_is_the_area_under_the_ced():
    errors = np.random.default_rng(0).uniform(0, 0.2, 50)
    middle = (np.arange(200_000) + 0.5) * 0.1 / 200_000
    assert metrics.gains(errors, 0.1).mean() == pytest.approx(metrics.ced(errors, middle).mean(), abs=1e-5)


def test_failure_is_strictly_above_the_threshold():
    errors = np.array([0.05, 0.08, 0.0800001, 0.5])
    assert metrics.failures(errors, 0.08).mean() == 0.5


def test_ced_is_right_continuous_and_complements_the_failure_rate():
    errors = np.array([0.05, 0.02, 0.05, 0.5])
    steps = np.array([0.0, 0.02, np.nextafter(0.02, 0), 0.05, 0.499, 0.5])
    assert metrics.ced(errors, steps).tolist() == [0.0, 0.25, 0.0, 0.75, 0.75, 1.0]
    for t in steps:
        assert metrics.ced(errors, np.array([t]))[0] == 1 - metrics.failures(errors, t).mean()


def test_pose_errors_take_the_short_way_round():
    predicted = np.array([[179.0, -10.0, 350.0], [0.0, 90.0, -180.0]])
    truth = np.array([[-179.0, 15.0, -5.0], [0.0, -90.0, 180.0]])
    assert metrics.pose_errors(predicted, truth).tolist() == [[2.0, 25.0, 5.0], [0.0, 180.0, 0.0]]


def test_bootstrap_interval():
    values = np.random.default_rng(3).exponential(1.0, 400)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert [low, high] == metrics.bootstrap_interval(values)  # same seed, same interval
    half = 1.96 * values.std() / np.sqrt(len(values))  # the normal approximation, 400 values
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert metrics.bootstrap_interval(np.full(5, 2.0)) == [2.0, 2.0]
    assert metrics.bootstrap_interval(values[:1]) == [None, None]


def test_paired_bootstrap_of_a_method_with_itself():
    errors = np.random.default_rng(0).exponential(0.05, 50)
    assert list(metrics.paired_bootstrap(errors, errors).values()) == [50, 0, 0.0, [0.0, 0.0], 0.0, 0.0]


def test_paired_bootstrap_of_a_constant_shift():
    """Hard and easy faces are hard and easy for both: the difference is certain, however much the errors vary."""
    errors = np.array([0.01, 0.5, 0.03, 0.2])
    found = metrics.paired_bootstrap(errors + 0.02, errors)
    assert found["nme_difference_pct"] == pytest.approx(2)
    assert found["ci95"] == pytest.approx([2, 2])
    assert (found["a_better_pct"], found["b_better_pct"], found["left_out"]) == (0, 100, 0)
    swapped = metrics.paired_bootstrap(errors, errors + 0.02)
    assert swapped["nme_difference_pct"] == pytest.approx(-2)
    assert (swapped["a_better_pct"], swapped["b_better_pct"]) == (100, 0)


def test_paired_bootstrap_by_hand():
    a, b = np.array([0.02, 0.04, 0.06, 0.10]), np.array([0.04, 0.04, 0.05, 0.18])
    found = metrics.paired_bootstrap(a, b)
    assert found["nme_difference_pct"] == pytest.approx((-2 + 0 + 1 - 8) / 4)
    low, high = found["ci95"]
    assert [low, high] == pytest.approx([100 * v for v in metrics.bootstrap_interval(a - b)])
    assert -8 <= low < found["nme_difference_pct"] < high <= 1
    assert (found["a_better_pct"], found["b_better_pct"]) == (50, 25)  # one face is a tie


def test_paired_bootstrap_counts_faces_without_a_prediction():
    a = np.array([0.02, np.nan, 0.05, np.inf, np.nan])
    b = np.array([0.03, 0.50, np.nan, np.nan, 0.01])
    found = metrics.paired_bootstrap(a, b)
    assert found["left_out"] == 4
    assert found["nme_difference_pct"] == pytest.approx(-1)  # of the one face that both have
    assert found["ci95"] == [None, None]
    assert (found["a_better_pct"], found["b_better_pct"]) == (40, 40)  # who found the face is better; none: a tie
    assert list(metrics.paired_bootstrap(a[1:2], b[1:2]).values()) == [1, 1, None, [None, None], 0.0, 100.0]
    nobody = metrics.paired_bootstrap(np.empty(0), np.empty(0))
    assert list(nobody.values()) == [0, 0, None, [None, None], None, None]
    with pytest.raises(ValueError, match="the same faces"):
        metrics.paired_bootstrap(a, b[:3])


def test_summarise_by_hand():
    errors = np.array([0.02, 0.06, 0.09, 0.11])
    pose = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [np.nan] * 3, [2.0, 3.0, 4.0]])
    result = metrics.summarise(errors, errors * 1.5, (0.08, 0.10), pose, unknown(4, 3))
    assert list(result) == SUMMARY_KEYS
    assert list(result["ci95"]) == [key for key in SUMMARY_KEYS if key not in ("n", "ci95") and "scored" not in key]
    assert (result["n"], result["n_scored"]) == (4, 4)
    assert (result["pose_n_scored"], result["pose_pnp_n_scored"]) == (3, 0)
    assert result["nme_pct"] == pytest.approx(7.0)
    assert result["nme_interpupil_pct"] == pytest.approx(10.5)
    assert result["fr_pct@0.08"] == 50.0
    assert result["fr_pct@0.10"] == 25.0
    assert result["auc_pct@0.08"] == pytest.approx(100 * (0.75 + 0.25) / 4)
    assert result["auc_pct@0.10"] == pytest.approx(100 * (0.8 + 0.4 + 0.1) / 4)
    assert result["pose_mae_deg"] == pytest.approx({"yaw": 2.0, "pitch": 3.0, "roll": 4.0})
    assert result["pose_pnp_mae_deg"] is None
    assert result["ci95"]["pose_pnp_mae_deg"] is None
    low, high = result["ci95"]["nme_pct"]
    assert 2.0 <= low < 7.0 < high <= 11.0  # in per cent, like the value


def test_one_definition_of_a_missing_prediction():
    """FR, AUC and CED count it as a failure, each by itself and in the summary; NME is over the others."""
    errors = np.random.default_rng(0).exponential(0.06, 40)
    errors[[3, 9, 30]] = np.nan, np.inf, np.nan
    result = metrics.summarise(errors, unknown(40), (0.08,), unknown(40, 3), unknown(40, 3))
    assert (result["n"], result["n_scored"]) == (40, 37)
    assert result["nme_pct"] == pytest.approx(100 * errors[metrics.scored(errors)].mean())
    assert result["fr_pct@0.08"] == 100 * metrics.failures(errors, 0.08).mean()
    assert result["auc_pct@0.08"] == 100 * metrics.gains(errors, 0.08).mean()
    worst = np.where(metrics.scored(errors), errors, 1e9)
    for t in (0.0, 0.05, 0.08, 1e6):
        assert metrics.failures(errors, t).mean() == metrics.failures(worst, t).mean()
        assert metrics.ced(errors, np.array([t]))[0] == pytest.approx(1 - metrics.failures(errors, t).mean())
    assert metrics.gains(errors, 0.08).mean() == pytest.approx(metrics.gains(worst, 0.08).mean())
    assert metrics.ced(errors, np.array([np.inf]))[0] == 37 / 40  # never all
    for key, each in (("fr", metrics.failures), ("auc", metrics.gains)):
        interval = metrics.bootstrap_interval(each(errors, 0.08))
        assert result["ci95"][f"{key}_pct@0.08"] == pytest.approx([100 * v for v in interval])


def test_pose_of_some_angles_or_faces():
    """An angle that a method never gives is left out; a face that lacks another is not scored."""
    pose = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan], [5.0, 6.0, np.nan]])
    result = metrics.summarise(np.zeros(3), unknown(3), (), pose, unknown(3, 3))
    assert result["pose_mae_deg"] == {"yaw": 3.0, "pitch": 4.0, "roll": None}
    assert (result["pose_n_scored"], result["pose_pnp_n_scored"]) == (2, 0)
    assert result["pose_pnp_mae_deg"] is None
    json.dumps(result, allow_nan=False)


def test_a_face_without_a_number_is_a_failure_and_never_nan():
    errors = np.array([0.02, np.nan, np.inf, 0.04])
    result = metrics.summarise(errors, unknown(4), (0.08, 0.10), unknown(4, 3), unknown(4, 3))
    assert result["nme_pct"] == pytest.approx(3.0)  # over the two known faces
    assert result["nme_interpupil_pct"] is None
    assert result["fr_pct@0.08"] == 50.0
    assert result["auc_pct@0.08"] == pytest.approx(100 * (0.75 + 0.5) / 4)
    assert result["pose_mae_deg"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("errors", [np.empty(0), np.full(3, np.nan)])
def test_summarise_of_nothing(errors):
    result = metrics.summarise(errors, errors, (0.08,), *unknown(2, len(errors), 3))
    assert (result["n"], result["n_scored"]) == (len(errors), 0)
    assert result["nme_pct"] is None
    assert result["fr_pct@0.08"] == (100.0 if len(errors) else None)
    json.dumps(result, allow_nan=False)
