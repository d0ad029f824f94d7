"""Where eigen-shapes come from: a dataset's samples or one large array file, a chunk at a time (NumPy only)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asmnet_tf import geometry, metrics
from asmnet_tf.config import DatasetSpec
from asmnet_tf.datasets import Sample
from asmnet_tf.files import InputError, read_array
from asmnet_tf.shape_model import NETWORK_UNITS, ShapeModel, ShapeStatistics, collect, in_threads, units_of

CHUNK = 4096  # rows; of 68 points float32 it is 2 MB, which stays in a core's cache
_WHAT = "--shapes takes float (N, 2L), x0, y0, x1, ... in network units, (p - centre) / size of the crop."


class SampleShapes:
    """The shapes of samples, in the crop frames of their landmark boxes.

    Args: crop: which crop frame, of its own scale (`config.crop_scale`).
    """

    def __init__(self, samples: list[Sample], spec: DatasetSpec, crop: str) -> None:
        self.spec = spec
        self._samples, self._crop = samples, crop

    def _chunks(self, title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields landmarks (n, L, 2), image pixels, and crop frames (n, 4)."""
        for first in _starts(len(self._samples), title):
            chunk = self._samples[first : first + CHUNK]
            landmarks = np.stack([sample.landmarks for sample in chunk]).astype(np.float64)
            yield landmarks, geometry.crop_frame(geometry.landmark_box(landmarks), self._crop)

    def statistics(self) -> ShapeStatistics:
        """Returns mean and covariance of the shapes, network units."""
        return collect(geometry.normalise(*chunk) for chunk in self._chunks("shapes"))

    def smoothing(self, model: ShapeModel) -> np.ndarray:
        """Returns how far ASM(s) lies from each shape: NME (N,), a fraction of the inter-ocular distance in pixels."""

        def distance(chunk: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            landmarks, frames = chunk
            smoothed = geometry.denormalise(model.smooth(geometry.normalise(landmarks, frames)), frames)
            return metrics.nme(smoothed, landmarks, metrics.normaliser(landmarks, self.spec))

        return np.concatenate(list(in_threads(distance, self._chunks(f"ASM {model.pca_percent:g} %"))))


class FileShapes:
    """The shapes of a `.npy` file, read through a memory map: never more than a few chunks of it are in memory.

    Args:   path: float32 or float64 (N, 2L), network units. limit: the first so many rows only.
    Raises: InputError for a file that is not such an array.
    """

    def __init__(self, path: str | Path, spec: DatasetSpec, limit: int | None = None) -> None:
        self.spec = spec
        self._path = Path(path)
        try:
            array = read_array(path, mapped=True)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file. {_WHAT}") from error
        width = 2 * spec.num_landmarks
        if array.ndim != 2 or array.shape[1] != width:
            raise InputError(f"{path}: shape {array.shape}, {spec.title} has (N, {width}). Is --dataset right? {_WHAT}")
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
            raise InputError(f"{path}: numbers are {array.dtype}, expected float32 or float64. {_WHAT}")
        self._array = array[:limit]

    def _chunks(self, title: str) -> Iterator[np.ndarray]:
        for first in _starts(len(self._array), title):
            yield np.asarray(self._array[first : first + CHUNK])

    def statistics(self) -> ShapeStatistics:
        """Returns mean and covariance of the shapes. Raises: InputError for values that are no network units."""
        try:
            statistics = collect(self._chunks("shapes"))
        except ValueError:
            for first, chunk in zip(_starts(len(self._array)), self._chunks("looking for the row")):
                rows = np.flatnonzero(~np.isfinite(chunk).all(axis=1))
                if len(rows):
                    raise InputError(
                        f"{self._path}, row {first + rows[0]}: a value is not finite. Remove the row."
                    ) from None
            raise
        if statistics.count and units_of(statistics.mean) != NETWORK_UNITS:
            raise InputError(
                f"{self._path}: the mean's first point is ({statistics.mean[0]:.4g}, {statistics.mean[1]:.4g}), so "
                f"these are pixels or of the other sign. {_WHAT}"
            )
        return statistics

    def smoothing(self, model: ShapeModel) -> np.ndarray:
        """Returns how far ASM(s) lies from each shape: NME (N,), a fraction of the inter-ocular distance in the crop.

        In square crops this is the distance in pixels; a tight crop has another scale for x than for y.
        """

        def distance(shapes: np.ndarray) -> np.ndarray:
            smoothed, points = (flat.reshape(len(shapes), -1, 2) for flat in (model.smooth(shapes), shapes))
            return metrics.nme(smoothed, points, metrics.normaliser(points, self.spec))

        return np.concatenate(list(in_threads(distance, self._chunks(f"ASM {model.pca_percent:g} %"))))


def _starts(count: int, title: str | None = None) -> Iterator[int]:
    """Returns the first row of every chunk, with a progress bar."""
    starts = range(0, count, CHUNK)
    if title is None:
        return iter(starts)
    return iter(tqdm(starts, title, unit_scale=CHUNK, unit="face", disable=None, leave=False))
