"""Model files that carry code, and states that carry NaN: nothing of them is run, nothing of them is learned."""

import json
import zipfile

import keras
import numpy as np
import pytest

from asmnet_tf import model_files, model_zoo, models
from asmnet_tf.files import InputError


@pytest.fixture
def with_lambda(tmp_path):
    """A model of the contract whose Lambda layer writes a file when it is called."""
    marker = tmp_path / "ran"

    def harmful(x):
        import pathlib

        pathlib.Path(str(marker)).write_text("ran")
        return x

    image = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(harmful, output_shape=(32, 32, 3))(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, [keras.layers.Dense(136, name="O_L")(x), keras.layers.Dense(3, name="O_P")(x)])
    marker.unlink(missing_ok=True)
    return model, marker


@pytest.mark.parametrize("name", ["best.keras", "best.h5"])
def test_a_lambda_layer_is_refused_and_not_run(with_lambda, tmp_path, name):
    model, marker = with_lambda
    model.save(tmp_path / name)
    for opened in (models.load_model, model_files.open_model):
        with pytest.raises(
            InputError, match=rf"{name}: not a model that Keras loads \(it holds a Lambda layer"
        ) as error:
            opened(tmp_path / name)
        assert str(error.value).isprintable()
    assert not marker.exists()


def test_weights_of_a_file_with_a_lambda_layer_are_refused(with_lambda, tmp_path):
    model, marker = with_lambda
    model.save(tmp_path / "a.keras")
    with pytest.raises(InputError, match="Lambda"):
        models.read_weights(str(tmp_path / "a.keras"), (-1.0, 1.0))
    assert not marker.exists()


@pytest.mark.parametrize("member", ["../../escaped.txt", "/escaped.txt", "assets/../../escaped.txt"])
def test_members_of_an_archive_stay_where_they_are(tmp_path, member):
    """Keras may unpack what it does not need; whatever a member is called, nothing appears outside."""
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(image)
    keras.Model(image, [keras.layers.Dense(136)(x), keras.layers.Dense(3)(x)]).save(folder / "a.keras")
    with zipfile.ZipFile(folder / "a.keras", "a") as archive:
        archive.writestr(member, "escaped")
    before = sorted(tmp_path.rglob("*"))
    models.load_model(folder / "a.keras")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    model = models.build_asmnet(68, 32)
    before = model.get_weights()
    spoiled = models.build_asmnet(68, 32)
    kernel = spoiled.get_layer("block_3_expand").kernel
    kernel.assign(kernel * value)
    spoiled.save(tmp_path / "a.keras")
    with pytest.raises(InputError, match=r"layer block_3_expand holds values that are not finite"):
        models.set_weights(model, models.read_weights(str(tmp_path / "a.keras"), (-1.0, 1.0)), ("square", 1.2))
    after = model.get_layer("block_3_expand").get_weights()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.array_equal(
        after[0], before[[w.path for w in model.weights].index(model.get_layer("block_3_expand").kernel.path)]
    )


def test_a_sidecar_of_any_size_is_refused(tmp_path):
    (tmp_path / "best.json").write_text(json.dumps({"x": "y" * (17 << 20)}))
    with pytest.raises(InputError, match=r"best\.json: not JSON \(more than 16 MB\)"):
        model_zoo.read_sidecar(tmp_path / "best.keras")
