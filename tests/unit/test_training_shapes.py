"""Shapes from a large file: the same numbers as from samples, and clear words for what cannot be used."""

import numpy as np
import pytest

from asmnet_tf import geometry, shape_model, training_shapes
from asmnet_tf.config import DATASETS
from asmnet_tf.datasets import read_samples
from asmnet_tf.files import InputError
from asmnet_tf.training_shapes import FileShapes, SampleShapes

SPEC = DATASETS["300w"]


@pytest.fixture
def samples(faces_300w):
    return read_samples(SPEC, faces_300w, "train", quiet=True)


@pytest.fixture
def shapes(samples):
    landmarks = np.stack([sample.landmarks for sample in samples]).astype(np.float64)
    return geometry.normalise(landmarks, geometry.crop_frame(geometry.landmark_box(landmarks), "square"))


def save(folder, array, name="shapes.npy"):
    np.save(folder / name, array)
    return folder / name


def test_a_file_gives_what_the_samples_give(samples, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(training_shapes, "CHUNK", 7)
    ours, theirs = FileShapes(save(tmp_path, shapes), SPEC), SampleShapes(samples, SPEC, "square")
    a, b = ours.statistics(), theirs.statistics()
    assert a.count == b.count == len(samples)
    assert np.array_equal(a.mean, b.mean)
    assert np.array_equal(a.scatter, b.scatter)
    model = shape_model.fit(a, [90.0], "300w", "square", 1.2)[0]
    assert ours.smoothing(model) == pytest.approx(theirs.smoothing(model), rel=1e-9)
    assert len(theirs.smoothing(model)) == len(samples)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8"])
def test_number_formats_and_the_order_of_the_array_do_not_matter(shapes, tmp_path, dtype):
    expected = FileShapes(save(tmp_path, shapes, "a.npy"), SPEC).statistics()
    file = FileShapes(save(tmp_path, np.asfortranarray(shapes.astype(dtype)), "b.npy"), SPEC)
    assert file.statistics().mean == pytest.approx(expected.mean, abs=1e-6)
    assert file.statistics().scatter == pytest.approx(expected.scatter, abs=1e-5)


def test_limit_takes_the_first_rows(shapes, tmp_path):
    assert FileShapes(save(tmp_path, shapes), SPEC, limit=5).statistics().count == 5


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
        (with_nan, r"shapes\.npy, row 33: a value is not finite\. Remove the row"),
        (lambda s: np.array([None, {}], object), r"shapes\.npy: not a whole \.npy file of one plain array"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(shapes, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(training_shapes, "CHUNK", 20)
    path = save(tmp_path, change(shapes))
    with pytest.raises(InputError, match=message):
        FileShapes(path, SPEC).statistics()


def test_absent_cut_and_foreign_files_are_named(shapes, tmp_path):
    path = save(tmp_path, shapes)
    path.write_bytes(path.read_bytes()[:-100])
    np.savez(tmp_path / "a.npz", shapes=shapes)
    (tmp_path / "text.npy").write_text("1 2 3\n")
    for name in ("shapes.npy", "a.npz", "text.npy"):
        with pytest.raises(InputError, match=rf"{name}: not a whole \.npy file"):
            FileShapes(tmp_path / name, SPEC)
    with pytest.raises(InputError, match=r"none\.npy: no such file\. --shapes takes"):
        FileShapes(tmp_path / "none.npy", SPEC)
