"""The PCA files of the authors' release, and the units of their shapes (NumPy only).

A shape model is three files, `<dataset>_{eigenvalues,eigenvectors,meanvector}_<percent>.npy`, of shapes in tight crops.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from asmnet_tf.config import PCA_PERCENT, crop_scale
from asmnet_tf.files import InputError, read_array, replacing
from asmnet_tf.shape.shape_model import MAX_VALUE, ShapeModel

# Centre c and factor f of each: network = (shape - c) f. release: (centre - p) / size, of the release's networks and
# its files `ibug_*`. pixels224: 0..224 from the left and upper edges of the crop, of its files `wflw_*`; these count
# crop coordinates from the edge of the box, so the centre is 112 and not 111.5, which belongs to pixel indices.
UNITS = {"network": (0.0, 1.0), "release": (0.0, -1.0), "pixels224": (112.0, 1 / 224)}
NAMES = {"300w": ("ibug", "300W", "300w"), "wflw": ("wflw", "WFLW")}  # first: what `save_release_pca` writes
_PARTS = {"eigenvectors": "eigenvectors", "eigenvalues": "eigenvalues", "meanvector": "mean_shape"}


def to_units(model: ShapeModel, units: str = "network") -> ShapeModel:
    """Returns the same shape model for shapes in other units; smoothing and converting can change places.

        network = (shape - c) f:   mean' = (mean - c) f,   V' = sign(f) V,   lambda' = f^2 lambda

    Raises: InputError for units that are not in `UNITS`.
    """
    _check_units(units)
    if units == model.units:
        return model
    (centre, factor), (new_centre, new_factor) = UNITS[model.units], UNITS[units]
    ratio = factor / new_factor
    return replace(
        model,
        mean_shape=(model.mean_shape - centre) * ratio + new_centre,
        eigenvectors=model.eigenvectors * np.sign(ratio),
        eigenvalues=model.eigenvalues * ratio**2,
        units=units,
    )


def load_release_pca(
    folder: str | Path,
    dataset: str,
    percent: float = PCA_PERCENT,
    mean: np.ndarray | None = None,
    units: str | None = None,
) -> ShapeModel:
    """Reads a shape model of the release, in the files' own numbers and units.

    The mean tells the units: beyond +-2 it is in pixels of the 224-px crop; otherwise the release's where point 0, the
    jaw's end on the left of the image, has a positive x, and ours, which the authors' earlier repository has too, where
    it has a negative one.

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
    if units is not None:
        _check_units(units)
    key, names = _names_of(dataset)
    name = next((n for n in names if _path(folder, n, "eigenvectors", percent).is_file()), names[0])
    paths = {part: _path(folder, name, part, percent) for part in _PARTS}
    arrays = {part: _read(path) for part, path in paths.items() if part != "meanvector" or mean is None}
    if mean is not None:
        arrays["meanvector"], paths["meanvector"] = np.asarray(mean, np.float64), "mean="
    rows, columns = arrays["eigenvectors"].shape if arrays["eigenvectors"].ndim == 2 else (0, 0)
    if not columns or rows % 2 or rows < columns:
        raise InputError(
            f"{paths['eigenvectors']}: shape {arrays['eigenvectors'].shape}, expected (2L, K), one column each."
        )
    expected = {"eigenvectors": (rows, columns), "eigenvalues": (columns,), "meanvector": (rows,)}
    for part, array in arrays.items():
        if array.shape != expected[part]:
            raise InputError(
                f"{paths[part]}: shape {array.shape}, expected {expected[part]} to go with "
                f"{paths['eigenvectors'].name}, {rows, columns}."
            )
        if not (np.abs(array) <= MAX_VALUE).all() or (part == "eigenvalues" and (array < 0).any()):
            raise InputError(f"{paths[part]}: holds values that are not finite, or negative eigenvalues.")
    if units is None:
        units = units_of(arrays["meanvector"])
    fields = (arrays[part] for part in ("meanvector", "eigenvectors", "eigenvalues"))
    return ShapeModel(*fields, key, 0, float(percent), "tight", crop_scale("tight"), units)


def save_release_pca(
    model: ShapeModel,
    folder: str | Path,
    percent: float | None = None,
    name: str | None = None,
    units: str | None = None,
) -> list[Path]:
    """Writes the three files that `load_release_pca` and the release read; each appears whole or not at all.

    Args:
        percent: in the files' names; default pca_percent. name: what they begin with; default ibug or wflw.
        units: default: the model's own, but the release's instead of ours.
    Returns: their paths.
    Raises:  InputError for a model of square crops, which the release has not, or a folder that cannot be written.
    """
    if (model.crop, model.crop_scale) != ("tight", crop_scale("tight")):
        raise InputError(
            f"{folder}: eigen-shapes of {model.crop} crops of scale {model.crop_scale:g}; the release's crops are "
            "tight. Make them with pca_builder.py --crop tight."
        )
    model = to_units(model, units or ("release" if model.units == "network" else model.units))
    name = name or _names_of(model.dataset)[1][0]
    percent = model.pca_percent if percent is None else percent
    paths = []
    for part, field in _PARTS.items():
        paths.append(Path(folder) / f"{name}_{part}_{percent:g}.npy")
        with replacing(paths[-1]) as temporary:
            np.save(temporary, getattr(model, field))
    return paths


def units_of(mean_shape: np.ndarray) -> str:
    """Returns the units a mean shape is in; see `load_release_pca`."""
    if np.abs(mean_shape).max() > 2:
        return "pixels224"
    return "release" if mean_shape[0] > 0 else "network"


def _check_units(units: str) -> None:
    if units not in UNITS:
        raise InputError(f"units {units!r} of a shape model: expected one of {', '.join(UNITS)}.")


def _names_of(dataset: str) -> tuple[str, tuple[str, ...]]:
    """Returns our name of a dataset and what its files in the release may begin with, the name as given first."""
    for key, names in NAMES.items():
        if dataset == key or dataset in names:
            return key, tuple(dict.fromkeys((*((dataset,) if dataset != key else ()), *names)))
    return dataset, (dataset,)


def _path(folder: Path, name: str, part: str, percent: float) -> Path:
    """Returns the path of one file of the release: with its ending unless only the one without is there."""
    path = folder / f"{name}_{part}_{percent:g}.npy"
    bare = path.with_name(path.name.removesuffix(".npy"))
    return bare if bare.is_file() and not path.is_file() else path


def _read(path: Path) -> np.ndarray:
    try:
        return np.asarray(read_array(path), np.float64)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such PCA file. Are dataset and percent right? Without a mean file, give mean=."
        ) from error
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: holds no numbers ({str(error)[:60]}).") from error
