"""The ASM operator and its PCA: hand-made eigen-shapes, scikit-learn, and the formula written as a loop."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from asmnet_tf.files import InputError
from asmnet_tf.shape import shape_model
from asmnet_tf.shape.shape_model import ShapeModel


def shapes_of(n, size=136, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.linspace(1.0, 0.01, size)
    return rng.normal(size=(n, size)) * spread @ np.linalg.qr(rng.normal(size=(size, size)))[0] + 5.0


def model_of(shapes, percent=90.0):
    return ShapeModel.fit(shapes, "300w", "square", 1.2).keep(percent)


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.5])
def test_equals_scikit_learn_up_to_sign(percent):
    shapes = shapes_of(400)
    ours, theirs = model_of(shapes, percent), PCA(percent / 100, svd_solver="full").fit(shapes)
    assert ours.num_components == theirs.n_components_
    assert ours.mean_shape == pytest.approx(theirs.mean_, abs=1e-9)
    assert ours.eigenvalues == pytest.approx(theirs.explained_variance_, rel=1e-6)
    signs = np.sign((ours.eigenvectors.T * theirs.components_).sum(axis=1))
    assert ours.eigenvectors.T * signs[:, None] == pytest.approx(theirs.components_, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_shapes_on_disk_give_what_shapes_in_memory_give(tmp_path, monkeypatch, dtype):
    """IncrementalPCA, a last chunk of a few rows, and the same signs: the largest entries are positive."""
    monkeypatch.setattr(shape_model, "CHUNK", 150)
    np.save(tmp_path / "a.npy", shapes_of(455).astype(dtype))
    file = np.load(tmp_path / "a.npy", mmap_mode="r")
    disk, memory = (ShapeModel.fit(shapes, "300w", "square", 1.2) for shapes in (file, np.array(file)))
    assert (disk.num_components, disk.n_samples) == (memory.num_components, memory.n_samples) == (136, 455)
    for model in (disk, memory):
        assert model.eigenvectors.dtype == np.float64
        assert (model.eigenvectors.max(axis=0) == np.abs(model.eigenvectors).max(axis=0)).all()
    assert disk.mean_shape == pytest.approx(memory.mean_shape, rel=1e-12)
    assert disk.eigenvalues == pytest.approx(memory.eigenvalues, abs=1e-12)
    assert disk.eigenvectors == pytest.approx(memory.eigenvectors, abs=1e-7)


def test_smoothing_by_hand():
    """Two components of variance 4 and 1: parameters beyond 6 and 3 are clipped, what is orthogonal is dropped."""
    eigenvectors = np.zeros((4, 2))
    eigenvectors[0, 0] = eigenvectors[1, 1] = 1.0
    model = ShapeModel(np.array([1.0, 2, 3, 4]), eigenvectors, np.array([4.0, 1.0]), "300w", 9, 90.0, "square", 1.2)
    shapes = np.array([[3.0, 1, 9, 9], [11.0, -8, 0, 0], [1.0, 2, 3, 4]])
    assert model.project(shapes) == pytest.approx(np.array([[2.0, -1], [10, -10], [0, 0]]))
    assert model.smooth(shapes) == pytest.approx(np.array([[3.0, 1, 3, 4], [7, -1, 3, 4], [1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="shapes of 6 numbers; this model has 4"):
        model.project(np.zeros(6))


def test_equals_the_formula_written_as_a_loop():
    shapes = shapes_of(50)
    model = model_of(shapes, 80.0)
    for shape, smoothed in zip(shapes, model.smooth(shapes)):
        expected = model.mean_shape.copy()
        for k in range(model.num_components):
            b = sum(model.eigenvectors[i, k] * (shape[i] - model.mean_shape[i]) for i in range(136))
            limit = 3 * model.eigenvalues[k] ** 0.5
            expected += model.eigenvectors[:, k] * min(max(b, -limit), limit)
        assert smoothed == pytest.approx(expected, abs=1e-9)


def test_all_components_reproduce_the_shape():
    shapes = shapes_of(400)
    model = model_of(shapes, 100.0)
    assert model.num_components == 136
    assert model.instance(model.project(shapes)) == pytest.approx(shapes, abs=1e-9)


def test_fewer_shapes_than_coordinates():
    model = model_of(shapes_of(10), 100.0)
    assert model.num_components == 9


def test_smoothing_twice_is_smoothing_once():
    shapes = shapes_of(100)
    model = model_of(shapes, 85.0)
    assert model.smooth(model.smooth(shapes)) == pytest.approx(model.smooth(shapes), abs=1e-9)


@pytest.mark.parametrize("percent", [0.0, -5.0, 101.0, float("nan")])
def test_percentage_out_of_range_is_refused(percent):
    with pytest.raises(InputError, match="--pca-percent"):
        model_of(shapes_of(20), percent)


def test_one_shape_is_not_enough():
    with pytest.raises(InputError, match="1 shapes; an eigen-shape needs two"):
        model_of(shapes_of(1))


def test_saved_and_loaded(tmp_path):
    model = model_of(shapes_of(200), 97.0)
    model.save(tmp_path / "300w_pca97.npz")
    loaded = ShapeModel.load(tmp_path / "300w_pca97.npz")
    for key in ("mean_shape", "eigenvectors", "eigenvalues"):
        assert np.array_equal(getattr(loaded, key), getattr(model, key))
    assert (loaded.dataset, loaded.n_samples, loaded.pca_percent) == ("300w", 200, 97.0)
    assert (loaded.crop, loaded.crop_scale, loaded.units) == ("square", 1.2, "network")
    with np.load(tmp_path / "300w_pca97.npz", allow_pickle=False) as file:
        names = {"mean_shape", "eigenvectors", "eigenvalues", "dataset", "n_samples", "pca_percent"}
        assert set(file) == names | {"crop", "crop_scale", "units"}


def test_foreign_and_damaged_files_are_named(tmp_path):
    good = tmp_path / "good.npz"
    model_of(shapes_of(50)).save(good)
    cut, pickled, other, count = (tmp_path / f"{name}.npz" for name in ("cut", "pickled", "other", "count"))
    cut.write_bytes(good.read_bytes()[:500])
    np.savez(other, a=np.zeros(3))
    np.savez(pickled, mean_shape=np.array([{}], object))
    np.savez(count, **dict(np.load(good)) | {"n_samples": np.inf})
    for path in (cut, pickled, other, count):
        with pytest.raises(InputError, match=f"{path.name}: not a shape model"):
            ShapeModel.load(path)
    with pytest.raises(InputError, match=r"no such shape model\. Make it with pca_builder\.py"):
        ShapeModel.load(tmp_path / "none.npz")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_precision_of_large_sets(dtype):
    """Eigenvalues over seven decades, a mean ten times the spread: shapes in float32 lose nothing."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.05, 5e-6, 136)
    shapes = (rng.standard_normal((20_000, 136)) * spread + rng.uniform(-0.4, 0.4, 136)).astype(dtype)
    model = model_of(shapes, 100.0)
    values = np.linalg.eigvalsh(np.cov(shapes.astype(np.float64), rowvar=False))[::-1]
    assert model.n_samples == 20_000
    assert model.mean_shape == pytest.approx(shapes.astype(np.float64).mean(axis=0), abs=1e-9)
    assert model.eigenvalues == pytest.approx(values, abs=1e-11 * values[0])


def test_values_that_are_not_finite_are_refused():
    shapes = shapes_of(30)
    shapes[17, 3] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        model_of(shapes)
