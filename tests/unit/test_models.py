"""Architectures by their published counts, weights by name, the fused batch norm against the stock layer."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from asmnet_tf.files import InputError
from asmnet_tf.network import checkpoints
from asmnet_tf.network.asmnet import (
    ASMNET_TAPS,
    BUILDERS,
    SPATIAL_CHANNELS,
    build_asmnet,
    build_mobilenet_v2,
    count_multiply_adds,
    freeze_batch_norm,
    start_at_mean,
)
from asmnet_tf.network.fast_graphs import FusedBatchNormalization, SamePaddedDepthwise, TrainingGraph, folded_model

SQUARE = ("square", 1.2)


@pytest.fixture(scope="module")
def asmnet():
    return build_asmnet(input_size=64, dropout=0.0)


def test_parameters_of_the_paper():
    """The release: 1,439,507 with 68 points, 1,471,727 with 98."""
    assert build_asmnet().count_params() == 1_439_507
    assert build_asmnet(98, 32).count_params() == 1_471_727
    assert build_mobilenet_v2(68, 32).count_params() == 2_436_043


def test_multiply_adds_are_half_the_papers_flops():
    """0.51 and 0.60 GFLOPs in the paper count a multiplication and an addition as two."""
    assert round(2 * count_multiply_adds(build_asmnet()) / 1e9, 2) == 0.51
    assert round(2 * count_multiply_adds(build_mobilenet_v2()) / 1e9, 2) == 0.60


def test_taps_heads_and_names(asmnet):
    assert asmnet.output_names == ["O_L", "O_P"]
    assert [tuple(o.shape) for o in asmnet.outputs] == [(None, 136), (None, 3)]
    assert asmnet.get_layer("features").output.shape[-1] == 536
    widths = [asmnet.get_layer(f"pool_{name}").output.shape[-1] for name in ASMNET_TAPS]
    assert widths == [24, 32, 64, 96, 160, 160]
    assert asmnet.get_layer("O_L").activation is keras.activations.linear
    deepest = max(int(layer.name.split("_")[1]) for layer in asmnet.layers if layer.name.startswith("block_"))
    assert deepest == 15


def test_head_l2_is_in_the_models_losses():
    model = build_asmnet(input_size=32, l2_heads=0.01)
    assert len(model.losses) == 4
    kernel = model.get_layer("O_L").kernel.numpy()
    assert float(model.losses[0]) == pytest.approx(0.01 * np.square(kernel).sum(), rel=1e-5)
    assert build_asmnet(input_size=32, l2_heads=0.0).losses == []


def test_an_untrained_model_can_start_at_the_mean():
    model = build_asmnet(input_size=32)
    shape, pose = np.linspace(-0.5, 0.5, 136), np.array([0.1, -0.2, 0.0])
    start_at_mean(model, shape, pose)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    landmarks, angles = model(images)
    assert landmarks.numpy() == pytest.approx(np.tile(shape, (4, 1)), abs=0.05)
    assert angles.numpy() == pytest.approx(np.tile(pose, (4, 1)), abs=0.05)


def test_too_small_an_input_is_refused():
    with pytest.raises(ValueError, match="--input-size 16"):
        build_asmnet(input_size=16)


@pytest.mark.parametrize("size", [32, 64, 96, 112, 128, 160, 192, 224, 256])
def test_parameters_of_the_spatial_head_at_every_input_size(size):
    """2,560 of the projection, 64 of its batch norm, 256 more inputs to 139 outputs."""
    assert build_asmnet(input_size=size, head="spatial").count_params() == 1_439_507 + 2_560 + 64 + 256 * 139
    assert 1_439_507 + 2_560 + 64 + 256 * 139 == 1_477_715 <= 1_480_000


def test_the_spatial_head_knows_where():
    """Moved along its map, a feature is pooled to the same number but lands in another of the 16 cells."""
    model = build_asmnet(input_size=224, head="spatial")
    assert model.get_layer("features_spatial").output.shape[-1] == 536 + 256
    tail = keras.Model(model.get_layer("spatial_grid").input, model.get_layer("spatial").output)
    maps = np.zeros((3, 7, 7, SPATIAL_CHANNELS), np.float32)
    maps[0, 0, 0, 5] = maps[1, 0, 6, 5] = 1.0
    maps[2] = 0.25
    cells = tail(maps).numpy().reshape(3, 4, 4, SPATIAL_CHANNELS)
    assert cells[0, 0, 0, 5] == cells[1, 0, 3, 5] == pytest.approx(0.625**2)  # 7 to 4: the first cell is at 0.375
    assert np.count_nonzero(cells[:2]) == 2
    assert cells[2] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="'round'"):
        build_asmnet(head="round")
    with pytest.raises(ValueError, match="mobilenet_v2 has the pooled one only"):
        build_mobilenet_v2(head="spatial")


def test_weights_of_a_small_input_fit_a_large_one(tmp_path, capsys):
    """All layers of a 112 px model, heads too, go into one of 224 px; of the spatial head, all but the heads."""
    small = build_asmnet(input_size=112, head="spatial")
    checkpoints.save_model(small, tmp_path / "best.keras", {})
    weighted = [layer.name for layer in small.layers if layer.weights]
    large = build_asmnet(input_size=224, head="spatial")
    start = checkpoints.read_weights(str(tmp_path / "best.keras"), (-1.0, 1.0))
    assert checkpoints.set_weights(large, start, SQUARE) == weighted
    for name in weighted:
        for a, b in zip(large.get_layer(name).get_weights(), small.get_layer(name).get_weights()):
            assert np.array_equal(a, b), name
    pooled = build_asmnet(input_size=64)
    assert not capsys.readouterr().err
    assert len(checkpoints.set_weights(pooled, start, SQUARE)) == len(weighted) - 4
    told = capsys.readouterr().err
    assert "its landmark head sees 792 features, here 536, so heads begin anew. Is it of another --head" in told


def test_weights_of_the_pooled_head_start_a_spatial_one_that_says_the_same(tmp_path):
    pooled = build_asmnet(input_size=96)
    for name in ("O_L", "O_P"):
        pooled.get_layer(name).kernel.assign(pooled.get_layer(name).kernel * 1e3)  # untrained features are small
    checkpoints.save_model(pooled, tmp_path / "pooled.keras", {})
    spatial = build_asmnet(input_size=96, head="spatial")
    start = checkpoints.read_weights(str(tmp_path / "pooled.keras"), (-1.0, 1.0))
    received = checkpoints.set_weights(spatial, start, SQUARE)
    weighted = {layer.name for layer in spatial.layers if layer.weights}
    assert weighted - set(received) == {"spatial_project", "spatial_project_BN"}
    freeze_batch_norm(spatial, received)  # the batch norm that is new goes on learning
    trained = [layer.name for layer in spatial.layers if "BatchNorm" in type(layer).__name__ and layer.trainable]
    assert trained == ["spatial_project_BN"]
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.float32)
    for before, after in zip(pooled(images), spatial(images)):
        assert np.std(before, axis=0).max() > 1e-3
        assert np.asarray(after) == pytest.approx(np.asarray(before), rel=1e-4, abs=1e-4)


@pytest.mark.slow  # quick: test_export.test_a_spatial_head_too, test_scripts.test_saved_model_runs_without_this_package
def test_the_spatial_head_saves_and_exports_without_this_package(tmp_path, run_python):
    model = build_asmnet(input_size=96, head="spatial")
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype(np.float32)
    checkpoints.save_model(model, tmp_path / "best.keras", {})
    np.savez(tmp_path / "expected.npz", images, *(np.asarray(output) for output in model(images)))
    code = (
        "import sys, keras, numpy as np, tensorflow as tf\n"
        "folder = sys.argv[1]\n"
        "model = keras.models.load_model(f'{folder}/best.keras')\n"
        "assert 'asmnet_tf' not in sys.modules\n"
        "images, *expected = np.load(f'{folder}/expected.npz', allow_pickle=False).values()\n"
        "lite = tf.lite.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert())\n"
        "run = lite.get_signature_runner()\n"
        "lites = run(**{next(iter(run.get_input_details())): images})\n"
        "for output, wanted in zip(model(images), expected):\n"
        "    (mine,) = (v for v in lites.values() if v.shape == wanted.shape)\n"
        "    for got in (np.asarray(output), mine):\n"
        "        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max(), np.abs(got - wanted).max()\n"
    )
    run_python("-I", "-c", code, tmp_path)


def test_only_stock_keras_layers(asmnet):
    assert all(type(layer).__module__.startswith("keras.") for layer in asmnet.layers)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_by_name_from_each_format(asmnet, tmp_path):
    keras2 = tmp_path / "old.h5"
    with h5py.File(keras2, "w") as file:  # the layout Keras 2 writes: layer_names, then weight_names in each group
        root = file.create_group("model_weights")
        weighted = [layer for layer in asmnet.layers if layer.weights]
        root.attrs["layer_names"] = [layer.name.encode() for layer in weighted]
        for layer in weighted:
            group = root.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0" for w in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, w in zip(names, layer.weights):
                group[name] = w.numpy()
    checkpoints.save_model(asmnet, tmp_path / "m.keras", {})
    asmnet.save_weights(tmp_path / "m.weights.h5")
    backbone = [layer.name for layer in asmnet.layers if layer.weights and not layer.name.startswith("O_")]
    for path in (keras2, tmp_path / "m.keras", tmp_path / "m.weights.h5"):
        same, other = build_asmnet(68, 32), build_asmnet(98, 32)
        start = checkpoints.read_weights(str(path), (0.0, 1.0))
        assert set(checkpoints.set_weights(same, start, SQUARE)) == {*backbone, "O_L", "O_P"}, path.name
        assert set(checkpoints.set_weights(other, start, SQUARE)) == {*backbone, "O_P"}, path.name  # O_L does not fit
        assert start.input_range == ((-1.0, 1.0) if path.suffix == ".keras" else (0.0, 1.0))
        for name in (*backbone, "O_L", "O_P"):
            for a, b in zip(same.get_layer(name).get_weights(), asmnet.get_layer(name).get_weights()):
                assert np.array_equal(a, b), (path.name, name)


@pytest.mark.parametrize("head", ["pooled", "spatial"])
def test_a_head_for_other_points_is_fitted_to_what_the_old_head_says(asmnet, tmp_path, head):
    """On images that are their own mirror image: heights that the old head knows are found, and what is symmetric."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    half = np.repeat(np.repeat(rng.integers(0, 256, (60, 8, 4, 3), np.uint8), 8, axis=1), 8, axis=2)
    images = np.concatenate([half, half[:, :, ::-1]], axis=2)
    old = keras.models.clone_model(asmnet)
    start_at_mean(old, rng.uniform(-0.4, 0.4, 136), np.zeros(3))
    features = keras.Model(old.input, old.get_layer("features").output).predict(images, verbose=0)
    old.get_layer("O_L").kernel.assign(rng.normal(size=(536, 136)) * 0.02 / features.std())
    heights = old.predict(images, verbose=0)[0].reshape(60, 68, 2)[:, [3, 40, 60], 1]
    shapes = np.zeros((60, 3, 2), np.float32)
    shapes[..., 1] = heights
    shapes[:, :2, 0] = [-0.3, 0.25]
    shapes[:, :2, 1] = shapes[:, :1, 1]
    checkpoints.save_model(old, tmp_path / "old.keras", {})
    start = checkpoints.read_weights(str(tmp_path / "old.keras"), (-1.0, 1.0))
    new = build_asmnet(3, 64, dropout=0.0, head=head)
    checkpoints.set_weights(new, start, ("tight", 1.0))
    batches, shapes = [images[:40], images[40:]], shapes.reshape(60, 6)
    assert checkpoints.fit_landmark_head(new, start, batches, shapes, [1, 0, 2])
    found = new.predict(images, verbose=0)[0]
    np.testing.assert_allclose(found[:, 1::2], shapes[:, 1::2], atol=0.02 * np.ptp(heights))
    np.testing.assert_allclose(found[:, [0, 2]], np.tile([-0.275, 0.275], (60, 1)), atol=1e-3)
    other = build_mobilenet_v2(3, 64)
    assert not checkpoints.fit_landmark_head(other, start, batches, shapes, [1, 0, 2])  # it has other features


def test_heads_are_fitted_in_closed_form_as_by_ridge_regression():
    """As scikit-learn's on standardised features, of what each head is off; with a strong ridge only the means move."""
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 3))
    features = keras.layers.Flatten()(image)
    model = keras.Model(
        image, [keras.layers.Dense(units, name=name)(features) for units, name in ((6, "O_L"), (3, "O_P"))]
    )
    rng = np.random.default_rng(0)
    images, wanted = rng.normal(2.0, 3.0, (90, 4, 4, 3)).astype(np.float32), rng.normal(size=(90, 9))
    batches = [(images[:40], wanted[:40, :6], wanted[:40, 6:]), (images[40:], wanted[40:, :6], wanted[40:, 6:])]
    before, start = np.concatenate(model.predict(images, verbose=0), axis=1), model.get_weights()
    x = StandardScaler().fit_transform(images.reshape(90, -1))
    expected = before + Ridge(90 * 0.3).fit(x, wanted - before).predict(x)
    checkpoints.fit_heads(model, ["O_L", "O_P"], batches, 0.3)
    np.testing.assert_allclose(np.concatenate(model.predict(images, verbose=0), axis=1), expected, atol=1e-4)
    model.set_weights(start)
    checkpoints.fit_heads(model, ["O_P"], [(image, pose) for image, _, pose in batches], 1e9)
    landmarks, pose = model.predict(images, verbose=0)
    np.testing.assert_array_equal(landmarks, before[:, :6])
    np.testing.assert_allclose(pose, before[:, 6:] + (wanted - before)[:, 6:].mean(axis=0), atol=1e-4)


def test_weights_say_their_input_range_and_crop(tmp_path, capsys):
    """Else a network would be fed other numbers than it was trained with, or find landmarks in other units."""
    model = build_asmnet(68, 32, input_range=(0.0, 1.0))
    checkpoints.save_model(model, tmp_path / "a.keras", {"crop": "tight", "crop_scale": 1.0})
    start = checkpoints.read_weights(str(tmp_path / "a.keras"), (-1.0, 1.0))
    assert (start.input_range, start.crop) == ((0.0, 1.0), ("tight", 1.0))
    assert "O_L" in checkpoints.set_weights(build_asmnet(68, 32), start, ("tight", 1.0))
    with pytest.raises(InputError, match=r"tight crops of 1 x the box, this run has square ones of 1\.2"):
        checkpoints.set_weights(build_asmnet(68, 32), start, SQUARE)
    assert "O_L" not in checkpoints.set_weights(build_asmnet(98, 32), start, SQUARE)  # a backbone has no crop
    backbone = keras.Model(model.inputs, model.get_layer("block_15_add").output)
    backbone.save_weights(tmp_path / "b.weights.h5")
    capsys.readouterr()
    assert checkpoints.read_weights(str(tmp_path / "b.weights.h5"), (0.0, 1.0)).input_range == (-1.0, 1.0)
    assert "b.weights.h5: does not say its input range" in capsys.readouterr().err


def test_foreign_weights_are_refused(tmp_path):
    text = tmp_path / "x.h5"
    text.write_text("no hdf5")
    with pytest.raises(InputError, match=r"x\.h5: no weights can be read"):
        checkpoints.read_weights(str(text), (-1.0, 1.0))
    other = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="elsewhere")]).save_weights(other)
    with pytest.raises(InputError, match="no layer of this model in it"):
        checkpoints.set_weights(build_asmnet(68, 32), checkpoints.read_weights(str(other), (-1.0, 1.0)), SQUARE)


def test_nan_weights_are_refused(asmnet, tmp_path):
    model = keras.models.clone_model(asmnet)
    kernel = model.get_layer("Conv1").kernel
    kernel.assign(kernel.numpy() * np.nan)
    model.save_weights(tmp_path / "nan.weights.h5")
    start = checkpoints.read_weights(str(tmp_path / "nan.weights.h5"), (-1.0, 1.0))
    with pytest.raises(InputError, match="layer Conv1 holds values that are not finite"):
        checkpoints.set_weights(build_asmnet(68, 32), start, SQUARE)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saved_and_loaded(asmnet, tmp_path):
    checkpoints.save_model(asmnet, tmp_path / "best.keras", {"crop": "tight"})
    loaded, sidecar = checkpoints.load_model(tmp_path / "best.keras")
    assert sidecar == {"crop": "tight"}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    for a, b in zip(loaded(images), asmnet(images)):
        assert a.numpy() == pytest.approx(b.numpy(), abs=1e-5)


def test_a_model_that_cannot_be_loaded_is_named_and_the_old_one_kept(asmnet, tmp_path):
    path = tmp_path / "best.keras"
    checkpoints.save_model(asmnet, path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"best\.keras: not a model that Keras loads \(truncated"):
        checkpoints.load_model(path)
    with pytest.raises(InputError, match="no such model"):
        checkpoints.load_model(tmp_path / "none.keras")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="expected landmarks"):
        checkpoints.load_model(tmp_path / "other.keras")


def test_lambda_layers_are_refused(tmp_path):
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match="not a model that Keras loads"):
        checkpoints.load_model(tmp_path / "lambda.keras")


# --- fused batch norm -------------------------------------------------------------------------------------------------


@pytest.fixture
def batch_norms():
    """The stock layer and one to be run by the fused kernel, with the same weights, and an input."""
    rng = np.random.default_rng(1)
    layers = [keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3) for _ in range(2)]
    for layer in layers:
        layer.build((None, 6, 5, 4))
        layer.set_weights(
            [np.array(w, np.float32) for w in (rng.uniform(0.5, 2, 4), rng.normal(size=4), [0] * 4, [1] * 4)]
        )
    layers[1].set_weights(layers[0].get_weights())
    return *layers, tf.constant(rng.normal(3.0, 2.0, (3, 6, 5, 4)), tf.float32)


def test_fused_layer_equals_stock_in_outputs_gradients_and_statistics(batch_norms):
    stock, wrapped, inputs = batch_norms
    recorded = []
    fused = FusedBatchNormalization(wrapped, lambda *statistics: recorded.append(statistics))
    target = tf.constant(np.random.default_rng(2).normal(size=inputs.shape), tf.float32)

    def run(layer, variables):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.square(outputs - target))
        return outputs, tape.gradient(loss, [inputs, *(v.value for v in variables)])

    start = [stock.moving_mean.numpy(), stock.moving_variance.numpy()]
    ours, our_gradients = run(fused, [wrapped.gamma, wrapped.beta])
    theirs, their_gradients = run(stock, [stock.gamma, stock.beta])
    assert ours.numpy() == pytest.approx(theirs.numpy(), abs=1e-5)
    for a, b in zip(our_gradients, their_gradients):
        assert a.numpy() == pytest.approx(b.numpy(), rel=1e-5, abs=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(wrapped.get_weights()[2:], start))  # left alone
    ((layer, *statistics),) = recorded
    assert layer is wrapped
    for moving, before, batch in zip((stock.moving_mean, stock.moving_variance), start, statistics):
        assert moving.numpy() == pytest.approx(before * 0.9 + batch.numpy() * 0.1, abs=1e-5)
    # in inference the two are the same code
    wrapped.set_weights(stock.get_weights())
    assert fused(inputs, training=False).numpy() == pytest.approx(stock(inputs, training=False).numpy(), abs=1e-5)


def test_training_graph_shares_every_variable_and_leaves_nothing_in_the_model(asmnet):
    graph = TrainingGraph(asmnet)
    assert {id(v) for v in graph.model.trainable_variables} == {id(v) for v in asmnet.trainable_variables}
    assert sum(isinstance(layer, FusedBatchNormalization) for layer in graph.model.layers) == 48
    assert sum(isinstance(layer, SamePaddedDepthwise) for layer in graph.model.layers) == 4
    ours = (FusedBatchNormalization, SamePaddedDepthwise)
    assert not any(isinstance(layer, ours) for layer in asmnet.layers)


@pytest.mark.parametrize("size", [64, 75])
def test_training_graph_equals_the_stock_model_in_training(size):
    """75: maps of 38, 19, 10, 5 pixels, so that the padding of odd and even sides is compared."""
    model = build_asmnet(input_size=size, dropout=0.0)
    images = tf.random.stateless_uniform((8, size, size, 3), (1, 2)) * 255
    start = model.get_weights()
    ours = [o.numpy() for o in TrainingGraph(model).model(images, training=True)]
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), start))  # the statistics are left alone
    theirs = [o.numpy() for o in model(images, training=True)]
    for a, b in zip(ours, theirs):
        assert a == pytest.approx(b, abs=2e-3)  # 48 normalisations of maps as small as 2 x 2 in a row


@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("arch", ["asmnet", "mobilenet_v2"])
def test_folded_model_equals_the_model_in_inference(arch, size):
    model = BUILDERS[arch](input_size=size)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.moving_mean.shape
            gamma, variance = (rng.uniform(0.5, 1.5, shape) for _ in range(2))
            layer.set_weights([gamma, rng.normal(size=shape), rng.normal(size=shape) * 0.1, variance])
    images = tf.constant(rng.uniform(0, 255, (3, size, size, 3)), tf.float32)
    folded = folded_model(model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    for a, b in zip(folded(images), model(images, training=False)):
        assert a.numpy() == pytest.approx(b.numpy(), abs=1e-5 * float(tf.reduce_max(tf.abs(b))))


@pytest.mark.parametrize("kind", ["relu between", "activation", "dilation", "no scale", "two followers", "plain"])
def test_only_what_the_fold_computes_is_folded(kind):
    image = keras.Input((32, 32, 3))
    more = {"activation": {"activation": "relu"}, "dilation": {"dilation_rate": 2}}.get(kind, {})
    seen = convolved = keras.layers.Conv2D(8, 3, use_bias=False, name="c1", **more)(image)
    if kind == "relu between":
        seen = keras.layers.ReLU()(seen)
    scaled = {"scale": kind != "no scale", "center": kind != "no scale"}
    norm = keras.layers.BatchNormalization(name="c1_bn", **scaled)
    seen = norm(seen)
    if kind == "two followers":
        seen = keras.layers.Add()([seen, convolved])
    model = keras.Model(image, seen)
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 2, w.shape) for w in norm.get_weights()])
    images, folded = tf.constant(rng.uniform(0, 1, (2, 32, 32, 3)), tf.float32), folded_model(model)
    assert any(isinstance(x, keras.layers.BatchNormalization) for x in folded.layers) == (kind != "plain")
    np.testing.assert_allclose(folded(images), model(images, training=False), atol=1e-5)


def test_reestimated_statistics_are_plain_averages(batch_norms):
    _, layer, inputs = batch_norms
    source = keras.Input(inputs.shape[1:])
    model = keras.Model(source, layer(source))
    graph = TrainingGraph(model)
    batches = [inputs, inputs * 2 + 1, inputs * 0.5 - 3]
    graph.reestimate_statistics(batches)
    means = [b.numpy().mean(axis=(0, 1, 2)) for b in batches]
    variances = [b.numpy().var(axis=(0, 1, 2)) for b in batches]
    assert layer.moving_mean.numpy() == pytest.approx(np.mean(means, axis=0), abs=1e-5)
    assert layer.moving_variance.numpy() == pytest.approx(np.mean(variances, axis=0), rel=1e-5)


def test_mixed_precision_model_is_saved_in_float32(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build_asmnet(input_size=32)
        TrainingGraph(model).model(tf.zeros((2, 32, 32, 3)), training=True)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    checkpoints.save_model(model, tmp_path / "m.keras", {})
    loaded = checkpoints.load_model(tmp_path / "m.keras")[0]
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
    for a, b in zip(loaded.get_weights(), model.get_weights()):
        assert np.array_equal(a, b)
