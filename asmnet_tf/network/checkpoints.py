"""Models and weights on disk: `.keras` files with their side-cars, start weights of other files (Keras)."""

import io
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf

from asmnet_tf.data.geometry import flip_landmarks
from asmnet_tf.data.sidecars import FOLDER, crop_of, find_model, pretrained_path, read_sidecar, sidecar_path
from asmnet_tf.files import (
    BROKEN_HDF5,
    InputError,
    check_archive,
    check_dataset,
    read_dataset,
    refusing,
    replacing,
    write_text,
)
from asmnet_tf.network import check_keras, keras

layers = keras.layers
IMAGENET_RANGE = (-1.0, 1.0)  # what Keras' MobileNetV2 weights are fed
RIDGES = np.logspace(-6, 2, 17)  # of 21 points, 20 to 1,812 faces chose 1e-2.5 to 1e-2

# --- weights from elsewhere -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartWeights:
    """Weights of another model, and how it sees a face.

    layers: arrays by layer name, in the order Keras lists them. input_range: what pixels 0 and 255 become before its
    first convolution. crop: (crop, scale), or None where that is not known; a backbone alone has none.
    """

    source: str
    layers: dict[str, list[np.ndarray]]
    input_range: tuple[float, float]
    crop: tuple[str, float] | None = None


def read_weights(source: str, input_range: tuple[float, float]) -> StartWeights:
    """Reads weights by layer name; what a file does not tell is assumed, and that is said on stderr.

    Args:   source: `imagenet`, a shipped name, or a file: `.keras`, Keras 3 `.weights.h5`, Keras 2 whole-model or
            weight-only `.h5` (heads are taken as they are: see `keras_runners.read_start_weights`).
            input_range: assumed of a whole ASMNet in a file of weights alone; of a backbone it is ImageNet's (-1, 1).
    Raises: InputError if the file cannot be read.
    """
    if source == "imagenet":
        with refusing("--weights imagenet: download failed", then="Give a file instead."):
            donor = keras.applications.MobileNetV2(include_top=False, weights="imagenet")
        return StartWeights(source, {layer.name: layer.get_weights() for layer in donor.layers}, IMAGENET_RANGE)
    path = find_model(source)
    if path.suffix == ".keras":
        model, sidecar = load_model(path)
        scaling = next((x for x in model.layers if isinstance(x, layers.Rescaling)), layers.Rescaling(1.0))
        seen = float(scaling.offset), float(255.0 * scaling.scale + scaling.offset)
        crop = crop_of(path, sidecar) if sidecar else None
        return StartWeights(source, {layer.name: layer.get_weights() for layer in model.layers}, seen, crop)
    stored = _read_layer_weights(path)
    assumed = input_range if "O_L" in stored else IMAGENET_RANGE
    told = f"{source}: does not say its input range; {assumed[0]:g} to {assumed[1]:g} is assumed"
    print(told if "O_L" in stored else f"{told}, as of ImageNet weights", file=sys.stderr)
    return StartWeights(source, stored, assumed)


def set_weights(model: keras.Model, start: StartWeights, crop: tuple[str, float]) -> list[str]:
    """Copies weights by layer name into a model; layers that the source lacks stay as they are.

    Arrays of another shape are an error, except in the heads (`O_L`, `O_P`), which belong to a number of landmarks and
    a kind of head: pooled ones become spatial ones that say the same, others are left alone; see `fit_landmark_head`.
    Returns the names of the layers that received weights; with "O_L" among them the model is whole.

    Raises: InputError if there is no layer of this model, or its landmarks are not of the (crop, scale) to train in.
    """
    received = []
    for layer in model.layers:
        arrays = start.layers.get(layer.name)
        if not layer.weights or not arrays:
            continue
        if layer.name in ("O_L", "O_P"):
            arrays = _as_spatial_head(model, arrays)
            if [tuple(w.shape) for w in layer.weights] != [a.shape for a in arrays]:
                continue
        set_layer_weights(layer, arrays, start.source)
        received.append(layer.name)
    if not received:
        expected = "Expected MobileNetV2 layer names (Conv1, block_1_...)"
        raise InputError(f"{start.source}: no layer of this model in it. {expected}.")
    if "O_L" in received and start.crop not in (None, crop):
        raise InputError(
            f"{start.source}: finds landmarks in {start.crop[0]} crops of {start.crop[1]:g} x the box, this run has "
            f"{crop[0]} ones of {crop[1]:g}. Train with --crop {start.crop[0]}, or start from other weights."
        )
    head, theirs = model.get_layer("O_L"), start.layers.get("O_L")
    if theirs and "O_L" not in received and len(_as_spatial_head(model, theirs)[0]) != head.kernel.shape[0]:
        told = f"its landmark head sees {len(theirs[0])} features, here {head.kernel.shape[0]}, so heads begin anew"
        print(f"{start.source}: {told}. Is it of another --head or --arch?", file=sys.stderr)
    low, high = start.input_range
    print(f"{start.source}: weights for {len(received)} layers, pixels become {low:g} to {high:g}")
    return received


def copy_variables(model: keras.Model, to: keras.Model) -> keras.Model:
    """Copies all variables, seeds of random layers too, to the same network of another input size; returns that one."""
    for variable, source in zip(to.variables, model.variables, strict=True):
        variable.assign(np.asarray(source))
    return to


def fit_landmark_head(
    model: keras.Model, start: StartWeights, crops: Iterable[np.ndarray], shapes: np.ndarray, flip_map: list[int]
) -> bool:
    """Gives a model that has the layers of `start`, but other points, a landmark head made from that of `start`.

    Each coordinate becomes a linear function of those that the old head finds: a ridge regression over the faces and
    their mirror images, its strength chosen by leaving one out. No correspondence of the points is needed.

    Args:    crops: network inputs of N training faces, RGB uint8 (n, S, S, 3). shapes: (N, 2L), network units.
    Returns: whether it did, which it says; not where `start` has no landmark head, or one that sees other features.
    """
    from sklearn.linear_model import RidgeCV

    head, stored = model.get_layer("O_L"), start.layers.get("O_L", [])
    old = _as_spatial_head(model, stored) if stored else []
    if len(old) != 2 or old[0].ndim != 2 or old[0].shape[0] != head.kernel.shape[0]:
        return False
    features_of = tf.function(keras.Model(model.input, model.get_layer("dropout").input))
    seen = [np.concatenate([features_of(tf.cast(x, tf.float32)) for x in (b, b[:, :, ::-1])], 1) for b in crops]
    features = np.concatenate(np.split(np.concatenate(seen), 2, axis=1)).astype(np.float64)  # faces, then mirrored ones
    targets = np.concatenate([shapes, flip_landmarks(shapes, flip_map)])
    ridge = RidgeCV(RIDGES).fit(features @ old[0] + old[1], targets)
    head.set_weights([old[0] @ ridge.coef_.T, old[1] @ ridge.coef_.T + ridge.intercept_])
    print(f"{start.source}: of other points, so its landmark head was fitted anew to {len(shapes)} faces")
    return True


def fit_heads(model: keras.Model, names: Sequence[str], batches: Iterable[Sequence[np.ndarray]], ridge: float) -> None:
    """Moves linear heads in closed form to where they fit faces best, for the features as they are.

    In training the heads see augmented faces, whose features have another mean. A head's kernel K becomes K + D: with
    features x and what the head is off by r, both less their means, x over its standard deviation, D minimises
    mean |r - x D|^2 + ridge |D|^2; the bias takes what is left of the means.

    Args: names: of the heads. batches: network inputs (n, S, S, 3), then the target of each head (n, ...).
    """
    heads = [model.get_layer(name) for name in names]
    features_of = tf.function(keras.Model(model.input, heads[0].input))
    moments = 0.0  # of 1, features and errors
    for images, *targets in batches:
        x = np.asarray(tf.cast(features_of(tf.cast(images, tf.float32)), tf.float64))
        off = [y - x @ np.asarray(h.kernel) - np.asarray(h.bias) for h, y in zip(heads, targets)]
        row = np.concatenate([np.ones((len(x), 1)), x, *off], axis=1)
        moments = moments + row.T @ row
    means = moments[0] / moments[0, 0]
    spread, size = moments / moments[0, 0] - np.outer(means, means), x.shape[1]
    x, r = slice(1, 1 + size), slice(1 + size, None)
    scale = np.sqrt(np.maximum(spread.diagonal()[x], 1e-12))
    squares = spread[x, x] / np.outer(scale, scale) + ridge * np.eye(size)
    change = np.linalg.solve(squares, spread[x, r] / scale[:, None]) / scale[:, None]
    shift, ends = means[r] - means[x] @ change, np.cumsum([h.units for h in heads])[:-1]
    for head, by, of in zip(heads, np.split(change, ends, axis=1), np.split(shift, ends)):
        head.kernel.assign(np.asarray(head.kernel) + by)
        head.bias.assign(np.asarray(head.bias) + of)


def _as_spatial_head(model: keras.Model, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays of a pooled head for a spatial one: the features it did not see count nothing at first."""
    sizes = {other.name: other.output.shape[-1] for other in model.layers if other.name.startswith("features")}
    if "features_spatial" not in sizes or arrays[0].ndim != 2 or len(arrays[0]) != sizes["features"]:
        return arrays
    missing = np.zeros((sizes["features_spatial"] - sizes["features"], arrays[0].shape[1]), arrays[0].dtype)
    return [np.concatenate([arrays[0], missing]), *arrays[1:]]


def set_layer_weights(layer: keras.layers.Layer, arrays: list[np.ndarray], source: str | Path) -> None:
    """Gives a layer the arrays read from `source`. Raises: InputError for other shapes or non-finite values."""
    shapes, came = [tuple(w.shape) for w in layer.weights], [a.shape for a in arrays]
    if shapes != came:
        raise InputError(f"{source}: layer {layer.name} is {came}, here {shapes}. Another network?")
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError(f"{source}: layer {layer.name} holds values that are not finite. Use another file.")
    layer.set_weights(arrays)


def _read_layer_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns layer name -> arrays of an `.h5` file, in the order Keras lists them."""
    expected = "Expected .keras, .weights.h5 or .h5."
    with refusing(f"{path}: no weights can be read", BROKEN_HDF5, expected), h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layers" not in root or "layer_names" in root.attrs:
            return read_keras2_weights(root)
        stored: dict[str, list[np.ndarray]] = {}

        def visit(_: str, entry: h5py.Group | h5py.Dataset) -> None:
            if isinstance(entry, h5py.Group) and "name" in entry.attrs and len(entry):
                keys = sorted((key for key in entry if key.isdigit()), key=int)
                stored[str(entry.attrs["name"])] = [_float32(entry, key) for key in keys]

        root.visititems(visit)
        return stored


def _float32(group: h5py.Group, name: str) -> np.ndarray:
    array = read_dataset(group, name)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name[:60]} is {array.dtype}, expected numbers")
    return array.astype(np.float32)


def as_text(attribute: bytes | str) -> str:
    """Returns an attribute of an HDF5 file, or one of its elements, as text."""
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def read_keras2_weights(root: h5py.Group) -> dict[str, list[np.ndarray]]:
    """Returns layer name -> float32 arrays of a Keras 2 weight group, in the order Keras lists them.

    The group is `model_weights` of a whole model, else the root. Raises: one of BROKEN_HDF5 for a damaged file.
    """
    stored: dict[str, list[np.ndarray]] = {}
    for name in map(as_text, root.attrs.get("layer_names", list(root))):
        group = root[name]
        names = [as_text(n) for n in group.attrs.get("weight_names", [])]
        owners = {n.split("/")[-2] if "/" in n else name for n in names}
        for n in names:  # a model used as a layer lists the weights of all its layers in one group
            owner = name if len(owners) == 1 else n.split("/")[-2]
            stored.setdefault(owner, []).append(_float32(group, n))
    return stored


# --- saving and loading -----------------------------------------------------------------------------------------------


def save_model(model: keras.Model, path: str | Path, sidecar: dict) -> None:
    """Writes `<path>` and its side-car JSON, each whole or not at all. Raises: InputError if one cannot be written."""
    if any(layer.compute_dtype != "float32" for layer in model.layers):  # mixed precision: a copy that runs anywhere
        weights = model.get_weights()
        model = keras.models.clone_model(
            model, clone_function=lambda layer: layer.from_config(layer.get_config() | {"dtype": "float32"})
        )
        model.set_weights(weights)
    with replacing(path) as temporary:
        model.save(temporary)
    write_text(sidecar_path(path), json.dumps(sidecar, indent=2) + "\n")


def load_model(path: str | Path) -> tuple[keras.Model, dict]:
    """Loads a `.keras` model, a file or a shipped name, and its side-car; an absent side-car is {}.

    Raises: InputError if either cannot be read or the outputs are not `O_L` (2L) and `O_P` (3).
    """
    check_keras()
    path = find_model(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model. train.py writes best.keras and last.keras in its run folder.")
    with refusing(f"{path}: not a model that Keras loads", then="Save it again."):
        if path.suffix == ".keras" and not zipfile.is_zipfile(path):
            raise ValueError("truncated or no .keras archive")
        _check_network(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        if isinstance(getattr(model, "output", None), dict):  # O_L and O_P by name
            model = keras.Model(model.inputs, model.outputs, name=model.name)
    shapes = [tuple(output.shape) for output in getattr(model, "outputs", [])]
    if len(shapes) != 2 or len(shapes[0]) != 2 or not shapes[0][1] or shapes[0][1] % 2 or shapes[1] != (None, 3):
        raise InputError(f"{path}: outputs of shape {shapes}, expected landmarks (None, 2L) and pose (None, 3).")
    return model, read_sidecar(path)


def _check_network(path: Path) -> None:
    """Checks the network that a `.keras` or `.h5` file describes before anything of it is made.

    Raises: ValueError for a Lambda layer, which Keras' safe mode would run if it names a registered function, for an
        array as `check_dataset`, and for layers that take more memory than weights of the file fill; else what is
        raised for a damaged file.
    """
    if path.parent == FOLDER:  # ours: not made twice, which takes as long as loading it
        return
    weights, text = path, None
    if zipfile.is_zipfile(path):
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            text, weights = archive.read("config.json"), io.BytesIO(archive.read("model.weights.h5"))

    def check(name: str, entry: h5py.Group | h5py.Dataset) -> None:
        if isinstance(entry, h5py.Dataset):
            check_dataset(name, entry)

    with h5py.File(weights, "r") as file:
        text, stored = text or file.attrs["model_config"], file.id.get_filesize()
        file.visititems(check)

    def look(entry: dict) -> dict:
        if entry.get("class_name") == "Lambda":
            raise ValueError("it holds a Lambda layer, which is code, and code of a file is never run")
        return entry

    config = json.loads(text, object_hook=look)
    with tf.Graph().as_default():  # in it variables have shapes, but no content
        if config["class_name"] == "Functional":
            model = keras.Model.from_config(config["config"])
        else:
            model = keras.saving.deserialize_keras_object(config | {"compile_config": None}, safe_mode=True)
    needed = sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in model.variables)
    if needed > 2 * stored:  # twice, for kernels stored as float16
        raise ValueError(f"its layers take {needed / 1e6:.0f} MB, its weights fill {stored / 1e6:.1f}")


def load_pretrained(name: str) -> keras.Model:
    """Loads a model that ships with the package, as at the top of `asmnet.py`; `pretrained_sidecar` tells its crop.

    Raises: InputError that lists `pretrained_names()`, for another name.
    """
    return load_model(pretrained_path(name))[0]
