"""Readers of head-pose data: AFLW2000-3D and 300W-LP (Zhu et al. 2016), BIWI (Fanelli et al. 2013); NumPy, SciPy.

aflw2000  <data_dir>/**/NAME.jpg beside NAME.mat with Pose_Para, and pt3d_68 or pt2d
biwi      <data_dir>/NN/frame_XXXXX_rgb.png beside frame_XXXXX_pose.txt (rotation, place of the head in mm), NN/rgb.cal

Angles are those of the annotated rotation in the convention of pose.py. 300W-LP takes the same rotation apart in
another order, which differs where two angles are large, and puts the zero of pitch elsewhere, a constant: PnP on the
points of 16 AFLW2000-3D faces gives 3 degrees less (median). Faces with one of their angles beyond 99 degrees are left
out, as published tables do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from asmnet_tf.config import PHOTO_ENDINGS
from asmnet_tf.data.layouts import DatasetSpec, Source
from asmnet_tf.data.pose import angles_of_300w_lp, matrix_to_angles, mean_face
from asmnet_tf.data.readers import BadSamples, Sample, new_sample, progress
from asmnet_tf.files import InputError, first_line, read_text

MAX_ANGLE_DEG = 99.0
EYES_MM = 90.0  # between the outer eye corners, of the mean face that stands for BIWI's heads


def _read_aflw2000(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    beyond = 0
    for path in progress(_files(data_dir / source.path, "*.mat")[:limit], spec.title):
        name = path.relative_to(data_dir).with_suffix("").as_posix()
        with bad.catch(name):
            points, angles = _read_mat(path)
            image = next((p for end in PHOTO_ENDINGS if (p := path.with_suffix(end)).is_file()), None)
            if image is None:
                raise InputError(f"{path}: no image beside it. Is the download whole?")
            if np.abs(angles).max() > np.radians(MAX_ANGLE_DEG):
                beyond += 1
                continue
            sample = new_sample(name, image, points, {source.name})
            yield replace(sample, pose=angles_of_300w_lp(angles).astype(np.float32))
    if beyond:
        told = f"{beyond} faces with an angle beyond {MAX_ANGLE_DEG:g} degrees, left out"
        print(f"{data_dir / source.path}: {told}", file=sys.stderr)


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns landmarks (68, 2), 0-based, and pitch, yaw, roll in radians as the file has them."""
    from scipy.io import loadmat  # only this dataset needs it

    try:
        content = loadmat(path, variable_names=("Pose_Para", "pt3d_68", "pt2d"))
        points = np.asarray(content["pt3d_68"] if "pt3d_68" in content else content["pt2d"], np.float64)[:2].T
        angles = np.asarray(content["Pose_Para"], np.float64).reshape(-1)[:3]
    except Exception as error:  # SciPy raises whatever comes for a damaged file
        raise InputError(f"{path}: no whole file of AFLW2000-3D or 300W-LP ({first_line(error)}).") from error
    if points.shape != (68, 2) or angles.shape != (3,) or not (np.abs([*points.flat, *angles]) < 1e6).all():
        raise InputError(f"{path}: {points.shape[0]} points and {angles.size} angles, expected 68 and 3 finite ones.")
    return points - 1.0, angles  # MATLAB counts from 1


def _read_biwi(spec: DatasetSpec, data_dir: Path, source: Source, limit: int, bad: BadSamples) -> Iterator[Sample]:
    """Landmarks are the mean face put where the head is annotated: enough for a crop, not for an NME."""
    cameras = {}
    for path in progress(_files(data_dir / source.path, "frame_*_pose.txt")[:limit], spec.title):
        name = path.relative_to(data_dir).as_posix().removesuffix("_pose.txt")
        with bad.catch(name):
            image = path.with_name(path.name.replace("_pose.txt", "_rgb.png"))
            if path.parent not in cameras:
                cameras[path.parent] = _numbers(path.parent / "rgb.cal", 25)
            camera, pose = cameras[path.parent], _numbers(path, 12)
            rotation, place = pose[:9].reshape(3, 3), pose[9:12]
            if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.05:
                raise InputError(f"{path}: its first nine numbers are no rotation. Is it a file of BIWI?")
            turn, shift = camera[13:22].reshape(3, 3), camera[22:25]  # behind them the size of the image
            face = (mean_face() * EYES_MM) @ rotation.T + place
            seen = (face @ turn.T + shift) @ camera[:9].reshape(3, 3).T
            if (seen[:, 2] <= 0).any():
                raise InputError(f"{path}: the head is behind the camera. Is {path.parent / 'rgb.cal'} its own?")
            sample = new_sample(name, image, seen[:, :2] / seen[:, 2:], {source.name})
            yield replace(sample, pose=matrix_to_angles(turn @ rotation).astype(np.float32))
    told = "landmarks are the mean face put at the place of the head, for the crop; only pose is measured"
    print(f"{spec.title}: {told}", file=sys.stderr)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.rglob(pattern)) if not path.name.startswith(".")]


def _numbers(path: Path, count: int) -> np.ndarray:
    try:
        numbers = np.array(read_text(path).split(), np.float64)
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: {first_line(error)}.") from error
    if len(numbers) < count or not np.isfinite(numbers).all():
        raise InputError(f"{path}: {len(numbers)} numbers, {count} expected. Is it a file of BIWI?")
    return numbers


POSE_READERS = {"aflw2000": _read_aflw2000, "biwi": _read_biwi}
