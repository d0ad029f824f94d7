"""All the numbers: NME, failure rate, AUC, CED curve, pose error, each with its bootstrap interval (NumPy only).

NME is a fraction here and per cent in tables. Nothing else in this project computes an error a second time.
"""

from collections.abc import Sequence

import numpy as np

from asmnet_tf.config import ANGLES
from asmnet_tf.data import geometry
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.pose import signed
from asmnet_tf.shape.shape_model import ShapeModel, chunks

BOOTSTRAP_SAMPLES = 1000
BOOTSTRAP_SEED = 0
UNIT_FRAME = np.array([0.0, 0.0, 1.0, 1.0])  # of shapes without an image: their distances are those in the crop
TIE = 1e-5  # NMEs closer than this are equal: one network in two formats differs by rounding on every face


def normaliser(landmarks_gt: np.ndarray, spec: DatasetSpec, kind: str = "inter-ocular") -> np.ndarray:
    """Returns the length that the error of each face is divided by, float64 (N,), pixels; NaN where it is zero.

    inter-ocular: distance of the outer eye corners. inter-pupil: distance of the pupils, which are the mean of the
    eye's points (68 points) or points of their own (98, 29 points). A dataset that names no eyes has the diagonal of
    the landmarks' bounding box for both.

    Args: landmarks_gt: float (N, L, 2), pixels. Raises: ValueError for an unknown kind.
    """
    points = np.asarray(landmarks_gt)
    if kind not in ("inter-ocular", "inter-pupil"):
        raise ValueError(f"normaliser is {kind!r}; it is 'inter-ocular' or 'inter-pupil'")
    if not spec.outer_eye_corners:
        first, second = points.min(axis=1).astype(np.float64), points.max(axis=1).astype(np.float64)
    elif kind == "inter-ocular":
        first, second = (points[:, i].astype(np.float64) for i in spec.outer_eye_corners)
    else:
        first, second = (points[:, list(indices)].mean(axis=1, dtype=np.float64) for indices in spec.pupils)
    length = np.linalg.norm(first - second, axis=-1)
    return np.where(length > 0, length, np.nan)


def point_errors(landmarks_pred: np.ndarray, landmarks_gt: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns |error| / normaliser of every landmark: (N, L) from (N, L, 2), (N, L, 2) and (N,)."""
    errors = np.empty(landmarks_gt.shape[:2])
    for first in range(0, len(errors), 4096):  # what is computed on the way need not be there for all faces at once
        part = slice(first, first + 4096)
        difference = landmarks_pred[part].astype(np.float64) - landmarks_gt[part]
        errors[part] = np.sqrt(difference[..., 0] ** 2 + difference[..., 1] ** 2) / lengths[part, None]
    return errors


def nme(landmarks_pred: np.ndarray, landmarks_gt: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the NME of every face, a fraction: float64 (N,)."""
    return point_errors(landmarks_pred, landmarks_gt, lengths).mean(axis=1)


def smoothing_distance(model: ShapeModel, shapes: np.ndarray, frames: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """Returns how far ASM(s) lies from each shape: NME (N,), a fraction of the inter-ocular distance.

    Args: frames: (N, 4), for distances in image pixels, or `UNIT_FRAME`; the same in square crops, not in tight ones.
    """
    frames, errors = np.broadcast_to(frames, (len(shapes), 4)), []
    for rows in chunks(len(shapes), f"ASM {model.pca_percent:g} %"):
        smoothed, points = (geometry.denormalise(s, frames[rows]) for s in (model.smooth(shapes[rows]), shapes[rows]))
        errors.append(nme(smoothed, points, normaliser(points, spec)))
    return np.concatenate(errors)


# A face without a prediction has the error NaN (or infinity). It is a failure, beyond every threshold in FR, AUC and
# CED. NME is the mean over the other faces, the scored ones, and never stands without their number.


def scored(errors: np.ndarray) -> np.ndarray:
    """Returns which faces have a prediction, bool (N,)."""
    return np.isfinite(errors)


def failures(errors: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which faces have NME > threshold or no prediction, bool (N,); their share is FR@threshold."""
    return ~(errors <= threshold)


def gains(errors: np.ndarray, threshold: float) -> np.ndarray:
    """Returns max(0, 1 - NME / threshold) of each face, (N,), 0 without a prediction; their mean is AUC@threshold.

    AUC is the area under the CED curve from 0 to threshold, divided by threshold. The CED is a step function, so this
    mean is exact; no grid is involved, and a perfect prediction scores exactly 1.
    """
    return np.fmax(0.0, 1.0 - errors / threshold)


def ced(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns the share of faces with NME <= t for every t in thresholds, (T,): one minus the failure rate at t."""
    return np.searchsorted(np.sort(errors[scored(errors)]), thresholds, side="right") / len(errors)


def pose_errors(pose_pred_deg: np.ndarray, pose_gt_deg: np.ndarray) -> np.ndarray:
    """Returns the absolute angle differences (N, 3) in degrees, the short way round."""
    return np.abs(signed(np.asarray(pose_pred_deg, np.float64) - np.asarray(pose_gt_deg, np.float64)))


def bootstrap_interval(values: np.ndarray) -> list[float | None]:
    """Returns the 95 % bootstrap interval [low, high] of the mean of values (N,); [None, None] below two values.

    Every number here is a mean over faces (FR of indicators, AUC of clipped gains), so this one function serves all.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return [None, None]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = [rng.choice(values, len(values)).mean() for _ in range(BOOTSTRAP_SAMPLES)]  # all at once: 8 kB a face
    return np.quantile(means, [0.025, 0.975]).tolist()


def _mean(values: np.ndarray, scale: float = 100.0) -> tuple[float | None, list[float | None]]:
    """Returns the mean of values (N,) and its interval, times `scale`; None where there are too few values."""
    interval = [None if v is None else v * scale for v in bootstrap_interval(values)]
    return float(values.mean() * scale) if len(values) else None, interval


def paired_bootstrap(errors_a: np.ndarray, errors_b: np.ndarray) -> dict:
    """Compares two methods on the same faces, by the percentile bootstrap of the mean difference of their errors.

    Faces are drawn, each with both errors, so that what makes a face hard for both does not widen the interval. A face
    on which one method has no error (NaN, infinite: no prediction) cannot enter the difference and is counted in
    `left_out`; in the shares the other method is better on it. Without an error on either side it is a tie.

    Args:    errors_a, errors_b: (N,), fractions, the same faces in the same order; ValueError if their shapes differ.
    Returns: n; left_out; nme_difference_pct, the mean of A - B: below 0, A is better; its interval ci95; a_better_pct
        and b_better_pct of the n faces, the rest are ties: within TIE of each other. None where no face tells.
    """
    if errors_a.ndim != 1 or errors_a.shape != errors_b.shape:
        raise ValueError(f"errors of shape {errors_a.shape} and {errors_b.shape}; expected (N,) of the same faces")
    known = scored(errors_a) & scored(errors_b)
    difference, interval = _mean(errors_a[known] - errors_b[known])
    a, b = (np.where(scored(errors), errors, np.inf) for errors in (errors_a, errors_b))
    a_better, b_better = (100 * float(np.mean(won)) if len(won) else None for won in (a < b - TIE, b < a - TIE))
    result = {"n": len(known), "left_out": int(np.sum(~known)), "nme_difference_pct": difference, "ci95": interval}
    return result | {"a_better_pct": a_better, "b_better_pct": b_better}


def summarise(
    errors: np.ndarray, errors_interpupil: np.ndarray, thresholds: Sequence[float], pose: np.ndarray, pnp: np.ndarray
) -> dict:
    """Returns the metrics of one method on one subset, as plain JSON values; what is not there is None, never NaN.

    Args:
        errors, errors_interpupil: NME fractions (N,), NaN where unknown. pose, pnp: errors in degrees (N, 3), likewise.
    Returns: n, n_scored (faces with a prediction: NME is over these), nme_pct, nme_interpupil_pct, fr_pct@T, auc_pct@T,
        pose_mae_deg and pose_pnp_mae_deg with pose_n_scored and pose_pnp_n_scored (faces with both angles and labels:
        the mean is over these), and ci95 with an interval [low, high] under the same keys.
    """
    result: dict = {"n": len(errors), "n_scored": int(scored(errors).sum())}
    intervals: dict = {}
    for key, values in (("nme_pct", errors), ("nme_interpupil_pct", errors_interpupil)):
        result[key], intervals[key] = _mean(values[scored(values)])
    for threshold in thresholds:
        for key, of_each in ((f"fr_pct@{threshold:.2f}", failures), (f"auc_pct@{threshold:.2f}", gains)):
            result[key], intervals[key] = _mean(of_each(errors, threshold))
    for key, table in (("pose", pose), ("pose_pnp", pnp)):
        given = np.isfinite(table).any(axis=0)  # a method may have no roll, say
        table = table[np.isfinite(table[:, given]).all(axis=1) & given.any()]
        columns = [_mean(table[:, i] if given[i] else np.empty(0), scale=1.0) for i in range(3)]
        for k, place in enumerate((result, intervals)):
            place[f"{key}_mae_deg"] = dict(zip(ANGLES, [column[k] for column in columns])) if len(table) else None
        result[f"{key}_n_scored"] = len(table)
    result["ci95"] = intervals
    return result
