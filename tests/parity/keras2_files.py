"""Writes model files in the release's format with tf_keras, and what tf_keras computes with them.

    python keras2_files.py FOLDER           # the files that the tests read, each with <name>.npz: inputs and outputs
    python keras2_files.py FOLDER a.h5 ...  # what tf_keras computes with these, of the pixels in <name>.npy if there

The release's graph is built from its description on tf_keras' MobileNetV2; weights and batch-norm
statistics are random, such that every layer matters in the outputs. TensorFlow 2.3 pads `Conv1` by a layer of its own.
"""

import functools
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import numpy as np
import tf_keras as keras

TAPS = ("block_1_project_BN", "block_3_project_BN", "block_6_project_BN", "block_10_project_BN", "block_13_project_BN")


@functools.cache
def mobilenet(size):
    """One for all models of a size, for a build takes seconds; each draws its weights anew and is written before."""
    return keras.applications.MobileNetV2(input_shape=(size, size, 3), alpha=1.0, include_top=True, weights=None)


def build(kind, num_landmarks, size, dropout=0.3):
    base = mobilenet(size)
    if kind == "asmnet":
        taps = [*TAPS, "block_15_add"]
        pooled = [keras.layers.GlobalAveragePooling2D()(base.get_layer(name).output) for name in taps]
        features = keras.layers.Concatenate()(pooled)
    else:
        features = base.layers[-2].output  # the pooled features, under the name that Keras chose
    if dropout:
        features = keras.layers.Dropout(dropout)(features)
    l2 = keras.regularizers.l2(0.01)
    settings = {"activation": keras.activations.linear, "kernel_regularizer": l2, "bias_regularizer": l2}
    outputs = [
        keras.layers.Dense(2 * num_landmarks, name="O_L", **settings)(features),
        keras.layers.Dense(3, name="O_P", **settings)(features),
    ]
    return randomise(keras.Model(base.input, outputs))


def randomise(model, seed=0):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        shapes = [w.shape for w in layer.get_weights()]
        if isinstance(layer, keras.layers.BatchNormalization):
            n = shapes[0]
            layer.set_weights([rng.uniform(0.7, 1.3, n), *rng.normal(0, 0.2, (2, *n)), rng.uniform(0.5, 1.5, n)])
        elif shapes:
            scale = [1.0 / np.sqrt(max(1, np.prod(shape[:-1]))) for shape in shapes]
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                scale = [0.5]
            layer.set_weights([rng.normal(0, s, shape) for s, shape in zip(scale, shapes)])
    return model


def as_in_2020(model):
    """The same network with `Conv1_pad` in front of `Conv1`, as TensorFlow 2.3 builds it."""
    config = model.get_config()
    index = next(i for i, layer in enumerate(config["layers"]) if layer["name"] == "Conv1")
    conv = config["layers"][index]
    source = conv["inbound_nodes"]
    config["layers"].insert(
        index,
        {
            "class_name": "ZeroPadding2D",
            "config": {"name": "Conv1_pad", "padding": ((0, 1), (0, 1))},
            "name": "Conv1_pad",
            "inbound_nodes": source,
        },
    )
    conv["config"]["padding"], conv["inbound_nodes"] = "valid", [[["Conv1_pad", 0, 0, {}]]]
    old = keras.Model.from_config(config)
    old.set_weights(model.get_weights())
    return old


def age(path):
    """Gives a file the attributes of 2020: fixed-length bytes, Keras 2.4, and settings that did not exist left out."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            for key in ("groups", "keepdims", "optional"):
                layer["config"].pop(key, None)
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config).encode()
        for place in (file, file["model_weights"]):
            for key, value in {"keras_version": b"2.4.3", "backend": b"tensorflow"}.items():
                del place.attrs[key]
                place.attrs[key] = np.bytes_(value)


def outputs_of(model, path):
    size = model.input_shape[1]
    given = Path(path).with_suffix(".npy")
    random = np.random.default_rng(7).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    pixels = np.load(given, allow_pickle=False) if given.is_file() else random
    landmarks, pose = model(pixels.astype(np.float32) / np.float32(255), training=False)
    np.savez(Path(path).with_suffix(".npz"), pixels=pixels, O_L=landmarks.numpy(), O_P=pose.numpy())


def write(folder):
    for kind in ("asmnet", "mobilenet_v2"):
        for count in (68, 98):
            model = build(kind, count, 64)
            path = folder / f"{kind}_{count}.h5"
            if count == 68:
                model.save_weights(folder / f"{kind}_weights_only.h5")
                outputs_of(model, folder / f"{kind}_weights_only.h5")
                model = as_in_2020(model)
            else:  # with optimiser state
                model.compile(keras.optimizers.legacy.Adam(1e-9), loss="mse")
                model.optimizer._create_all_weights(model.trainable_variables)  # as its first step does
            model.save(path)
            if count == 68:
                age(path)
            outputs_of(model, path)
    big = as_in_2020(build("asmnet", 68, 224))
    big.save(folder / "ASMNet_300W_ASMLoss.h5")
    age(folder / "ASMNet_300W_ASMLoss.h5")
    outputs_of(big, folder / "ASMNet_300W_ASMLoss.h5")
    # others
    resnet = keras.applications.ResNet50(input_shape=(64, 64, 3), weights=None, include_top=False)
    keras.Model(resnet.input, resnet.get_layer("conv2_block3_out").output).save(folder / "resnet.h5")
    keras.applications.MobileNetV2(input_shape=(64, 64, 3), alpha=0.5, weights=None).save(folder / "narrow.h5")
    backbone = keras.Model(mobilenet(64).input, mobilenet(64).get_layer("out_relu").output)
    backbone.save_weights(folder / "backbone.h5")
    backbone.save(folder / "headless.h5")
    keras.Sequential([keras.layers.Dense(2, input_shape=(3,))]).save(folder / "sequential.h5")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        outputs_of(keras.models.load_model(folder / name), folder / name)
    if not sys.argv[2:]:
        write(folder)
