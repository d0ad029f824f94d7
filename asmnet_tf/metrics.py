"""All the numbers: NME, failure rate, AUC, CED curve, pose error, each with its bootstrap interval (NumPy only).

NME is a fraction here and per cent in tables. Nothing else in this project computes an error a second time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asmnet_tf.config import ANGLES, DatasetSpec

BOOTSTRAP_SAMPLES = 1000
BOOTSTRAP_SEED = 0
TIE = 1e-5  # NMEs closer than this are equal: one network in two formats differs by rounding on every face


def normaliser(landmarks_gt: np.ndarray, spec: DatasetSpec, kind: str = "inter-ocular") -> np.ndarray:
    """Returns the length that the error of each face is divided by.

    inter-ocular: distance of the outer eye corners. inter-pupil: distance of the pupils, which are the mean of the
    eye's points (68 points) or points of their own (98, 29 points).

    Args:    landmarks_gt: float (N, L, 2), pixels.
    Returns: float64 (N,), pixels; NaN where it is zero.
    Raises:  ValueError for an unknown kind.
    """
    points = np.asarray(landmarks_gt)
    if kind == "inter-ocular":
        first, second = (points[:, i].astype(np.float64) for i in spec.outer_eye_corners)
    elif kind == "inter-pupil":
        first, second = (points[:, list(indices)].mean(axis=1, dtype=np.float64) for indices in spec.pupils)
    else:
        raise ValueError(f"normaliser is {kind!r}; it is 'inter-ocular' or 'inter-pupil'")
    length = np.linalg.norm(first - second, axis=-1)
    return np.where(length > 0, length, np.nan)


def point_errors(landmarks_pred: np.ndarray, landmarks_gt: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns |error| / normaliser of every landmark: (N, L) from (N, L, 2), (N, L, 2) and (N,)."""
    landmarks_pred, landmarks_gt = np.asarray(landmarks_pred), np.asarray(landmarks_gt)
    if landmarks_pred.shape != landmarks_gt.shape:
        raise ValueError(f"landmarks of shape {landmarks_pred.shape}, ground truth of {landmarks_gt.shape}")
    errors = np.empty(landmarks_gt.shape[:2])
    for part in _parts(len(errors)):
        difference = landmarks_pred[part].astype(np.float64) - landmarks_gt[part]
        errors[part] = np.sqrt(difference[..., 0] ** 2 + difference[..., 1] ** 2) / lengths[part, None]
    return errors


def nme(landmarks_pred: np.ndarray, landmarks_gt: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the NME of every face, a fraction: float64 (N,)."""
    parts = _parts(len(landmarks_gt))
    means = [point_errors(landmarks_pred[p], landmarks_gt[p], lengths[p]).mean(axis=1) for p in parts]
    return np.concatenate(means) if means else np.empty(0)


def _parts(count: int) -> list[slice]:
    """Returns slices of some thousand faces: what is computed on the way need not be there for all of them at once."""
    return [slice(first, first + 4096) for first in range(0, count, 4096)]


def failure_rate(errors: np.ndarray, threshold: float) -> float:
    """Returns FR@threshold: the share of faces with NME > threshold; a face without a prediction (NaN) is a failure."""
    return float(np.mean(~(errors <= threshold)))


def auc(errors: np.ndarray, threshold: float) -> float:
    """Returns AUC@threshold: the exact area under the CED curve from 0 to threshold, divided by threshold.

    The CED is a step function, so its area is the mean of max(0, 1 - NME / threshold); no grid is involved, and a
    perfect prediction scores exactly 1. A face without a prediction (NaN) adds nothing.
    """
    return float(np.mean(np.maximum(0.0, 1.0 - np.where(np.isfinite(errors), errors, np.inf) / threshold)))


def ced(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns the share of faces with NME <= t for every t in thresholds, (T,)."""
    return np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)


def pose_errors(pose_pred_deg: np.ndarray, pose_gt_deg: np.ndarray) -> np.ndarray:
    """Returns the absolute angle differences (N, 3) in degrees, the short way round."""
    difference = np.asarray(pose_pred_deg, np.float64) - np.asarray(pose_gt_deg, np.float64)
    return np.abs((difference + 180.0) % 360.0 - 180.0)


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95) -> list[float | None]:
    """Returns the percentile bootstrap interval [low, high] of the mean of values (N,); [None, None] below two values.

    Every number here is a mean over faces (FR of indicators, AUC of clipped gains), so this one function serves all.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return [None, None]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.empty(BOOTSTRAP_SAMPLES)
    for start in range(0, BOOTSTRAP_SAMPLES, 100):  # in blocks: 1000 x N indices would need 8 kB a face
        picks = rng.integers(0, len(values), (min(100, BOOTSTRAP_SAMPLES - start), len(values)))
        means[start : start + len(picks)] = values[picks].mean(axis=1)
    tail = (1 - confidence) / 2
    return [float(v) for v in np.quantile(means, [tail, 1 - tail])]


class PairedDifference(NamedTuple):
    """How the errors of method A differ from those of B on the same faces; fractions, None where no face tells."""

    difference: float | None  # mean of A - B over the faces on which both have an error: below 0, A is better
    interval: list[float | None]  # [low, high] of it
    share_a_better: float | None  # of all faces
    share_b_better: float | None  # the rest are ties: errors within TIE of each other
    left_out: int  # faces without an error of A or B: not in the difference


def paired_bootstrap(errors_a: np.ndarray, errors_b: np.ndarray, confidence: float = 0.95) -> PairedDifference:
    """Compares two methods on the same faces, by the percentile bootstrap of the mean difference of their errors.

    Faces are drawn, each with both errors, so that what makes a face hard for both does not widen the interval. A face
    on which one method has no error (NaN, infinite: no prediction) cannot enter the difference and is counted in
    `left_out`; in the shares the other method is better on it. Without an error on either side it is a tie.

    Args:   errors_a, errors_b: (N,), the same faces in the same order.
    Raises: ValueError if their shapes differ.
    """
    errors_a, errors_b = (np.asarray(errors, np.float64) for errors in (errors_a, errors_b))
    if errors_a.ndim != 1 or errors_a.shape != errors_b.shape:
        raise ValueError(f"errors of shape {errors_a.shape} and {errors_b.shape}; expected (N,) of the same faces")
    known = np.isfinite(errors_a) & np.isfinite(errors_b)
    differences = errors_a[known] - errors_b[known]
    ranked_a, ranked_b = (np.where(np.isfinite(errors), errors, np.inf) for errors in (errors_a, errors_b))
    return PairedDifference(
        float(differences.mean()) if len(differences) else None,
        bootstrap_interval(differences, confidence),
        float(np.mean(ranked_a < ranked_b - TIE)) if len(known) else None,
        float(np.mean(ranked_b < ranked_a - TIE)) if len(known) else None,
        int(np.sum(~known)),
    )


def _summary(values: np.ndarray, scale: float) -> tuple[float | None, list[float | None]]:
    values = values[np.isfinite(values)]
    if not len(values):
        return None, [None, None]
    interval = bootstrap_interval(values)
    return float(values.mean() * scale), [None if v is None else v * scale for v in interval]


def summarise(
    errors: np.ndarray,
    errors_interpupil: np.ndarray | None,
    thresholds: tuple[float, ...],
    pose_error_deg: np.ndarray | None,
    pose_pnp_error_deg: np.ndarray | None,
) -> dict:
    """Returns the metrics of one method on one subset, as plain JSON values; what is not there is None, never NaN.

    Args:
        errors, errors_interpupil: NME fractions (N,). pose_error_deg, pose_pnp_error_deg: (N, 3), rows may be NaN.
    Returns: n, nme_pct, nme_interpupil_pct, fr_pct@T, auc_pct@T, pose_mae_deg, pose_pnp_mae_deg, and ci95 with an
        interval [low, high] under the same keys. Faces whose error is not finite count as failures in FR and AUC.
    """
    known = np.where(np.isfinite(errors), errors, np.inf)
    result: dict = {"n": len(errors)}
    intervals: dict = {}

    def add(key: str, values: np.ndarray | None, scale: float = 100.0) -> None:
        result[key], intervals[key] = _summary(np.empty(0) if values is None else values, scale)

    add("nme_pct", errors)
    add("nme_interpupil_pct", errors_interpupil)
    for threshold in thresholds:
        add(f"fr_pct@{threshold:.2f}", (known > threshold).astype(float))
        add(f"auc_pct@{threshold:.2f}", np.maximum(0.0, 1.0 - known / threshold))
    for key, table in (("pose_mae_deg", pose_error_deg), ("pose_pnp_mae_deg", pose_pnp_error_deg)):
        if table is None or not np.isfinite(table).any():
            result[key] = intervals[key] = None
            continue
        columns = [_summary(table[:, i], 1.0) for i in range(3)]
        result[key] = {angle: column[0] for angle, column in zip(ANGLES, columns)}
        intervals[key] = {angle: column[1] for angle, column in zip(ANGLES, columns)}
    result["ci95"] = intervals
    return result
