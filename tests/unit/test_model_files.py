"""Every kind of model file gives the numbers of the `.keras` model it was made from, or one line on what is wrong.

The network is one convolution with random heads, so that a mix-up of outputs, pixels or scales moves landmarks by many
pixels; tests/e2e/test_model_comparison.py does the same with a trained ASMNet.
"""

import json
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.scoring import score_model
from asmnet_tf.evaluation.truth import unique_names
from asmnet_tf.files import InputError
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network.asmnet import count_multiply_adds
from asmnet_tf.network.checkpoints import save_model

SPEC = DATASETS["300w"]
SIZE = 32
FLOAT_FORMATS = ["float.tflite", "nameless.tflite", "batch4.tflite", "saved", "batch4_saved"]


def build_small() -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    pixels = keras.layers.Rescaling(1 / 255, offset=-0.5)(image)
    features = keras.layers.Flatten()(keras.layers.Conv2D(8, 8, strides=8, activation="relu")(pixels))
    heads = [keras.layers.Dense(n, kernel_initializer="glorot_normal", name=k)(features) for k, n in HEADS.items()]
    return keras.Model(image, heads)


HEADS = {"O_L": 136, "O_P": 3}


def convert(converter, path, **settings) -> None:
    for key, value in settings.items():
        setattr(converter, key, value)
    path.write_bytes(converter.convert())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One model in every format, each with a side-car: see FLOAT_FORMATS, and integer.tflite."""
    folder = tmp_path_factory.mktemp("models")
    model = build_small()
    save_model(model, folder / "model.keras", {"crop": "square", "crop_scale": 1.2, "num_landmarks": 68})
    convert(tf.lite.TFLiteConverter.from_keras_model(model), folder / "float.tflite")
    model.export(folder / "saved", verbose=False)

    def named(image):
        landmarks, pose = model(tf.cast(image, tf.float32), training=False)
        return {"O_P": pose, "O_L": landmarks}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("four", named, input_signature=[tf.TensorSpec([4, SIZE, SIZE, 3], tf.uint8, name="image")])
    archive.write_out(folder / "batch4_saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "batch4_saved"), signature_keys=["four"])
    convert(converter, folder / "batch4.tflite")

    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model(str(folder / "float.tflite"))
    content.signatureDefs = None
    flatbuffer_utils.write_model(content, str(folder / "nameless.tflite"))

    noise = np.random.default_rng(0).integers(0, 256, (20, 1, SIZE, SIZE, 3)).astype(np.float32)
    flat = np.linspace(0, 255, 10, dtype=np.float32)[:, None, None, None, None] * np.ones_like(noise[:1])
    convert(
        tf.lite.TFLiteConverter.from_keras_model(model),
        folder / "integer.tflite",
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([image] for image in (*noise, *flat)),
        inference_input_type=tf.uint8,
        inference_output_type=tf.int8,
    )
    for name in (*FLOAT_FORMATS, "integer"):
        shutil.copy(folder / "model.json", (folder / name).with_suffix(".json"))
    return folder


@pytest.fixture(scope="module")
def samples(faces_300w):
    return read_samples(SPEC, faces_300w, "test", quiet=True)


@pytest.fixture(scope="module")
def reference(folder, samples):
    method = score_model("keras", folder / "model.keras", samples, SPEC, None)
    assert np.ptp(method.landmarks, axis=0).min() > 5  # px, over the faces
    assert np.ptp(method.pose, axis=0).min() > 5  # degrees
    assert (method.info["format"], method.info["parameters"]) == (
        "keras",
        sum(w.size for w in build_small().get_weights()),
    )
    return method


def test_the_mean_with_the_mirror_image_is_put_where_the_model_learned_to_be(folder, samples):
    """The mirrored answer, turned back, is as far left as the other is right."""
    content, spec = json.loads((folder / "model.json").read_text()), replace(SPEC, right_px=3.0)
    shutil.copy(folder / "model.keras", folder / "right.keras")
    (folder / "right.json").write_text(json.dumps(content | {"right_px": 3.0}))
    paths = [folder / "model.keras", folder / "right.keras"]
    plain, right = (score_model("x", path, samples, spec, None, flip=True) for path in paths)
    assert right.landmarks - plain.landmarks == pytest.approx(np.broadcast_to([3.0, 0.0], plain.landmarks.shape))
    once, same = (score_model("x", path, samples, spec, None) for path in paths)
    assert np.array_equal(once.landmarks, same.landmarks)


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_scores_are_those_of_the_keras_model(folder, samples, reference, name):
    assert len(samples) % 4  # the last batch of four is not full
    method = score_model(name, folder / name, samples, SPEC, None)
    far = np.abs(method.landmarks - reference.landmarks).max()
    turned = np.abs(method.pose - reference.pose).max()
    print(f"{name}: {far:.1e} px, {turned:.1e} deg")
    assert far < 1e-3
    assert turned < 1e-3
    assert (method.info["parameters"], method.info["multiply_adds"]) == (None, None)
    assert method.info["crop"] == "square 1.2"
    assert method.info["latency_ms"] > 0


def test_an_integer_model_is_scaled_both_ways(folder, samples, reference):
    method = score_model("integer", folder / "integer.tflite", samples, SPEC, None)
    spread = np.ptp(reference.landmarks, axis=0).mean()
    far = np.abs(method.landmarks - reference.landmarks).mean()
    turned = np.abs(method.pose - reference.pose).mean()
    print(f"{far:.2f} px of {spread:.0f}, {turned:.2f} deg on average")
    assert method.info["format"] == "TFLite uint8"
    assert far < 0.02 * spread
    assert turned < 3


def test_a_file_is_known_by_its_content_too(folder, tmp_path):
    shutil.copy(folder / "float.tflite", tmp_path / "model.bin")
    opened = open_model(tmp_path / "model.bin")
    assert (opened.format, opened.num_landmarks, opened.input_size) == ("TFLite float32", 68, SIZE)
    assert opened.sidecar == {}


def test_costs_come_from_the_side_car_where_the_file_is_silent(folder, tmp_path):
    shutil.copy(folder / "float.tflite", tmp_path / "a.tflite")
    (tmp_path / "a.json").write_text(json.dumps({"parameters": 5, "multiply_adds": True}))
    opened = open_model(tmp_path / "a.tflite")
    assert (opened.parameters, opened.multiply_adds) == (5, None)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match=r"a\.json: not a JSON object"):
        open_model(tmp_path / "a.tflite")
    kept = open_model(folder / "model.keras")
    assert kept.multiply_adds == count_multiply_adds(keras.models.load_model(folder / "model.keras"))


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.5, 0.999, 1.0])
def test_a_tflite_file_cut_short_is_refused(folder, tmp_path, share):
    """The interpreter itself ends the process on most of these (segmentation fault)."""
    content = (folder / "float.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])
    with pytest.raises(
        InputError, match=r"cut\.tflite: not a model that TFLite loads \(.*\)\. Export it again"
    ) as error:
        open_model(path)
    assert "\n" not in str(error.value)


def assert_refused(path, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        open_model(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "text.tflite").write_text("no model at all, but text of some length")
    assert_refused(tmp_path / "text.tflite", "not a TFLite file")
    assert_refused(tmp_path / "absent.tflite", "cannot be read")
    assert_refused(tmp_path / "absent.keras", "no such model")
    (tmp_path / "noise.tflite").write_bytes(b"\x1c\0\0\0TFL3" + np.random.default_rng(0).bytes(5000))
    assert_refused(tmp_path / "noise.tflite", "not a model that TFLite loads")


def test_outputs_in_a_dictionary_are_known_by_their_names(folder, tmp_path, samples, reference):
    model = build_small()
    model = keras.Model(model.input, dict(zip(("O_L", "O_P"), model.outputs)))
    model.load_weights(keras_weights(folder, tmp_path))
    save_model(model, tmp_path / "named.keras", {"crop": "square", "crop_scale": 1.2})
    method = score_model("named", tmp_path / "named.keras", samples, SPEC, None)
    np.testing.assert_allclose(method.landmarks, reference.landmarks, atol=1e-3)


def keras_weights(folder, tmp_path):
    keras.models.load_model(folder / "model.keras").save_weights(tmp_path / "same.weights.h5")
    return tmp_path / "same.weights.h5"


def test_integer_pixels_of_another_range_are_refused(folder, tmp_path):
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model(str(folder / "integer.tflite"))
    pixels = content.subgraphs[0].tensors[content.subgraphs[0].inputs[0]].quantization
    pixels.scale = np.array(pixels.scale) / 255
    flatbuffer_utils.write_model(content, str(tmp_path / "unit.tflite"))
    assert_refused(tmp_path / "unit.tflite", "takes 0 to 1, expected pixels 0..255")


def test_each_saved_model_has_a_side_car_of_its_own(folder, tmp_path, monkeypatch):
    for name in ("net_1.0", "net_1.1"):
        shutil.copytree(folder / "saved", tmp_path / name)
        (tmp_path / f"{name}.json").write_text(json.dumps({"seed": name}))
        assert open_model(tmp_path / name).sidecar == {"seed": name}
    monkeypatch.chdir(tmp_path / "net_1.1")
    assert open_model(".").sidecar == {"seed": "net_1.1"}


def test_saved_models_that_cannot_be_used_are_refused(folder, tmp_path):
    assert_refused(tmp_path, "without saved_model.pb")
    for name, spoil in (
        ("no_graph", lambda path: (path / "saved_model.pb").write_bytes(b"\xff" * 100)),
        ("cut_graph", lambda path: cut(path / "saved_model.pb")),
        ("no_variables", lambda path: shutil.rmtree(path / "variables")),
        ("cut_variables", lambda path: cut(next((path / "variables").glob("*.data*")))),
    ):
        shutil.copytree(folder / "saved", tmp_path / name)
        spoil(tmp_path / name)
        assert_refused(tmp_path / name, "not a SavedModel that TensorFlow loads")


def cut(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_layer(inputs, *units) -> keras.Model:
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    return keras.Model(inputs, [keras.layers.Dense(n)(pooled) for n in units])


@pytest.mark.parametrize(
    ("shape", "units", "words"),
    [
        ((16, 16, 3), (136, 4), r"outputs .*136.*expected landmarks \(B, 2L\) and pose \(B, 3\)"),
        ((16, 16, 3), (136, 196), "outputs"),
        ((16, 16, 3), (137, 3), "outputs"),
        ((16, 16, 1), (136, 3), r"takes input of shape .*expected images \(B, S, S, 3\)"),
        ((16, 12, 3), (136, 3), "takes input of shape"),
        ((None, None, 3), (136, 3), "takes input of shape"),
    ],
)
def test_models_of_another_shape_are_refused(tmp_path, shape, units, words):
    model = one_layer(keras.Input(shape), *units)
    model.export(tmp_path / "other", verbose=False)
    assert_refused(tmp_path / "other", words)
    if None not in shape:
        convert(tf.lite.TFLiteConverter.from_keras_model(model), tmp_path / "other.tflite")
        assert_refused(tmp_path / "other.tflite", words)


def test_names_of_one_run_in_several_formats(tmp_path):
    run = tmp_path / "asm60"
    (run / "saved_v1.0").mkdir(parents=True)
    paths = [run / "best.keras", run / "best.tflite", run / "last.keras", run / "saved_v1.0", tmp_path / "a.tflite"]
    names = [name for name, _ in unique_names(paths, taken=set())]
    assert names == ["asm60", "asm60.tflite", "asm60-2", "saved_v1.0", "a.tflite"]
