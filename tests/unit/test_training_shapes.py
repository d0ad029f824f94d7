"""Shapes from samples and from a large file: the same numbers, and clear words for what cannot be used."""

from dataclasses import replace

import numpy as np
import pytest

from asmnet_tf.data import geometry
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.metrics import UNIT_FRAME, nme, normaliser, smoothing_distance
from asmnet_tf.files import InputError
from asmnet_tf.shape import shape_model, training_shapes
from asmnet_tf.shape.shape_model import ShapeModel
from asmnet_tf.shape.training_shapes import load_for, read_shapes, shapes_of

SPEC = DATASETS["300w"]


@pytest.fixture
def samples(faces_300w):
    return read_samples(SPEC, faces_300w, "train", quiet=True)


@pytest.fixture
def shapes(samples):
    return shapes_of(samples, "square")[0]


def save(folder, array, name="shapes.npy"):
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("crop", ["square", "tight"])
def test_shapes_of_samples_and_how_far_the_asm_operator_moves_them(samples, crop, monkeypatch):
    monkeypatch.setattr(shape_model, "CHUNK", 7)
    shapes, frames = shapes_of(samples, crop)
    landmarks = np.stack([sample.landmarks for sample in samples])
    for sample, shape, frame in zip(samples, shapes, frames):  # a face fills its crop: all of a tight one
        points = shape.reshape(-1, 2)
        assert np.ptp(points, axis=0).max() == pytest.approx({"square": 1 / 1.2, "tight": 1.0}[crop])
        assert points * frame[2:] + frame[:2] == pytest.approx(sample.landmarks, abs=1e-3)
    model = ShapeModel.fit(shapes, "300w", crop, 1.2).keep(80)
    moved = smoothing_distance(model, shapes, frames, SPEC)
    smoothed = geometry.denormalise(model.smooth(shapes), frames)
    assert moved == pytest.approx(nme(smoothed, landmarks, normaliser(landmarks, SPEC)), rel=1e-3)
    in_crop = smoothing_distance(model, shapes, UNIT_FRAME, SPEC)
    assert (in_crop == pytest.approx(moved, rel=1e-6)) == (crop == "square")  # a tight crop scales x and y differently


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8"])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_number_formats_and_the_order_of_the_array_do_not_matter(shapes, tmp_path, monkeypatch, dtype, share):
    """In memory, and from disk where the file takes more than its share of the free memory."""
    monkeypatch.setattr(training_shapes, "MEMORY_SHARE", share)
    read = read_shapes(save(tmp_path, np.asfortranarray(shapes.astype(dtype))), SPEC)
    assert isinstance(read, np.memmap) == (share == 0)
    assert read == pytest.approx(shapes, abs=1e-6)
    models = [ShapeModel.fit(s, "300w", "square", 1.2).keep(90) for s in (read, shapes)]
    assert models[0].eigenvalues == pytest.approx(models[1].eigenvalues, abs=1e-6)
    moved = [smoothing_distance(model, s, UNIT_FRAME, SPEC) for model, s in zip(models, (read, shapes))]
    assert moved[0] == pytest.approx(moved[1], abs=1e-5)


def test_limit_takes_the_first_rows(shapes, tmp_path):
    assert np.array_equal(read_shapes(save(tmp_path, shapes), SPEC, limit=5), shapes[:5])


def with_nan(shapes):
    shapes[33, 70] = np.nan
    return shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, :134], r"shapes\.npy: shape \(48, 134\), 300W has \(N, 136\)\. Is --dataset right\?"),
        (lambda s: s.reshape(-1, 68, 2), r"shapes\.npy: shape \(48, 68, 2\), 300W has \(N, 136\)"),
        (lambda s: (s * 100).astype(np.int32), r"shapes\.npy: numbers are int32, expected float32 or float64"),
        (lambda s: s.astype(np.float16), r"shapes\.npy: numbers are float16"),
        (lambda s: s.astype(complex), r"shapes\.npy: numbers are complex128"),
        (lambda s: s * 224 + 112, r"shapes\.npy: the mean's first point is \(.*pixels"),
        (lambda s: -s, r"shapes\.npy: the mean's first point is \(.*of the other sign"),
        (lambda s: s + 1e300, r"shapes\.npy, row 0: a value is not finite or beyond 1e6"),
        (lambda s: s.sum(), r"shapes\.npy: shape \(\), 300W has"),
        (with_nan, r"shapes\.npy, row 33: a value is not finite"),
        (lambda s: np.array([None, {}], object), r"shapes\.npy: not a whole \.npy file of one plain array"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(shapes, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(shape_model, "CHUNK", 20)
    path = save(tmp_path, change(shapes))
    with pytest.raises(InputError, match=message):
        read_shapes(path, SPEC)


def test_absent_cut_and_foreign_files_are_named(shapes, tmp_path):
    path = save(tmp_path, shapes)
    path.write_bytes(path.read_bytes()[:-100])
    np.savez(tmp_path / "a.npz", shapes=shapes)
    (tmp_path / "text.npy").write_text("1 2 3\n")
    for name in ("shapes.npy", "a.npz", "text.npy"):
        with pytest.raises(InputError, match=rf"{name}: not a whole \.npy file"):
            read_shapes(tmp_path / name, SPEC)
    with pytest.raises(InputError, match=r"none\.npy: no such file\. --shapes takes"):
        read_shapes(tmp_path / "none.npy", SPEC)


def test_a_shape_model_belongs_to_one_dataset_and_crop(shapes, tmp_path):
    path = tmp_path / "m.npz"
    ShapeModel.fit(shapes, "300w", "square", 1.2).keep(90).save(path)
    assert load_for(path, DATASETS["300w"], "square").num_landmarks == 68
    with pytest.raises(InputError, match="eigen-shapes of 300w, not of wflw"):
        load_for(path, DATASETS["wflw"], "square")
    with pytest.raises(InputError, match=r"fitted in square crops of scale 1.2, this run uses tight"):
        load_for(path, DATASETS["300w"], "tight")


def test_where_the_first_point_lies_tells_only_of_known_layouts(shapes, tmp_path):
    mirrored = replace(SPEC, name="mine")
    np.testing.assert_array_equal(read_shapes(save(tmp_path, -shapes), mirrored), -shapes)
