"""The release's PCA files: its per-sample loop written anew from the formula, its units, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.truth import mean_shape_method
from asmnet_tf.files import InputError
from asmnet_tf.formats.release_pca import load_release_pca, save_release_pca, to_units
from asmnet_tf.shape.shape_model import ShapeModel
from asmnet_tf.shape.training_shapes import load_for

POINTS = {"ibug": 68, "wflw": 98}


def network_shapes(points, n=300, seed=0):
    """Shapes (n, 2L) in network units: a face-like row of points, the first one on the left, and deformations."""
    rng = np.random.default_rng(seed)
    mean = np.stack([np.linspace(-0.45, 0.45, points), 0.4 * np.sin(np.arange(points))], axis=1).ravel()
    spread = 0.1 * 0.8 ** np.arange(2 * points)
    return mean + rng.normal(size=(n, 2 * points)) * spread @ np.linalg.qr(rng.normal(size=(2 * points,) * 2))[0]


UNITS = {  # from network units; written by hand, apart from the package's table
    "network": lambda shapes: shapes,
    "release": lambda shapes: -shapes,
    "pixels224": lambda shapes: 224 * shapes + 112,
}


def write_files(folder, name, shapes, percent=90, ending=".npy", skip=()):
    """Writes the three files as the release's PCA does, with scikit-learn."""
    pca = PCA(percent / 100, svd_solver="full").fit(shapes)
    arrays = {"eigenvalues": pca.explained_variance_, "eigenvectors": pca.components_.T, "meanvector": pca.mean_}
    for part, array in arrays.items():
        if part not in skip:
            with open(folder / f"{name}_{part}_{percent}{ending}", "wb") as file:
                np.save(file, array)
    return pca


def release_loop(shapes, mean, eigenvectors, eigenvalues):
    """The ASM operator, one sample and one component after the other."""
    smoothed = []
    for shape in shapes:
        result = [float(m) for m in mean]
        for k, value in enumerate(eigenvalues):
            b = sum(float(v) * (float(s) - float(m)) for v, s, m in zip(eigenvectors[:, k], shape, mean))
            limit = 3 * float(value) ** 0.5
            b = limit if b > limit else -limit if b < -limit else b
            result = [r + b * float(v) for r, v in zip(result, eigenvectors[:, k])]
        smoothed.append(result)
    return np.array(smoothed)


@pytest.mark.parametrize("ending", [".npy", ""])
@pytest.mark.parametrize(("name", "units"), [("ibug", "release"), ("wflw", "pixels224"), ("wflw", "network")])
def test_smoothing_equals_the_releases_loop(tmp_path, name, units, ending):
    """In the file's own units, far shapes too, so that clipping happens; 1e-9 of a unit in pixels as well."""
    shapes = UNITS[units](network_shapes(POINTS[name]))
    pca = write_files(tmp_path, name, shapes, 90, ending)
    model = load_release_pca(tmp_path, name, 90)
    assert (model.units, model.crop, model.crop_scale, model.pca_percent) == (units, "tight", 1.0, 90.0)
    assert (model.dataset, model.num_landmarks) == ({"ibug": "300w", "wflw": "wflw"}[name], POINTS[name])
    assert model.mean_shape.dtype == model.eigenvectors.dtype == model.eigenvalues.dtype == np.float64
    far = pca.mean_ + 5 * (shapes[:40] - pca.mean_)
    expected = release_loop(far, pca.mean_, pca.components_.T, pca.explained_variance_)
    limits = 3 * np.sqrt(pca.explained_variance_)
    assert (np.abs((far - pca.mean_) @ pca.components_.T) > limits).any()
    assert np.abs(model.smooth(far) - expected).max() < 1e-9


@pytest.mark.parametrize("units", ["release", "pixels224", "network"])
def test_conversion_commutes_with_smoothing(tmp_path, units):
    network = network_shapes(68)
    write_files(tmp_path, "ibug", UNITS[units](network))
    model = load_release_pca(tmp_path, "300w", 90)
    assert model.units == units
    converted = to_units(model)
    assert converted.units == "network"
    far = 4 * network[:50]
    assert UNITS[units](converted.smooth(far)) == pytest.approx(model.smooth(UNITS[units](far)), abs=1e-9)
    fitted = ShapeModel.fit(network, "300w", "tight", 1.0).keep(90)
    assert converted.mean_shape == pytest.approx(fitted.mean_shape, abs=1e-12)
    assert converted.eigenvalues == pytest.approx(fitted.eigenvalues, rel=1e-9)
    assert converted.smooth(far) == pytest.approx(fitted.smooth(far), abs=1e-9)
    back = to_units(converted, units)
    for field in ("mean_shape", "eigenvectors", "eigenvalues"):
        assert getattr(back, field) == pytest.approx(getattr(model, field), rel=1e-12, abs=1e-12)


def test_what_the_sign_flip_changes(tmp_path):
    write_files(tmp_path, "ibug", -network_shapes(68))
    model = load_release_pca(tmp_path, "ibug", 90)
    network = to_units(model)
    assert np.array_equal(network.mean_shape, -model.mean_shape)
    assert np.array_equal(network.eigenvectors, -model.eigenvectors)
    assert np.array_equal(network.eigenvalues, model.eigenvalues)


def test_pixels_by_hand():
    """The centre of the release's 224-px crop is 112 and its edges are 0 and 224 (crop coordinates, not indices)."""
    vectors = np.eye(4)[:, :1]
    pixels = ShapeModel(
        np.array([0.0, 112, 224, 168]), vectors, np.array([224.0**2]), "wflw", 0, 90.0, "tight", 1.0, "pixels224"
    )
    network = to_units(pixels)
    assert network.mean_shape == pytest.approx([-0.5, 0.0, 0.5, 0.25])
    assert network.eigenvalues == pytest.approx([1.0])
    assert np.array_equal(network.eigenvectors, vectors)


@pytest.mark.parametrize(("written", "asked"), [("300W", "300w"), ("300W", "ibug"), ("ibug", "300W"), ("WFLW", "wflw")])
def test_names_of_datasets(tmp_path, written, asked):
    write_files(tmp_path, written, -network_shapes(POINTS.get(written.lower(), 68)))
    assert load_release_pca(tmp_path, asked, 90).dataset in ("300w", "wflw")


def test_name_as_given_comes_first(tmp_path):
    write_files(tmp_path, "ibug", -network_shapes(68, seed=1))
    write_files(tmp_path, "300W", -network_shapes(68, seed=2))
    loaded = [load_release_pca(tmp_path, name, 90).mean_shape for name in ("300W", "ibug", "300w")]
    assert not np.array_equal(loaded[0], loaded[1])
    assert np.array_equal(loaded[1], loaded[2])


def test_mean_from_elsewhere(tmp_path):
    shapes = -network_shapes(68)
    pca = write_files(tmp_path, "ibug", shapes, 85, skip=("meanvector",))
    with pytest.raises(InputError, match=r"ibug_meanvector_85\.npy: no such PCA file.*mean="):
        load_release_pca(tmp_path, "ibug", 85)
    model = load_release_pca(tmp_path, "ibug", 85, mean=pca.mean_)
    assert model.units == "release"
    expected = release_loop(shapes[:3], pca.mean_, pca.components_.T, pca.explained_variance_)
    assert model.smooth(shapes[:3]) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(InputError, match=r"mean=: shape \(134,\), expected \(136,\)"):
        load_release_pca(tmp_path, "ibug", 85, mean=pca.mean_[:-2])


def test_units_can_be_stated(tmp_path):
    write_files(tmp_path, "ibug", network_shapes(68))
    assert load_release_pca(tmp_path, "ibug", 90).units == "network"
    assert load_release_pca(tmp_path, "ibug", 90, units="release").units == "release"
    with pytest.raises(InputError, match="units 'metres'"):
        load_release_pca(tmp_path, "ibug", 90, units="metres")


def test_refusals(tmp_path):
    write_files(tmp_path, "ibug", -network_shapes(68))
    with pytest.raises(
        InputError, match=r"ibug_eigenvectors_97\.npy: no such PCA file\. Are dataset and percent right"
    ):
        load_release_pca(tmp_path, "ibug", 97)
    with pytest.raises(InputError, match=r"wflw_eigenvectors_90\.npy: no such PCA file"):
        load_release_pca(tmp_path, "wflw", 90)
    values, vectors, mean = (tmp_path / f"ibug_{part}_90.npy" for part in ("eigenvalues", "eigenvectors", "meanvector"))
    good = {path: path.read_bytes() for path in (values, vectors, mean)}
    array = {path: np.load(path, allow_pickle=False) for path in good}
    marker = tmp_path / "unpickled"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    spoiled = [
        (values, lambda: np.save(values, np.array([Bomb()], object)), "not a whole .npy"),
        (mean, lambda: mean.write_bytes(good[mean][:-50]), "not a whole .npy"),
        (mean, lambda: mean.write_text("mean"), "not a whole .npy"),
        (mean, lambda: np.savez(mean.open("wb"), mean=array[mean]), "archive of arrays"),
        (mean, lambda: np.save(mean, np.array(["a", "b"])), "holds no numbers"),
        (mean, lambda: np.save(mean, array[mean][None]), r"shape \(1, 136\), expected \(136,\)"),
        (mean, lambda: np.save(mean, array[mean] * np.nan), "not finite"),
        (values, lambda: np.save(values, array[values][:-1]), r"expected \(\d+,\)"),
        (values, lambda: np.save(values, -array[values]), "negative eigenvalues"),
        (vectors, lambda: np.save(vectors, array[vectors].T), r"expected \(2L, K\)"),
        (vectors, lambda: np.save(vectors, array[mean]), r"expected \(2L, K\)"),
    ]
    for path, spoil, message in spoiled:
        spoil()
        with pytest.raises(InputError, match=rf"{path.name}: [^\n]*{message}[^\n]*$"):
            load_release_pca(tmp_path, "ibug", 90)
        path.write_bytes(good[path])
    assert not marker.exists()
    assert load_release_pca(tmp_path, "ibug", 90).num_landmarks == 68


# --- writing, and other places where units matter -------------------------------------------------------------------


@pytest.mark.parametrize("units", ["release", "pixels224"])
def test_saved_files_come_back(tmp_path, units):
    name = "ibug" if units == "release" else "wflw"
    write_files(tmp_path, name, UNITS[units](network_shapes(POINTS[name])), 97)
    model = load_release_pca(tmp_path, name, 97)
    paths = save_release_pca(model, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert {path.name for path in paths} == {
        f"{name}_{p}_97.npy" for p in ("eigenvalues", "eigenvectors", "meanvector")
    }
    again = load_release_pca(tmp_path / "new", name, 97)
    assert again.units == units
    for field in ("mean_shape", "eigenvectors", "eigenvalues"):
        assert np.array_equal(getattr(again, field), getattr(model, field))


def test_our_models_are_saved_in_the_releases_units(tmp_path):
    shapes = network_shapes(68)
    model = ShapeModel.fit(shapes, "300w", "tight", 1.0).keep(90)
    save_release_pca(model, tmp_path)
    mean = np.load(tmp_path / "ibug_meanvector_90.npy", allow_pickle=False)
    assert np.array_equal(mean, -model.mean_shape)
    release = load_release_pca(tmp_path, "ibug", 90)
    assert release.units == "release"
    assert -release.smooth(-shapes) == pytest.approx(model.smooth(shapes), abs=1e-12)
    save_release_pca(to_units(replace(model, dataset="300W", pca_percent=85.0), "pixels224"), tmp_path / "named")
    pixels = load_release_pca(tmp_path / "named", "300W", 85)
    assert pixels.units == "pixels224"
    assert pixels.mean_shape == pytest.approx(224 * model.mean_shape + 112)


def test_square_crops_are_not_the_releases(tmp_path):
    model = ShapeModel.fit(network_shapes(68), "300w", "square", 1.2).keep(90)
    with pytest.raises(InputError, match=r"square crops of scale 1\.2; the release's crops are tight"):
        save_release_pca(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_takes_network_units_only(tmp_path):
    write_files(tmp_path, "ibug", -network_shapes(68))
    model = load_release_pca(tmp_path, "ibug", 90)
    model.save(tmp_path / "release.npz")
    assert ShapeModel.load(tmp_path / "release.npz").units == "release"
    with pytest.raises(InputError, match="68 landmarks in release units"):
        load_for(tmp_path / "release.npz", DATASETS["300w"], "tight")
    to_units(model).save(tmp_path / "network.npz")
    assert load_for(tmp_path / "network.npz", DATASETS["300w"], "tight").num_landmarks == 68


def test_mean_shape_is_scored_in_network_units(tmp_path):
    """evaluate.py --mean-shape puts the mean into each face's crop, whatever units the file is in."""
    network = network_shapes(68)
    write_files(tmp_path, "ibug", -network)
    model = load_release_pca(tmp_path, "ibug", 90)
    faces = np.array([[[0.0, 0.0], [200.0, 100.0]] * 34])
    methods = []
    for name, saved in (("release", model), ("network", to_units(model))):
        saved.save(tmp_path / f"{name}.npz")
        methods.append(mean_shape_method(tmp_path / f"{name}.npz", DATASETS["300w"], faces))
    assert methods[0].landmarks == pytest.approx(methods[1].landmarks, abs=1e-9)
    assert methods[0].landmarks[0, 0] == pytest.approx(model.mean_shape[:2] * [-200, -100] + [100, 50], abs=1e-9)
