"""Prediction files: any method's landmarks (and pose) as one `.npz`, scored like a model of ours (NumPy only).

names (N,) text; landmarks (N, L, 2) image pixels, 0-based, NaN for a face the method gave nothing for. Optionally:
pose (N, 3) yaw, pitch, roll in degrees; valid (N,), 0 or False: nothing was given for this face; image_size (N, 2), of
the image the pixels count in; the truth, landmarks_gt (N, L, 2) and pose_gt (N, 3): then no dataset is needed.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asmnet_tf.data.annotations import Sample, match_names
from asmnet_tf.evaluation.records import Faces, Method, file_names
from asmnet_tf.files import InputError, read_arrays, replacing

FRAME_PX = 1.0  # two truths that differ by more are not of the same image
IMAGE_SIZES = {"image_size", "image_sizes", "image_shape", "image_shapes", "img_size", "img_shape"}


@dataclass(frozen=True, eq=False)
class Predictions:
    """The content of one file; rows of a face the method gave nothing for are NaN."""

    path: Path
    names: list[str]
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    landmarks_gt: np.ndarray | None = None
    pose_gt: np.ndarray | None = None
    image_size: np.ndarray | None = None


def save_predictions(output: Path, methods: list[Method], faces: Faces) -> None:
    """Writes every method's landmarks and pose beside the truth as <name>.npz; arrays that are None are left out."""
    for method, stem in zip(methods, file_names([m.name for m in methods])):
        arrays = {"names": np.array(faces.names, np.str_), "landmarks": method.landmarks, "pose": method.pose}
        arrays |= {"landmarks_gt": faces.landmarks, "pose_gt": faces.pose}
        with replacing(output / f"{stem}.npz") as temporary:
            np.savez_compressed(temporary, **{key: array for key, array in arrays.items() if array is not None})


def read_predictions(path: str | Path) -> Predictions:
    """Reads a prediction file; says which arrays are not used. Raises: InputError naming what does not fit."""
    path = Path(path)
    try:
        content = read_arrays(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such prediction file.") from error
    for key in ("names", "landmarks"):
        if key not in content:
            raise InputError(f"{path}: no array {key!r}. It holds names (N,) and landmarks (N, L, 2) in image pixels.")
    names = content.pop("names")
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise InputError(f"{path}: names is {names.dtype} {names.shape}, expected text (N,).")
    shape = content["landmarks"].shape
    if len(shape) != 3 or shape[0] != len(names) or shape[2] != 2:
        raise InputError(f"{path}: landmarks is {shape}, expected ({len(names)}, L, 2).")
    arrays = {key: content.pop(key) for key in ("landmarks", "pose", "landmarks_gt", "pose_gt") if key in content}
    for key, array in arrays.items():
        expected = shape if key.startswith("landmarks") else (len(names), 3)
        if array.shape != expected or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: {key} is {array.dtype} {array.shape}, expected numbers {expected}.")
        arrays[key] = array = array.astype(np.float64)
        if "pose" in key and (np.abs(array) > 360).any():
            raise InputError(f"{path}: {key} holds {np.nanmax(np.abs(array)):g}, expected yaw, pitch, roll in degrees.")
        # no pixel is that large; such a value counts as no prediction instead of overflowing
        array[~(np.abs(array) < 1e6)] = np.nan
        if key == "landmarks_gt" and np.isnan(array).any():
            raise InputError(f"{path}: {key} holds values that are not finite.")
    valid = content.get("valid", np.empty(0)).reshape(-1)
    if valid.shape == (len(names),) and valid.dtype.kind in "bfiu" and np.isin(valid, (0, 1)).all():
        del content["valid"]
        lost = valid == 0
        for key in {"landmarks", "pose"} & arrays.keys():
            arrays[key][lost] = np.nan
        if lost.any():
            print(f"{path}: {lost.sum()} of {len(lost)} faces are not valid: no prediction", file=sys.stderr)
    for key in IMAGE_SIZES & content.keys():
        if (size := _image_size(content[key], len(names))) is not None:
            arrays["image_size"] = size
            del content[key]
    if content:
        ignored = ", ".join(f"{key!r} {array.shape}" for key, array in content.items())
        print(f"{path}: not used: {ignored}", file=sys.stderr)
    text = [n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names]
    return Predictions(path, text, **arrays)


def _image_size(given: np.ndarray, count: int) -> np.ndarray | None:
    """Returns the sizes of the images (N, 2), larger side first, from one array in any order; None if it is none."""
    if given.dtype.kind not in "fiu" or given.shape not in ((), (2,), (3,), (count, 2), (count, 3)):
        return None
    sides = given[..., :2] if given.ndim else np.repeat(given, 2)
    return np.broadcast_to(-np.sort(-sides.astype(np.float64)), (count, 2))


def align(predictions: Predictions, names: list[str], num_landmarks: int) -> Predictions:
    """Returns the rows of these names, in their order.

    Raises: InputError if a name has no row, the number of points is another, or all points of a face are in one place.
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
        lack = f"{len(missing)} of {len(names)} faces lack one; its own names are like {predictions.names[0]}"
        advice = "Choose --subset or --limit so that all are there, or give NaN for a face."
        raise InputError(f"{path}: no prediction for {missing[0]} ({lack}). {advice}")
    arrays = {key: array[rows] for key, array in vars(predictions).items() if isinstance(array, np.ndarray)}
    for key in ("landmarks", "landmarks_gt"):
        flat = np.flatnonzero(np.ptp(arrays[key], axis=1).min(axis=1) < 1) if key in arrays else ()
        if len(flat):
            hint = ", NaN for a face without a prediction" if key == "landmarks" else ""
            told = f"{names[flat[0]]} lie all in one point or line ({len(flat)} of {len(names)} faces)"
            raise InputError(f"{path}: {key} of {told}. Expected image pixels{hint}.")
    return Predictions(path, names, **arrays)


def check_frame(chosen: Predictions, faces: Faces, samples: list[Sample]) -> None:
    """Raises: InputError if predictions, in the order of the faces, are of other images than the truth.

    Their own truth must be where it is in `faces` to a pixel, and the size they give that of the sample's image.
    """
    foreign = "its coordinates belong to other images (the originals before cropping or scaling?) or count from 1"
    if chosen.landmarks_gt is not None:
        away = np.linalg.norm(chosen.landmarks_gt - faces.landmarks, axis=-1).max(axis=1)
        if away.max() > FRAME_PX:
            count = f"{(away > FRAME_PX).sum()} of {len(away)} faces"
            worst = f"{away.max():.1f} px for {chosen.names[away.argmax()]}"
            told = f"landmarks_gt of {count} differs from the true landmarks, by {worst}"
            raise InputError(f"{chosen.path}: {told}: {foreign}.")
    if chosen.image_size is not None:
        for sample, size in zip(samples, chosen.image_size):
            sides = sorted(sample.read_image().shape[:2], reverse=True)
            if np.abs(size - sides).max() > FRAME_PX:
                told = f"{size[0]:g} x {size[1]:g}, that of {sample.image_path} is {sides[0]} x {sides[1]}"
                raise InputError(f"{chosen.path}: image size of {sample.name} is {told}: {foreign}.")
