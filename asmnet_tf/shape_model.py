"""The Active Shape Model: PCA of training shapes and the ASM operator (NumPy only; it knows no images).

A shape is a flat vector (2L,) x0, y0, x1, ... in network units of one kind of crop, unaligned (no Procrustes), as in
the paper (section 3.1). The PCA files of the authors' release hold shapes in other units (`UNITS`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from asmnet_tf.config import CLIP_STD, CROPS, PCA_PERCENT, DatasetSpec, crop_scale
from asmnet_tf.files import InputError, read_array, read_arrays, replacing
from asmnet_tf.model_zoo import SHAPE_MODELS, find_shape_model

NETWORK_UNITS = "network"  # (p - centre) / size of the crop frame
RELEASE_UNITS = "release"  # (centre - p) / size: the release's networks and its files `ibug_*`
PIXEL_UNITS = "pixels224"  # 0..224 from the left and upper edges of the crop: its files `wflw_*`
# Centre c and factor f of each: network = (shape - c) f. The release counts crop coordinates from the edge of the box,
# so the centre is 112; design.md's (224 - 1) / 2 = 111.5 belongs to pixel indices, which are 0.5 less. Both put the
# edges of the box at +-0.5.
UNITS = {NETWORK_UNITS: (0.0, 1.0), RELEASE_UNITS: (0.0, -1.0), PIXEL_UNITS: (112.0, 1 / 224)}
ORIGINAL_NAMES = {"300w": ("ibug", "300W", "300w"), "wflw": ("wflw", "WFLW")}  # first: what save_original writes
_MAX_VALUE = 1e6  # of any array of a shape model: beyond pixels, and its products stay finite
_MAX_THREADS = 8  # memory, not arithmetic, is the bound beyond
_ARRAYS = ("mean_shape", "eigenvectors", "eigenvalues")
_FIELDS = ("dataset", "n_samples", "pca_percent", "crop", "crop_scale", "units")


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
        """Reads what `save` wrote, a file or a shipped name like 300w_pca97 (`model_zoo`).

        Raises: InputError for an absent, foreign or damaged file.
        """
        path = find_shape_model(path)
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
            reason = str(error).removeprefix(f"{path}: ")[:100]
            raise InputError(f"{path}: not a shape model ({reason}). Make it with pca_builder.py.") from error
        size, count = model.eigenvectors.shape if model.eigenvectors.ndim == 2 else (0, 0)
        fits = model.mean_shape.shape == (size,) and model.eigenvalues.shape == (count,) and size and size % 2 == 0
        if not fits or not all(_is_usable(getattr(model, name)) for name in _ARRAYS) or (model.eigenvalues < 0).any():
            raise InputError(f"{path}: its arrays do not fit together. Make it again with pca_builder.py.")
        if model.crop not in CROPS or not 0.1 < model.crop_scale < 10 or model.units not in UNITS:
            raise InputError(
                f"{path}: crop {model.crop[:20]!r} of scale {model.crop_scale:g}, units {model.units[:20]!r}: unknown. "
                "Make it again with pca_builder.py."
            )
        return model

    # --- the release's files and units --------------------------------------------------------------------------------

    def to_units(self, units: str) -> ShapeModel:
        """Returns the same shape model for shapes in other units; smoothing and converting can change places.

            network = (shape - c) f:   mean' = (mean - c) f,   V' = sign(f) V,   lambda' = f^2 lambda

        Raises: InputError for units that are not in `UNITS`.
        """
        for name in (self.units, units):
            if name not in UNITS:
                raise InputError(f"units {name!r} of a shape model: expected one of {', '.join(UNITS)}.")
        if units == self.units:
            return self
        (centre, factor), (new_centre, new_factor) = UNITS[self.units], UNITS[units]
        ratio = factor / new_factor
        return replace(
            self,
            mean_shape=(self.mean_shape - centre) * ratio + new_centre,
            eigenvectors=self.eigenvectors * np.sign(ratio),
            eigenvalues=self.eigenvalues * ratio**2,
            units=units,
        )

    def to_network_units(self) -> ShapeModel:
        """Returns the same shape model in our network units, (p - centre) / size; see `to_units`."""
        return self.to_units(NETWORK_UNITS)

    @classmethod
    def load_original(
        cls,
        folder: str | Path,
        dataset: str,
        percent: float = PCA_PERCENT,
        mean: np.ndarray | None = None,
        units: str | None = None,
    ) -> ShapeModel:
        """Reads the release's three files, `<dataset>_{eigenvalues,eigenvectors,meanvector}_<percent>.npy`.

        The model keeps the files' own numbers and units. The mean tells the units: beyond +-2 it is in pixels of the
        224-px crop; otherwise the release's where point 0, the jaw's end on the left of the image, has a positive x,
        and ours, which the authors' earlier repository has too, where it has a negative one.

        Args:
            folder: the files' folder; the ending `.npy` may be missing.
            dataset: 300w (files `ibug_*` or `300W_*`) or wflw, or the very name the files begin with.
            percent: share of the variance in the files' names. Each has eigenvectors of its own.
            mean: (2L,), in the files' units, instead of the mean file; some percentages come without.
            units: one of `UNITS`, where the mean would tell the wrong ones.
        Returns: float64, crop "tight" of scale 1, n_samples 0 (the files do not say).
        Raises:  InputError that names a file which is absent, damaged, pickled, or of another shape.
        Differs from the release: `np.save` of the release adds `.npy` and its loader omits it, so it finds no files.
        """
        folder = Path(folder)
        if units is not None and units not in UNITS:
            raise InputError(f"units {units!r} of {folder}: expected one of {', '.join(UNITS)}.")
        key, names = _names_of(dataset)
        prefix = next((n for n in names if _original_file(folder, n, "eigenvectors", percent).is_file()), names[0])
        paths = {part: _original_file(folder, prefix, part, percent) for part in _ORIGINAL_PARTS}
        arrays = {}
        for part, path in paths.items():
            if part == "meanvector" and mean is not None:
                continue
            try:
                arrays[part] = np.asarray(read_array(path), np.float64)
            except FileNotFoundError as error:
                hint = " Give mean=, in the same units." if part == "meanvector" else " Are dataset and percent right?"
                raise InputError(f"{path}: no such PCA file.{hint}") from error
            except (ValueError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{path}: holds no numbers ({str(error)[:60]}).") from error
        if mean is not None:
            arrays["meanvector"], paths["meanvector"] = np.asarray(mean, np.float64), "mean="
        vectors, values, mean_shape = (arrays[part] for part in ("eigenvectors", "eigenvalues", "meanvector"))
        rows, columns = vectors.shape if vectors.ndim == 2 else (0, 0)
        if not columns or rows % 2 or rows < columns:
            raise InputError(f"{paths['eigenvectors']}: shape {vectors.shape}, expected (2L, K), one column each.")
        for part, expected in (("eigenvalues", (columns,)), ("meanvector", (rows,))):
            if arrays[part].shape != expected:
                raise InputError(
                    f"{paths[part]}: shape {arrays[part].shape}, expected {expected} to go with "
                    f"{paths['eigenvectors'].name}, {vectors.shape}."
                )
        for part, array in arrays.items():
            if not _is_usable(array) or (part == "eigenvalues" and (array < 0).any()):
                raise InputError(f"{paths[part]}: holds values that are not finite, or negative eigenvalues.")
        if units is None:
            units = units_of(mean_shape)
        return cls(mean_shape, vectors, values, key, 0, float(percent), "tight", crop_scale("tight"), units)

    def save_original(
        self, folder: str | Path, percent: float | None = None, name: str | None = None, units: str | None = None
    ) -> list[Path]:
        """Writes the three files that `load_original` and the release read; each appears whole or not at all.

        Args:
            percent: in the files' names; default pca_percent. name: what they begin with; default ibug or wflw.
            units: default: the model's own, but the release's instead of ours.
        Returns: their paths.
        Raises:  InputError for a model of square crops, which the release has not, or a folder that cannot be written.
        """
        if (self.crop, self.crop_scale) != ("tight", crop_scale("tight")):
            raise InputError(
                f"{folder}: eigen-shapes of {self.crop} crops of scale {self.crop_scale:g}; the release's crops are "
                "tight. Make them with pca_builder.py --crop tight."
            )
        model = self.to_units(units or (RELEASE_UNITS if self.units == NETWORK_UNITS else self.units))
        name = name or _names_of(self.dataset)[1][0]
        percent = self.pca_percent if percent is None else percent
        paths = []
        for part, field in _ORIGINAL_PARTS.items():
            paths.append(Path(folder) / f"{name}_{part}_{percent:g}.npy")
            with replacing(paths[-1]) as temporary:
                np.save(temporary, getattr(model, field))
        return paths


_ORIGINAL_PARTS = {"eigenvectors": "eigenvectors", "eigenvalues": "eigenvalues", "meanvector": "mean_shape"}


def _names_of(dataset: str) -> tuple[str, tuple[str, ...]]:
    """Returns our name of a dataset and what its files in the release may begin with, the name as given first."""
    for key, names in ORIGINAL_NAMES.items():
        if dataset == key or dataset in names:
            return key, tuple(dict.fromkeys((*((dataset,) if dataset != key else ()), *names)))
    return dataset, (dataset,)


def _is_usable(array: np.ndarray) -> bool:
    return bool((np.abs(array) <= _MAX_VALUE).all())  # NaN is not


def _original_file(folder: Path, name: str, part: str, percent: float) -> Path:
    """Returns the path of one file of the release: with its ending unless only the one without is there."""
    path = folder / f"{name}_{part}_{percent:g}.npy"
    bare = path.with_name(f"{name}_{part}_{percent:g}")
    return bare if bare.is_file() and not path.is_file() else path


def units_of(mean_shape: np.ndarray) -> str:
    """Returns the units a mean shape is in; see `ShapeModel.load_original`."""
    if np.abs(mean_shape).max() > 2:
        return PIXEL_UNITS
    return RELEASE_UNITS if mean_shape[0] > 0 else NETWORK_UNITS


class ShapeStatistics:
    """Mean and covariance of shapes that arrive in chunks: memory for one chunk and a (2L, 2L) matrix.

    Chunks are merged by Chan's update, so the result does not lose digits where the mean is large against the spread.
    Products within a chunk of float32 are float32, all else is float64: the eigenvalues of 20,000 shapes came out
    within 1e-7 of the largest one. (scikit-learn's default multiplies all rows in float32: 1e-4, on a million.)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    @classmethod
    def of(cls, shapes: np.ndarray) -> ShapeStatistics:
        """Returns the statistics of shapes (n, 2L). Raises: ValueError if a value is not finite."""
        statistics, shapes = cls(), np.asarray(shapes)
        if shapes.dtype != np.float32:
            shapes = shapes.astype(np.float64, copy=False)
        if len(shapes):
            share = np.full(len(shapes), 1 / len(shapes), shapes.dtype)
            about = share @ shapes  # the mean to as many digits as float32 has; the rest is added below
            if not np.isfinite(about).all():
                raise ValueError("a shape holds values that are not finite")
            centred = shapes - about
            rest = (share @ centred).astype(np.float64)
            statistics.count, statistics.mean = len(shapes), about + rest
            statistics.scatter = centred.T @ centred - len(shapes) * np.outer(rest, rest)
        return statistics

    def merge(self, other: ShapeStatistics) -> None:
        """Adds the shapes that another object has seen."""
        if not other.count:
            return
        if not self.count:
            self.mean, self.scatter = np.zeros(other.mean.shape), np.zeros(other.scatter.shape)
        total = self.count + other.count
        shift = other.mean - self.mean
        self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
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


def in_threads(function: Callable, chunks: Iterable) -> Iterator:
    """Yields function(chunk) of every chunk in their order; as many run at a time as there are cores, one core each.

    Two chunks for each thread are in memory. Raises: what the function or the iterable raises.
    """
    workers = min(_MAX_THREADS, os.cpu_count() or 1)
    waiting: deque[Future] = deque()
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(function, chunk))
            if len(waiting) == 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def collect(chunks: Iterable[np.ndarray]) -> ShapeStatistics:
    """Returns the statistics of all shapes in an iterable of (n_i, 2L) chunks; some 4,000 rows each are quickest.

    Reading, centring and multiplying overlap by threads; the result does not depend on their number.

    Raises: ValueError if a value is not finite; what the iterable raises.
    """
    statistics = ShapeStatistics()
    for part in in_threads(ShapeStatistics.of, chunks):
        statistics.merge(part)
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
    """Loads the shape model of a dataset and crop, and says so where it is a shipped one.

    Raises: InputError if it is another dataset's or crop's: its shapes would not fit.
    """
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
    if find_shape_model(path).parent == SHAPE_MODELS:
        faces = f"{model.n_samples} of {sum(source.expected for source in spec.splits['train'])} training faces"
        print(f"{path}: the shape model that ships with the package, fitted on {faces}; pca_builder.py makes your own")
    return model
