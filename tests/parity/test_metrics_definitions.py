"""metrics.py against the definitions written out as loops over faces and points, on random faces and odd ones.

Nothing of the package is used but the function under test and the names of the datasets.
"""

import itertools
import math
import random

import numpy as np
import pytest

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation import metrics

THRESHOLDS = (0.05, 0.08, 0.10)
EYES_68 = ([36, 37, 38, 39, 40, 41], [42, 43, 44, 45, 46, 47])


def faces_of(dataset: str, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random true and predicted landmarks, pixels; one prediction is perfect, one far off."""
    rng = np.random.default_rng(len(dataset))
    truth = rng.uniform(0, 200, (count, DATASETS[dataset].num_landmarks, 2))
    scale = rng.exponential(6.0, (count, 1, 1))
    predicted = truth + scale * rng.normal(size=truth.shape)
    predicted[3] = truth[3]
    predicted[7] += 1000
    return predicted, truth


def distance(p, q) -> float:
    return math.sqrt((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2)


def middle(face, indices) -> tuple[float, float]:
    return sum(face[i][0] for i in indices) / len(indices), sum(face[i][1] for i in indices) / len(indices)


def length_of(face, dataset: str, kind: str) -> float:
    """Paper.md section 9 with its 0-based indices; 29 points: outer corners 8 and 9, pupils 16 and 17."""
    if kind == "inter-ocular":
        first, second = {"300w": (36, 45), "wflw": (60, 72), "cofw": (8, 9)}[dataset]
        return distance(face[first], face[second])
    if dataset == "300w":
        return distance(middle(face, EYES_68[0]), middle(face, EYES_68[1]))
    first, second = {"wflw": (96, 97), "cofw": (16, 17)}[dataset]
    return distance(face[first], face[second])


def nme_of(predicted, truth, length: float) -> float:
    total = 0.0
    for p, q in zip(predicted, truth):
        total += distance(p, q)
    return total / len(truth) / length


@pytest.mark.parametrize("kind", ["inter-ocular", "inter-pupil"])
@pytest.mark.parametrize("dataset", ["300w", "wflw", "cofw"])
def test_nme(dataset, kind):
    predicted, truth = faces_of(dataset)
    lengths = metrics.normaliser(truth, DATASETS[dataset], kind)
    errors = metrics.nme(predicted, truth, lengths)
    for i in range(len(truth)):
        length = length_of(truth[i].tolist(), dataset, kind)
        assert lengths[i] == pytest.approx(length, rel=1e-12)
        assert errors[i] == pytest.approx(nme_of(predicted[i].tolist(), truth[i].tolist(), length), rel=1e-12)


def test_pupils_of_wflw_are_the_predecessors():
    """The predecessor's test code divides WFLW errors by |p96 - p97|, read from the flat vector x0, y0, x1, ..."""
    _, truth = faces_of("wflw")
    for face in truth:
        flat = face.reshape(-1).tolist()
        left, right = (flat[2 * 96], flat[2 * 96 + 1]), (flat[2 * 97], flat[2 * 97 + 1])
        assert metrics.normaliser(face[None], DATASETS["wflw"], "inter-pupil")[0] == pytest.approx(
            distance(left, right)
        )


def errors_with_gaps() -> np.ndarray:
    errors = np.random.default_rng(5).exponential(0.06, 200)
    errors[[10, 20]] = THRESHOLDS[:2]  # exactly on a threshold: no failure
    errors[[30, 40]] = np.nan, np.inf  # no prediction
    return errors


def counted(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_failure_rate_ced_and_auc(threshold):
    errors = errors_with_gaps()
    known = [e if math.isfinite(e) else math.inf for e in errors.tolist()]
    assert metrics.failures(errors, threshold).mean() == pytest.approx(counted(e > threshold for e in known))
    ranked = np.array(known)
    for x in (0.0, 0.02, 0.05, 0.08, 0.3):
        assert metrics.ced(ranked, np.array([x]))[0] == pytest.approx(counted(e <= x for e in known))
    # the area under the CED's steps, one rectangle between two neighbouring errors
    steps = [*sorted(e for e in known if e <= threshold), threshold]
    area = sum((right - left) * (i + 1) / len(known) for i, (left, right) in enumerate(itertools.pairwise(steps)))
    assert metrics.gains(errors, threshold).mean() == pytest.approx(area / threshold, rel=1e-12)


def test_auc_is_not_that_of_a_grid():
    """Swapped or gridded integration (the predecessor's) leaves [0, 1] or misses 1 for a perfect method."""
    assert metrics.gains(np.zeros(7), 0.08).mean() == 1.0
    assert metrics.gains(np.full(7, 0.08), 0.08).mean() == 0.0


def test_summary_in_per_cent():
    errors = errors_with_gaps()
    finite = [e for e in errors.tolist() if math.isfinite(e)]
    summary = metrics.summarise(errors, 1.4 * errors, THRESHOLDS, *np.full((2, 200, 3), np.nan))
    assert summary["n"] == 200
    assert summary["nme_pct"] == pytest.approx(100 * counted(finite))
    assert summary["nme_interpupil_pct"] == pytest.approx(140 * counted(finite))
    for t in THRESHOLDS:
        assert summary[f"fr_pct@{t:.2f}"] == pytest.approx(100 * metrics.failures(errors, t).mean())
        assert summary[f"auc_pct@{t:.2f}"] == pytest.approx(100 * metrics.gains(errors, t).mean())


def test_pose_mae():
    rng = np.random.default_rng(2)
    predicted, truth = rng.uniform(-180, 180, (2, 60, 3))
    errors = metrics.pose_errors(predicted, truth)
    table = []
    for p, q in zip(predicted.tolist(), truth.tolist()):
        turns = [[abs(a - b + 360 * k) for k in (-1, 0, 1)] for a, b in zip(p, q)]
        table.append([min(turn) for turn in turns])
    assert errors == pytest.approx(np.array(table), abs=1e-9)
    summary = metrics.summarise(np.zeros(60), np.full(60, np.nan), (), errors, np.full((60, 3), np.nan))
    for i, angle in enumerate(("yaw", "pitch", "roll")):
        assert summary["pose_mae_deg"][angle] == pytest.approx(counted(row[i] for row in table))


def quantile_of(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def bootstrap_of(rows: list, statistic, draws: int = 3000) -> tuple[float, float]:
    """Percentile bootstrap with another generator and more draws: agreement is up to chance."""
    chance = random.Random(11)
    values = sorted(statistic([chance.choice(rows) for _ in rows]) for _ in range(draws))
    return quantile_of(values, 0.025), quantile_of(values, 0.975)


def test_bootstrap_interval():
    values = [v for v in errors_with_gaps().tolist() if math.isfinite(v)]
    low, high = bootstrap_of(values, counted)
    ours = metrics.bootstrap_interval(np.array(values))
    assert ours == pytest.approx([low, high], abs=0.06 * (high - low))


def test_paired_bootstrap():
    """Faces drawn in pairs: not as wide as the two methods' own intervals would have it."""
    rng = np.random.default_rng(8)
    hard = rng.exponential(0.05, 150)
    a, b = hard + rng.normal(0.003, 0.004, 150), hard + rng.normal(0, 0.004, 150)
    low, high = bootstrap_of(list(zip(a.tolist(), b.tolist())), lambda rows: counted(p - q for p, q in rows))
    found = metrics.paired_bootstrap(a, b)
    assert found["nme_difference_pct"] == pytest.approx(100 * (counted(a.tolist()) - counted(b.tolist())))
    ours = [v / 100 for v in found["ci95"]]
    assert ours == pytest.approx([low, high], abs=0.06 * (high - low))
    assert found["a_better_pct"] == 100 * counted(q - p > 1e-5 for p, q in zip(a, b))
    assert found["b_better_pct"] == 100 * counted(p - q > 1e-5 for p, q in zip(a, b))
    own = metrics.bootstrap_interval(a)
    assert ours[1] - ours[0] < 0.3 * (own[1] - own[0])
