"""The authors' PCA files `<dataset>_{eigenvalues,eigenvectors,meanvector}_<percent>.npy`; units of shapes (NumPy)."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from asmnet_tf.config import PCA_PERCENT, crop_scale
from asmnet_tf.files import InputError, read_array, replacing
from asmnet_tf.shape.shape_model import MAX_VALUE, ShapeModel

# Centre c, factor f: network = (shape - c) f. release: (centre - p) / size, of its networks and its files `ibug_*`.
# pixels224: 0..224 from the edges of the crop, of its files `wflw_*`; so the centre is not 111.5, as of pixel indices.
UNITS = {"network": (0.0, 1.0), "release": (0.0, -1.0), "pixels224": (112.0, 1 / 224)}
NAMES = {"300w": ("ibug", "300W", "300w"), "wflw": ("wflw", "WFLW")}  # first: what `save_release_pca` writes
_PARTS = {"eigenvectors": "eigenvectors", "eigenvalues": "eigenvalues", "meanvector": "mean_shape"}


def to_units(model: ShapeModel, units: str = "network") -> ShapeModel:
    """Returns the same shape model for shapes in other units; smoothing and converting can change places.

        network = (shape - c) f:   mean' = (mean - c) f,   V' = sign(f) V,   lambda' = f^2 lambda

    Raises: InputError for units that are not in `UNITS`.
    """
    if units not in UNITS:
        raise InputError(f"units {units!r} of a shape model: expected one of {', '.join(UNITS)}.")
    if units == model.units:
        return model
    (centre, factor), (new_centre, new_factor) = UNITS[model.units], UNITS[units]
    ratio = factor / new_factor
    vectors, values = model.eigenvectors * np.sign(ratio), model.eigenvalues * ratio**2
    mean = (model.mean_shape - centre) * ratio + new_centre
    return replace(model, mean_shape=mean, eigenvectors=vectors, eigenvalues=values, units=units)


def load_release_pca(
    folder: str | Path,
    dataset: str,
    percent: float = PCA_PERCENT,
    mean: np.ndarray | None = None,
    units: str | None = None,
) -> ShapeModel:
    """Reads a shape model of the release, in the files' own numbers and units, which the mean tells.

    Beyond +-2 it is pixels of the 224-px crop; otherwise the release's where point 0, the jaw's end on the left of the
    image, has a positive x, and ours, as in the authors' earlier repository, where it has a negative one.

    Args:    folder: of files whose ending `.npy` may be missing. percent: share of the variance in the files' names.
             dataset: 300w (files `ibug_*` or `300W_*`) or wflw, or the very name the files begin with.
             mean: (2L,), in the files' units, where there is no mean file. units: where the mean tells the wrong ones.
    Returns: float64, crop "tight" of scale 1, n_samples 0 (the files do not say).
    Raises:  InputError that names a file which is absent, damaged, pickled, or of another shape.
    Differs from the release: `np.save` of the release adds `.npy` and its loader omits it, so it finds no files.
    """
    key, names = next((item for item in NAMES.items() if dataset in (item[0], *item[1])), (dataset, ()))

    def path_of(name: str, part: str) -> Path:
        path = Path(folder) / f"{name}_{part}_{percent:g}.npy"
        return path if path.is_file() or not path.with_suffix("").is_file() else path.with_suffix("")

    name = next((name for name in (dataset, *names) if path_of(name, "eigenvectors").is_file()), dataset)
    paths = {part: path_of(name, part) for part in _PARTS}
    arrays = {part: _read(path) for part, path in paths.items() if part != "meanvector" or mean is None}
    if mean is not None:
        arrays["meanvector"], paths["meanvector"] = np.asarray(mean, np.float64), "mean="
    vectors = arrays["eigenvectors"]
    if vectors.ndim != 2 or not 0 < vectors.shape[1] <= len(vectors) or len(vectors) % 2:
        raise InputError(f"{paths['eigenvectors']}: shape {vectors.shape}, expected (2L, K), one column each.")
    for (part, array), expected in zip(arrays.items(), (vectors.shape, vectors.shape[1:], vectors.shape[:1])):
        if array.shape != expected:
            raise InputError(f"{paths[part]}: shape {array.shape}, expected {expected}, as the eigenvectors are.")
        if not (np.abs(array) <= MAX_VALUE).all() or (part == "eigenvalues" and (array < 0).any()):
            raise InputError(f"{paths[part]}: holds values that are not finite, or negative eigenvalues.")
    mean, values = arrays["meanvector"], arrays["eigenvalues"]
    told = "pixels224" if np.abs(mean).max() > 2 else "release" if mean[0] > 0 else "network"
    model = ShapeModel(mean, vectors, values, key, 0, float(percent), "tight", crop_scale("tight"), units or told)
    return to_units(model, model.units)


def save_release_pca(model: ShapeModel, folder: str | Path) -> list[Path]:
    """Writes the files that the release reads, in its units where the model is in ours, and returns their paths.

    Raises: InputError for square crops, which the release has not, or a folder that cannot be written.
    """
    if (model.crop, model.crop_scale) != ("tight", crop_scale("tight")):
        crops = f"{model.crop} crops of scale {model.crop_scale:g}; the release's crops are tight"
        raise InputError(f"{folder}: eigen-shapes of {crops}. Make them with pca_builder.py --crop tight.")
    model = to_units(model, "release" if model.units == "network" else model.units)
    name = NAMES.get(model.dataset, (model.dataset,))[0]
    paths = {field: Path(folder) / f"{name}_{part}_{model.pca_percent:g}.npy" for part, field in _PARTS.items()}
    for field, path in paths.items():
        with replacing(path) as temporary:
            np.save(temporary, getattr(model, field))
    return list(paths.values())


def _read(path: Path) -> np.ndarray:
    try:
        array = read_array(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such PCA file. Are dataset and percent right? Or give mean=.") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: holds no numbers but {array.dtype}.")
    return array.astype(np.float64)
