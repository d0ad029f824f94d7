"""Shapes to fit eigen-shapes to, from samples or one large array file; the shape model of a run (NumPy only)."""

import sys
from pathlib import Path

import numpy as np

from asmnet_tf.config import crop_scale
from asmnet_tf.data import geometry
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.readers import Sample
from asmnet_tf.data.sidecars import SHAPE_MODELS, find_shape_model
from asmnet_tf.files import InputError, free_memory, read_array
from asmnet_tf.shape.shape_model import MAX_VALUE, ShapeModel, chunks

MEMORY_SHARE = 0.5  # of the free memory; a file that takes more of it as float64 stays on disk
_WHAT = "--shapes takes float (N, 2L), x0, y0, x1, ... in network units, (p - centre) / size of the crop."


def shapes_of(samples: list[Sample], crop: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shapes (N, 2L) of samples in network units, and their crop frames (N, 4), of the landmark boxes."""
    landmarks = np.stack([sample.landmarks for sample in samples]).astype(np.float64)
    frames = geometry.crop_frame(geometry.landmark_box(landmarks), crop)
    return geometry.normalise(landmarks, frames), frames


def read_shapes(path: str | Path, spec: DatasetSpec, limit: int | None = None) -> np.ndarray:
    """Reads shapes (N, 2L) in network units from a `.npy` file of float32 or float64.

    float64, or a memory map of the file where that takes more than `MEMORY_SHARE` of the free memory.
    """
    try:
        shapes = read_array(path, mapped=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. {_WHAT}") from error
    width = 2 * spec.num_landmarks
    if shapes.ndim != 2 or shapes.shape[1] != width:
        raise InputError(f"{path}: shape {shapes.shape}, {spec.title} has (N, {width}). Is --dataset right? {_WHAT}")
    if shapes.dtype.kind != "f" or shapes.dtype.itemsize not in (4, 8):
        raise InputError(f"{path}: numbers are {shapes.dtype}, expected float32 or float64. {_WHAT}")
    shapes = shapes[:limit]
    if 8 * shapes.size <= MEMORY_SHARE * free_memory():
        shapes = np.array(shapes, np.float64)
    else:
        print(f"{path}: too large for the free memory, so it is read in chunks: several times as slow", file=sys.stderr)
    total = np.zeros(width)
    for rows in chunks(len(shapes), "shapes"):
        bad = np.flatnonzero(~(np.abs(shapes[rows]) <= MAX_VALUE).all(axis=1))  # NaN is not
        if len(bad):
            raise InputError(f"{path}, row {rows.start + bad[0]}: a value is not finite or beyond 1e6. Remove it.")
        total += shapes[rows].sum(axis=0, dtype=np.float64)
    mean = total / max(len(shapes), 1)
    if np.abs(mean).max() > 2 or (spec.is_known and mean[0] > 0):  # there point 0 is on the left of the face
        point = f"the mean's first point is ({mean[0]:.4g}, {mean[1]:.4g})"
        raise InputError(f"{path}: {point}, so these are pixels or of the other sign. {_WHAT}")
    return shapes


def load_for(path: str | Path, spec: DatasetSpec, crop: str) -> ShapeModel:
    """Loads the shape model of a dataset and crop; says where it is a shipped one. Raises: InputError for another's."""
    model = ShapeModel.load(path)
    again = f"pca_builder.py --dataset {spec.name} --crop {crop}"
    if model.dataset != spec.name:
        raise InputError(f"{path}: eigen-shapes of {model.dataset}, not of {spec.name}. Make them with {again}.")
    if model.num_landmarks != spec.num_landmarks or model.units != "network":
        raise InputError(f"{path}: {model.num_landmarks} landmarks in {model.units} units. Make it anew with {again}.")
    if (model.crop, model.crop_scale) != (crop, crop_scale(crop)):
        fitted = f"fitted in {model.crop} crops of scale {model.crop_scale:g}, this run uses {crop}"
        raise InputError(f"{path}: {fitted}. Make it with {again} --output shape_models_{crop}.")
    if find_shape_model(path).parent == SHAPE_MODELS:
        faces = f"{model.n_samples} of {sum(source.expected for source in spec.splits['train'])} training faces"
        print(f"{path}: the shape model that ships with the package, fitted on {faces}; pca_builder.py makes your own")
    return model
