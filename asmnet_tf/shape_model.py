"""The Active Shape Model: PCA of training shapes and the ASM operator (NumPy only; it knows no images).

A shape is a flat vector (2L,) x0, y0, x1, ... in network units of one kind of crop, unaligned (no Procrustes), as in
the paper (section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asmnet_tf.config import CLIP_STD, DatasetSpec, crop_scale
from asmnet_tf.files import InputError, read_arrays, replacing

NETWORK_UNITS = "network"  # (p - centre) / size of the crop frame
_ARRAYS = ("mean_shape", "eigenvectors", "eigenvalues")
_FIELDS = ("dataset", "n_samples", "pca_percent", "crop", "crop_scale", "units")


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Eigen-shapes of a dataset in one crop frame.

    mean_shape: (2L,). eigenvectors: (2L, K), orthonormal columns, largest eigenvalue first. eigenvalues: (K,),
    variances with n - 1 in the denominator. All float64.
    """

    mean_shape: np.ndarray
    eigenvectors: np.ndarray
    eigenvalues: np.ndarray
    dataset: str
    n_samples: int
    pca_percent: float
    crop: str
    crop_scale: float
    units: str = NETWORK_UNITS

    @property
    def num_landmarks(self) -> int:
        """L."""
        return len(self.mean_shape) // 2

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.eigenvalues)

    def project(self, shapes: np.ndarray) -> np.ndarray:
        """Returns shape parameters b = V^T (s - mean): (..., K) from (..., 2L). Raises: ValueError for another L."""
        shapes = np.asarray(shapes, np.float64)
        if shapes.shape[-1] != len(self.mean_shape):
            raise ValueError(f"shapes of {shapes.shape[-1]} numbers; this model has {len(self.mean_shape)}")
        return (shapes - self.mean_shape) @ self.eigenvectors

    def clip(self, parameters: np.ndarray) -> np.ndarray:
        """Limits shape parameters (..., K) to +-3 sqrt(eigenvalue)."""
        limit = CLIP_STD * np.sqrt(self.eigenvalues)
        return np.clip(parameters, -limit, limit)

    def instance(self, parameters: np.ndarray) -> np.ndarray:
        """Returns the shapes mean + V b: (..., 2L) from (..., K)."""
        return self.mean_shape + np.asarray(parameters) @ self.eigenvectors.T

    def smooth(self, shapes: np.ndarray) -> np.ndarray:
        """Smooths shapes with the ASM operator (paper section 3.1).

            b = clip(V^T (s - mean), -3 sqrt(lambda), 3 sqrt(lambda));  A = mean + V b

        Args:    shapes: float (..., 2L), in the model's units.
        Returns: float64 (..., 2L), same units.
        Raises:  ValueError if 2L is not the model's.
        Differs from the release: batched; the release loops over samples and reloads its files at every step.
        """
        return self.instance(self.clip(self.project(shapes)))

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` without pickled objects; an existing file is replaced when the new one is complete."""
        content = {name: getattr(self, name) for name in (*_ARRAYS, *_FIELDS)}
        with replacing(path) as temporary:
            np.savez(temporary, **content)

    @classmethod
    def load(cls, path: str | Path) -> ShapeModel:
        """Reads what `save` wrote. Raises: InputError for an absent, foreign or damaged file."""
        path = Path(path)
        try:
            content = read_arrays(path)
            model = cls(
                *(np.asarray(content[name], np.float64) for name in _ARRAYS),
                dataset=str(content["dataset"]),
                n_samples=int(content["n_samples"]),
                pca_percent=float(content["pca_percent"]),
                crop=str(content["crop"]),
                crop_scale=float(content["crop_scale"]),
                units=str(content["units"]),
            )
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such shape model. Make it with pca_builder.py.") from error
        except (ValueError, KeyError, TypeError) as error:  # InputError is a ValueError
            raise InputError(f"{path}: not a shape model ({str(error)[:80]}). Make it with pca_builder.py.") from error
        size, count = model.eigenvectors.shape if model.eigenvectors.ndim == 2 else (-1, -1)
        fits = model.mean_shape.shape == (size,) and model.eigenvalues.shape == (count,) and size % 2 == 0
        if not fits or not all(np.isfinite(getattr(model, name)).all() for name in _ARRAYS):
            raise InputError(f"{path}: its arrays do not fit together. Make it again with pca_builder.py.")
        return model


class ShapeStatistics:
    """Mean and covariance of shapes that arrive in chunks: memory for one chunk and a (2L, 2L) matrix.

    Chunks are merged by Chan's update, so the result does not lose digits where the mean is large against the spread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    def add(self, shapes: np.ndarray) -> None:
        """Adds shapes (n, 2L)."""
        shapes = np.asarray(shapes, np.float64)
        if not len(shapes):
            return
        if not self.count:
            self.mean = np.zeros(shapes.shape[1])
            self.scatter = np.zeros((shapes.shape[1],) * 2)
        mean = shapes.mean(axis=0)
        centred = shapes - mean
        total = self.count + len(shapes)
        shift = mean - self.mean
        self.scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(shapes) / total)
        self.mean = self.mean + shift * (len(shapes) / total)
        self.count = total

    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns eigenvalues (K,), eigenvectors (2L, K) of the covariance (n - 1), largest first, K = min(2L, n - 1).

        The largest entry of each eigenvector is positive, so that two fits of the same data agree in sign.

        Raises: ValueError below two shapes.
        """
        if self.count < 2:
            raise ValueError(f"{self.count} shapes; an eigen-shape needs two")
        values, vectors = np.linalg.eigh(self.scatter / (self.count - 1))
        keep = min(len(values), self.count - 1)
        values, vectors = np.maximum(values[::-1][:keep], 0.0), vectors[:, ::-1][:, :keep]
        peak = np.abs(vectors).argmax(axis=0)
        return values, vectors * np.sign(vectors[peak, np.arange(keep)])


def collect(chunks: Iterable[np.ndarray]) -> ShapeStatistics:
    """Returns the statistics of all shapes in an iterable of (n_i, 2L) chunks."""
    statistics = ShapeStatistics()
    for chunk in chunks:
        statistics.add(chunk)
    return statistics


def check_percents(pca_percents: Iterable[float]) -> None:
    """Raises: InputError unless 0 < percentage <= 100 for each."""
    for percent in pca_percents:
        if not 0.0 < percent <= 100.0:
            raise InputError(f"--pca-percent {percent:g}: give a percentage above 0 and up to 100 (release: 90).")


def components_for(eigenvalues: np.ndarray, pca_percent: float) -> int:
    """Returns K, the fewest components that keep more than `pca_percent` of the variance (scikit-learn's rule)."""
    if pca_percent == 100.0:
        return len(eigenvalues)
    share = np.cumsum(eigenvalues) / eigenvalues.sum()
    return int(min(np.searchsorted(share, pca_percent / 100, side="right") + 1, len(eigenvalues)))


def fit(
    statistics: ShapeStatistics, pca_percents: Iterable[float], dataset: str, crop: str, crop_scale: float
) -> list[ShapeModel]:
    """Returns one shape model for each percentage of variance; equal to scikit-learn's PCA up to sign.

    Raises: InputError for a percentage outside (0, 100] or fewer than two shapes.
    """
    try:
        values, vectors = statistics.eigen()
    except ValueError as error:
        raise InputError(f"{dataset}: {error}. Use more samples.") from error
    pca_percents = list(pca_percents)
    check_percents(pca_percents)
    models = []
    for percent in pca_percents:
        k = components_for(values, percent)
        models.append(
            ShapeModel(
                statistics.mean, vectors[:, :k], values[:k], dataset, statistics.count, percent, crop, crop_scale
            )
        )
    return models


def load_for(path: str | Path, spec: DatasetSpec, crop: str) -> ShapeModel:
    """Loads the shape model of a dataset and crop. Raises: InputError if it is another's: its shapes would not fit."""
    model = ShapeModel.load(path)
    again = f"pca_builder.py --dataset {spec.name} --crop {crop}"
    if model.dataset != spec.name:
        raise InputError(f"{path}: eigen-shapes of {model.dataset}, not of {spec.name}. Make them with {again}.")
    if model.num_landmarks != spec.num_landmarks or model.units != NETWORK_UNITS:
        raise InputError(f"{path}: {model.num_landmarks} landmarks in {model.units} units. Make it anew with {again}.")
    if (model.crop, model.crop_scale) != (crop, crop_scale(crop)):
        raise InputError(
            f"{path}: fitted in {model.crop} crops of scale {model.crop_scale:g}, this run uses {crop}. Make it with "
            f"{again} --output shape_models_{crop}."
        )
    return model
