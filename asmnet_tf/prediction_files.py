"""Prediction files: any method's landmarks (and pose) as one `.npz`, scored like a model of ours (NumPy only).

names (N,) text; landmarks (N, L, 2) image pixels, 0-based; optionally pose (N, 3) yaw, pitch, roll in degrees;
optionally the truth, landmarks_gt (N, L, 2) and pose_gt (N, 3): then no dataset is needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asmnet_tf.config import DATASETS, DatasetSpec
from asmnet_tf.datasets import match_names
from asmnet_tf.files import InputError, read_arrays, replacing


@dataclass(frozen=True, eq=False)
class Predictions:
    """The content of one file; rows of a face the method gave nothing for are NaN."""

    path: Path
    names: list[str]
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    landmarks_gt: np.ndarray | None = None
    pose_gt: np.ndarray | None = None


def write_predictions(
    path: str | Path,
    names: list[str],
    landmarks: np.ndarray,
    pose: np.ndarray | None,
    landmarks_gt: np.ndarray | None = None,
    pose_gt: np.ndarray | None = None,
) -> None:
    """Writes a prediction file; arrays that are None are left out."""
    arrays = {"landmarks": landmarks, "pose": pose, "landmarks_gt": landmarks_gt, "pose_gt": pose_gt}
    with replacing(path) as temporary:
        np.savez_compressed(
            temporary, names=np.array(names, np.str_), **{k: v for k, v in arrays.items() if v is not None}
        )


def read_predictions(path: str | Path) -> Predictions:
    """Reads a prediction file. Raises: InputError naming the array that does not fit."""
    path = Path(path)
    try:
        content = read_arrays(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such prediction file.") from error
    arrays = {key: content[key] for key in ("names", "landmarks", "pose", "landmarks_gt", "pose_gt") if key in content}
    for key in ("names", "landmarks"):
        if key not in arrays:
            raise InputError(f"{path}: no array {key!r}. It holds names (N,) and landmarks (N, L, 2) in image pixels.")
    names = arrays.pop("names")
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise InputError(f"{path}: names is {names.dtype} {names.shape}, expected text (N,).")
    shape = arrays["landmarks"].shape
    if len(shape) != 3 or shape[0] != len(names) or shape[2] != 2:
        raise InputError(f"{path}: landmarks is {shape}, expected ({len(names)}, L, 2).")
    for key, array in arrays.items():
        expected = shape if key.startswith("landmarks") else (len(names), 3)
        if array.shape != expected or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} is {array.dtype} {array.shape}, expected numbers {expected}.")
        arrays[key] = array.astype(np.float64)
        if key.endswith("_gt") and not np.isfinite(arrays[key]).all():
            raise InputError(f"{path}: {key} holds values that are not finite.")
        # no pixel or angle is that large; such a value counts as no prediction instead of overflowing
        arrays[key][~(np.abs(arrays[key]) < 1e6)] = np.nan
    text = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names]
    return Predictions(path, text, **arrays)


def spec_for(predictions: Predictions) -> DatasetSpec:
    """Returns the spec that says what the points of a file with its own truth mean, by their number.

    Raises: InputError for a number of points no dataset here has.
    """
    return spec_with(predictions.landmarks.shape[1], predictions.path)


def spec_with(num_landmarks: int, path: Path) -> DatasetSpec:
    """Returns the spec whose faces have so many points; `path`: what has them, for the error. Raises: InputError."""
    for name in ("300w", "wflw", "cofw"):
        if DATASETS[name].num_landmarks == num_landmarks:
            return DATASETS[name]
    raise InputError(f"{path}: {num_landmarks} points per face; 29, 68 and 98 have a meaning here.")


def align(predictions: Predictions, names: list[str], num_landmarks: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns landmarks (N, L, 2) and pose (N, 3) or None, in the order of `names`.

    Raises: InputError if a name has no row or the number of points is another.
    """
    path, count = predictions.path, predictions.landmarks.shape[1]
    if count != num_landmarks:
        raise InputError(f"{path}: {count} points per face, {num_landmarks} expected. Is --dataset right?")
    doubled = [name for name, times in Counter(predictions.names).items() if times > 1]
    if doubled:
        raise InputError(f"{path}: the name {doubled[0]} is there more than once. Each face has one row.")
    rows = match_names(names, predictions.names)
    missing = [name for name, row in zip(names, rows) if row is None]
    if missing:
        raise InputError(
            f"{path}: no prediction for {missing[0]} ({len(missing)} of {len(names)} faces lack one). Choose --subset "
            "or --limit so that all are there."
        )
    return predictions.landmarks[rows], None if predictions.pose is None else predictions.pose[rows]
