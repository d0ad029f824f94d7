"""The Active Shape Model: eigen-shapes of a dataset, and the ASM operator that smooths a shape with them (section 3.1).

A shape s is a flat vector (2L,) x0, y0, x1, ... in network units, (p - centre) / size of one kind of crop, unaligned
(no Procrustes), as in the paper. A PCA of the training shapes gives their mean and K eigen-shapes V with variances
lambda; the shape parameters of a shape are b = V^T (s - mean). NumPy; scikit-learn for `ShapeModel.fit` alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from asmnet_tf.config import CLIP_STD, CROPS
from asmnet_tf.data.sidecars import find_shape_model
from asmnet_tf.files import InputError, read_arrays, replacing

UNITS = ("network", "release", "pixels224")  # of a shape; the others are those of the release's files
CHUNK = 4096  # shapes at a time, where not all of them fit in memory; more than 2L
MAX_VALUE = 1e6  # of any array of a shape model: beyond pixels, and its products stay finite
_ARRAYS = ("mean_shape", "eigenvectors", "eigenvalues")
_FIELDS = {"dataset": str, "n_samples": int, "pca_percent": float, "crop": str, "crop_scale": float, "units": str}


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Eigen-shapes of a dataset in one crop frame.

    mean_shape: (2L,). eigenvectors: (2L, K), orthonormal columns, largest eigenvalue first. eigenvalues: (K,),
    variances with n - 1 in the denominator. All float64. n_samples: 0 where it is not known. units: one of `UNITS`.
    """

    mean_shape: np.ndarray
    eigenvectors: np.ndarray
    eigenvalues: np.ndarray
    dataset: str
    n_samples: int
    pca_percent: float
    crop: str
    crop_scale: float
    units: str = "network"

    @property
    def num_landmarks(self) -> int:
        """L."""
        return len(self.mean_shape) // 2

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.eigenvalues)

    @classmethod
    def fit(cls, shapes: np.ndarray, dataset: str, crop: str, crop_scale: float) -> Self:
        """Returns all eigen-shapes of training shapes; `keep` makes a model of the first ones.

        scikit-learn makes the largest entry of each eigenvector positive, so that two fits agree in sign.

        Args:    shapes: float (N, 2L), network units, finite. A memory map is read a chunk at a time, several times as
                     slowly: `IncrementalPCA`, whose result with all components is the same to rounding.
        Returns: K = min(2L, N - 1) components, pca_percent 100. Raises: InputError for fewer than two shapes.
        """
        from sklearn.decomposition import PCA, IncrementalPCA  # a second, which only a fit has to wait for

        count = len(shapes)
        if count < 2:
            raise InputError(f"{dataset}: {count} shapes; an eigen-shape needs two. Use more samples.")
        if isinstance(shapes, np.memmap):
            pca = IncrementalPCA()
            for rows in chunks(count, "eigen-shapes"):
                pca.partial_fit(np.asarray(shapes[rows], np.float64))
        else:  # float64: products of float32 lose four digits over a million shapes
            pca = PCA(svd_solver="covariance_eigh").fit(np.asarray(shapes, np.float64))
        vectors, values = pca.components_[: count - 1].T, pca.explained_variance_[: count - 1]
        return cls(pca.mean_, vectors, values, dataset, count, 100.0, crop, crop_scale)

    def keep(self, pca_percent: float) -> Self:
        """Returns the model of the fewest eigen-shapes that keep more than `pca_percent` of the variance.

        Raises: InputError unless 0 < pca_percent <= 100.
        """
        if not 0.0 < pca_percent <= 100.0:
            raise InputError(f"--pca-percent {pca_percent:g}: give a percentage above 0 and up to 100 (release: 90).")
        variance = np.cumsum(self.eigenvalues)
        k = min(np.searchsorted(variance / variance[-1], pca_percent / 100, side="right") + 1, self.num_components)
        vectors, values = self.eigenvectors[:, :k], self.eigenvalues[:k]
        return replace(self, eigenvectors=vectors, eigenvalues=values, pca_percent=pca_percent)

    def project(self, shapes: np.ndarray) -> np.ndarray:
        """Returns shape parameters b = V^T (s - mean): (..., K) from (..., 2L). Raises: ValueError for another L."""
        shapes = np.asarray(shapes, np.float64)
        if shapes.shape[-1] != len(self.mean_shape):
            raise ValueError(f"shapes of {shapes.shape[-1]} numbers; this model has {len(self.mean_shape)}")
        return (shapes - self.mean_shape) @ self.eigenvectors

    def instance(self, parameters: np.ndarray) -> np.ndarray:
        """Returns the shapes mean + V b: (..., 2L) from (..., K)."""
        return self.mean_shape + np.asarray(parameters) @ self.eigenvectors.T

    def smooth(self, shapes: np.ndarray) -> np.ndarray:
        """Smooths shapes (..., 2L), in the model's units, with the ASM operator (paper section 3.1).

            b = clip(V^T (s - mean), -3 sqrt(lambda), 3 sqrt(lambda));  ASM(s) = mean + V b

        Raises: ValueError for another L.
        Differs from the release: batched; the release loops over samples and reloads its files at every step.
        """
        limit = CLIP_STD * np.sqrt(self.eigenvalues)
        return self.instance(np.clip(self.project(shapes), -limit, limit))

    def save(self, path: str | Path) -> None:
        """Writes one `.npz` without pickled objects; an existing file is replaced when the new one is complete."""
        with replacing(path) as temporary:
            np.savez(temporary, **vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote, a file or a shipped name like 300w_pca97 (`model_zoo`).

        Raises: InputError for an absent, foreign or damaged file.
        """
        path = find_shape_model(path)
        try:
            content = read_arrays(path)
            arrays = (np.asarray(content[name], np.float64) for name in _ARRAYS)
            model = cls(*arrays, **{name: kind(content[name]) for name, kind in _FIELDS.items()})
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such shape model. Make it with pca_builder.py.") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:  # InputError is a ValueError
            reason = str(error).removeprefix(f"{path}: ")[:100]
            raise InputError(f"{path}: not a shape model ({reason}). Make it with pca_builder.py.") from error
        size, count = model.eigenvectors.shape if model.eigenvectors.ndim == 2 else (0, 0)
        fits = model.mean_shape.shape == (size,) and model.eigenvalues.shape == (count,) and size and size % 2 == 0
        finite = all((np.abs(getattr(model, name)) <= MAX_VALUE).all() for name in _ARRAYS)  # NaN is not
        if not fits or not finite or (model.eigenvalues < 0).any():
            raise InputError(f"{path}: its arrays do not fit together. Make it again with pca_builder.py.")
        if model.crop not in CROPS or not 0.1 < model.crop_scale < 10 or model.units not in UNITS:
            frame = f"crop {model.crop[:20]!r} of scale {model.crop_scale:g}, units {model.units[:20]!r}"
            raise InputError(f"{path}: {frame}: unknown. Make it again with pca_builder.py.")
        return model


def chunks(count: int, title: str, size: int | None = None) -> Iterator[slice]:
    """Returns slices of `size` rows, by default `CHUNK`, out of so many, with a progress bar."""
    size = size or CHUNK
    starts = tqdm(range(0, count, size), title, unit_scale=size, unit="face", disable=None, leave=False)
    return (slice(first, first + size) for first in starts)
