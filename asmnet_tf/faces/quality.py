"""How far a face is to be trusted: the probability that its NME is below 8 %, judged without its truth (NumPy, OpenCV).

A logistic regression on four numbers that cost little, with the coefficients in the model's side-car. They were fitted
by tests/benchmarks/quality.py to that model's errors on faces it had not learned from, as they are and distorted, so
they are of no other model: one whose side-car has none gets no quality.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from asmnet_tf.data.geometry import landmark_box
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.pose import estimate_pose, signed
from asmnet_tf.data.sidecars import sidecar_path
from asmnet_tf.faces.detector import overlaps
from asmnet_tf.files import refusing
from asmnet_tf.shape.shape_model import ShapeModel

GOOD_NME = 0.08  # inter-ocular
FEATURES = ("pose", "shape", "place", "detail")  # in the order of the coefficients, see `Judge.features`


@dataclass(frozen=True, eq=False)
class Judge:
    """The calibration of one model. coefficients: (4,), of `FEATURES`. max_yaw: degrees; more gets quality 0."""

    shapes: ShapeModel
    spec: DatasetSpec
    crop_scale: float
    coefficients: np.ndarray
    intercept: float
    max_yaw: float

    @classmethod
    def of(cls, path: Path, sidecar: dict, spec: DatasetSpec) -> Self | None:
        """Returns what the side-car of the model at `path` holds under `quality`; None where it holds nothing, or
        where the points are not those of the shape model or have no head pose. Raises: InputError for a bad one.
        """
        stored = sidecar.get("quality")
        if stored is None or not spec.has_pose or sidecar.get("crop") != "square":
            return None
        broken, then = (LookupError, TypeError, ValueError), "Remove it, or fit it again."
        with refusing(f"{sidecar_path(path)}: quality cannot be used", broken, then):
            numbers = np.array([*(stored["coefficients"][name] for name in FEATURES), stored["intercept"]], np.float64)
            max_yaw, scale, name = float(stored["max_yaw"]), float(sidecar["crop_scale"]), str(stored["shape_model"])
            if not np.isfinite([*numbers, max_yaw]).all():
                raise ValueError("a number is not finite")
        shapes = ShapeModel.load(name)
        if shapes.num_landmarks != spec.num_landmarks:
            return None
        return cls(shapes, spec, scale, numbers[:-1], float(numbers[-1]), max_yaw)

    def __call__(self, crops: np.ndarray, landmarks_norm: np.ndarray, angles: np.ndarray) -> np.ndarray:
        """Returns the quality in [0, 1] of faces, float64 (N,); NaN where the landmarks have no pose by PnP.

        Args: crops: RGB uint8 (N, S, S, 3). landmarks_norm: (N, 2L), what the network finds there, network units.
              angles: (N, 3), its yaw, pitch, roll in the crop, degrees.
        """
        features, yaw = self.features(crops, landmarks_norm, angles)
        with np.errstate(over="ignore"):
            quality = 1 / (1 + np.exp(-(features @ self.coefficients + self.intercept)))
        return np.where(yaw > self.max_yaw, 0.0, quality)

    def features(self, crops: np.ndarray, landmarks_norm: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the four numbers of each face, float64 (N, 4), and its yaw's size (N,), degrees, by PnP.

        pose: log of how far the network's angles are from PnP on its landmarks, degrees, mean of the three.
        shape: log of how many standard deviations the shape parameters are out, once the landmarks have the place,
        size and in-plane turn of the mean shape. place: IoU of the landmarks' box and the box looked at. detail: log of
        the spread of the crop's Laplacian, which blur, darkness and few pixels take away.
        """
        points = landmarks_norm.reshape(len(landmarks_norm), -1, 2)
        by_pnp = estimate_pose(points, self.spec, refine=False)
        pose = np.log(np.abs(signed(angles - by_pnp)).mean(axis=1) + 0.5)
        place = overlaps(landmark_box(points) * self.crop_scale, [[-0.5, -0.5, 0.5, 0.5]])[:, 0]
        theirs, mean = (p[..., 0] + 1j * p[..., 1] for p in (points, self.shapes.mean_shape.reshape(-1, 2)))
        theirs = theirs - theirs.mean(axis=1, keepdims=True)
        extent = np.maximum((np.abs(theirs) ** 2).sum(axis=1), 1e-12)
        aligned = theirs * (theirs.conj() @ (mean - mean.mean()) / extent)[:, None] + mean.mean()
        b = self.shapes.project(np.stack([aligned.real, aligned.imag], axis=-1).reshape(len(points), -1))
        shape = np.log(np.sqrt((b**2 / self.shapes.eigenvalues).mean(axis=1)) + 0.3)
        grey = (cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in crops)
        detail = np.log1p([cv2.meanStdDev(cv2.Laplacian(pixels, cv2.CV_16S))[1][0, 0] for pixels in grey])
        return np.column_stack([pose, shape, place, detail]), np.abs(by_pnp[:, 0])
