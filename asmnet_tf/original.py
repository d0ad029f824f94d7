"""The authors' release (github.com/aliprf/ASMNet, TensorFlow 2.3, Keras 2.4): its model files and its conventions.

The release saves whole models as Keras 2 `.h5`; Keras 3 cannot load them (it stops at `DepthwiseConv2D`). Here the
network that such a file describes is compared, layer by layer, with ours, and its weights go into ours by layer name:
what comes out is a plain functional Keras 3 model. Nothing of the file is executed. The PCA files of the release are
read by `ShapeModel.load_original` (`shape_model.py`, which needs no TensorFlow).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from asmnet_tf.config import DROPOUT, INPUT_SIZE, POSE_RANGE_DEG, crop_scale
from asmnet_tf.engine import keras
from asmnet_tf.files import InputError, first_line, replacing
from asmnet_tf.hdf5 import BROKEN_HDF5, is_hdf5, read_safely
from asmnet_tf.models import BUILDERS, read_keras2_weights, set_layer_weights

HEADS = ("O_L", "O_P")
SUFFIXES = (".h5", ".hdf5")

# --- conventions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """How the numbers that go into and come out of a model relate to ours. It is applied outside the model.

    input_divisor: the model is fed RGB pixels 0..255 over this number.
    landmark_sign: the model's landmarks times this are (p - centre) / size of the crop, our network units.
    pose_unit_deg: the model's yaw, pitch, roll times this are degrees; the signs are HopeNet's, as ours (`pose.py`).
    crop:          the crop frame the model was trained in; of our own models the side-car says it.

    All methods take NumPy arrays and TensorFlow tensors alike.

    Half pixels. The release measures landmarks in crop coordinates 0..S from the left edge of the box and subtracts
    S / 2; ours are pixel indices, -0.5..S - 0.5, minus (S - 1) / 2 (`geometry.py`). Both put the box's edges at +-0.5,
    so no shift is due. Not undone: the release cuts its crops at whole pixels, which moves the image by up to half a
    source pixel against the landmarks, differently for every face.
    """

    name: str
    input_divisor: float
    landmark_sign: float
    pose_unit_deg: float
    crop: str

    @property
    def crop_scale(self) -> float:
        """Side of the crop over the side of the landmark box."""
        return crop_scale(self.crop)

    def to_network_input(self, images: Any) -> Any:
        """RGB pixels 0..255 (..., S, S, 3) -> what the model is fed; float32 for an uint8 array."""
        return images if self.input_divisor == 1.0 else images / np.float32(self.input_divisor)

    def landmarks_to_network_units(self, outputs: Any) -> Any:
        """The model's `O_L` (..., 2L) -> our network units (p - centre) / size."""
        return outputs if self.landmark_sign == 1.0 else outputs * np.float32(self.landmark_sign)

    def pose_to_network_units(self, outputs: Any) -> Any:
        """The model's `O_P` (..., 3) -> yaw, pitch, roll over 65 degrees."""
        return outputs if self.pose_unit_deg == POSE_RANGE_DEG else outputs * np.float32(self.pose_factor)

    @property
    def pose_factor(self) -> float:
        """The model's unit of pose over ours."""
        return self.pose_unit_deg / POSE_RANGE_DEG

    def describe(self) -> str:
        """Returns one line for a report."""
        pixels = "pixels" if self.input_divisor == 1.0 else f"pixels / {self.input_divisor:g}"
        landmarks = "(p - centre) / size" if self.landmark_sign > 0 else "(centre - p) / size"
        return f"{self.name}: input {pixels}, landmarks {landmarks}, pose x {self.pose_unit_deg:g} degrees"


OURS = Convention("ours", 1.0, 1.0, POSE_RANGE_DEG, "square")
RELEASE = Convention("release", 255.0, -1.0, 65.0, "tight")  # paper.md section 6

# --- the network as a list of layers ----------------------------------------------------------------------------------

# What makes a layer compute what it computes, by class; also what an exported file says about it.
_SETTINGS = {
    "InputLayer": (),
    "Rescaling": ("scale", "offset"),
    "ZeroPadding2D": ("padding", "data_format"),
    "Conv2D": (
        *("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate"),
        *("groups", "activation", "use_bias"),
    ),
    "DepthwiseConv2D": (
        *("kernel_size", "strides", "padding", "data_format", "dilation_rate"),
        *("depth_multiplier", "activation", "use_bias"),
    ),
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale"),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Add": (),
    "GlobalAveragePooling2D": ("data_format",),
    "Concatenate": ("axis",),
    "Dropout": ("rate",),
    "Dense": ("units", "activation", "use_bias"),
}
_TRAINING_ONLY = ("momentum", "rate")
_INPUT = "the input"


@dataclass(frozen=True)
class _Layer:
    name: str
    kind: str
    config: dict
    sources: tuple[str, ...]  # names of the layers that feed it


def _layers(config: dict) -> dict[str, _Layer]:
    """Reads the `config` of a functional model, Keras 2 or 3. Raises: KeyError, TypeError, ... where it is none."""

    def sources(node: Any) -> list[str]:
        if isinstance(node, dict) and "keras_history" in node:  # Keras 3: tensors named in nested arguments
            return [node["keras_history"][0]]
        if isinstance(node, dict):
            return [name for value in node.values() for name in sources(value)]
        if isinstance(node, (list, tuple)):
            return [name for value in node for name in sources(value)]
        return []

    found = {}
    for entry in config["layers"]:
        nodes = entry["inbound_nodes"]
        if len(nodes) > 1:
            raise ValueError(f"layer {entry['name']} is applied {len(nodes)} times")
        if nodes and isinstance(nodes[0], list):  # Keras 2: [[name, node, tensor, {}], ...]
            feeding = [str(source[0]) for source in nodes[0]]
        else:
            feeding = sources(nodes)
        kind = entry["class_name"].removesuffix("V1").removesuffix("V2")  # TensorFlow 1 and 2.0: BatchNormalizationV2
        found[entry["name"]] = _Layer(str(entry["name"]), kind, dict(entry["config"]), tuple(feeding))
    return found


def _origin(layers: dict[str, _Layer], name: str) -> str:
    """Returns the layer whose numbers `name` passes on: dropout is left out, and all before the first layer is one."""
    for _ in layers:
        layer = layers[name]
        if layer.kind == "InputLayer" or (layer.kind == "Rescaling" and layers[layer.sources[0]].kind == "InputLayer"):
            return _INPUT
        if layer.kind != "Dropout":
            return name
        name = layer.sources[0]
    raise ValueError(f"layer {name} feeds itself")


def _fed_by(layers: dict[str, _Layer], layer: _Layer) -> list[str]:
    """Returns the origins of a layer's inputs, sorted where their order does not matter."""
    origins = [_origin(layers, name) for name in layer.sources]
    return sorted(origins) if layer.kind == "Add" else origins


def _plain(key: str, value: Any, rank: int) -> Any:
    """Returns a setting so that equal settings compare equal: 3 and [3, 3], axis -1 and [3]."""
    if isinstance(value, (list, tuple)):
        value = tuple(_plain("", v, rank) for v in value)
        if key == "axis" and len(value) == 1:
            value = value[0]
    if key == "axis" and isinstance(value, int):
        return value % rank
    if key in ("kernel_size", "strides", "dilation_rate") and isinstance(value, int):
        return (value, value)
    return round(value, 9) if isinstance(value, float) else value


def _compare(path: Path, theirs: dict[str, _Layer], outputs: list[str], model: keras.Model) -> None:
    """Walks our model from the input on. Raises: InputError that names the first layer that the file has otherwise."""

    def differs(what: str) -> InputError:
        return InputError(f"{path}: {what}. It is not the release's {model.name}; expected ASMNet or MobileNetV2.")

    ours = _layers(model.get_config())
    partner = {_INPUT: _INPUT}
    taken = set()
    for layer in model.layers:
        mine = ours[layer.name]
        if mine.kind in ("InputLayer", "Rescaling", "Dropout"):
            continue
        feeding = [partner[name] for name in _fed_by(ours, mine)]
        if mine.kind == "Add":
            feeding.sort()
        if layer.weights:
            other = theirs.get(mine.name)
            if other is None:
                first = next((name for name, layer in theirs.items() if layer.kind != "InputLayer"), "none")
                raise differs(f"layer {mine.name} is not in it, its first layer is {first}")
            if other.kind != mine.kind:
                raise differs(f"layer {mine.name} is {other.kind}, expected {mine.kind}")
        else:  # names of layers without weights were chosen by Keras (global_average_pooling2d_3) and do not matter
            free = (layer for layer in theirs.values() if layer.kind == mine.kind and layer.name not in taken)
            other = next((layer for layer in free if _fed_by(theirs, layer) == feeding), None)
            if other is None:
                raise differs(f"layer {mine.name} is not in it: no {mine.kind} of {_some(feeding)}")
        sources, config = _fed_by(theirs, other), dict(other.config)
        if _pads_like_same(mine, other, theirs, layer.input.shape[1] if mine.kind == "Conv2D" else 0):
            sources = [_origin(theirs, theirs[other.sources[0]].sources[0])]
            config["padding"] = "same"
        if sources != feeding:
            raise differs(f"layer {mine.name} follows {_some(sources)}, expected {_some(feeding)}")
        for key in _SETTINGS[mine.kind]:
            if key in _TRAINING_ONLY or key not in config:  # an older Keras may lack a setting: it is at its default
                continue
            expected = _plain(key, mine.config.get(key), len(layer.output.shape))
            came = _plain(key, config[key], len(layer.output.shape))
            if came != expected:
                raise differs(f"layer {mine.name} has {key} {came}, expected {expected}")
        partner[mine.name] = other.name
        taken.add(other.name)
    if sorted(outputs) != sorted(HEADS):
        raise differs(f"its outputs are {', '.join(outputs)}, expected {', '.join(HEADS)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pads_like_same(mine: _Layer, other: _Layer, theirs: dict[str, _Layer], size: int) -> bool:
    """Whether `other` pads in a layer of its own (`Conv1_pad`, until TensorFlow 2.3) what `mine` pads by itself."""
    if mine.kind != "Conv2D" or (mine.config["padding"], other.config.get("padding")) != ("same", "valid"):
        return False
    pad = theirs[other.sources[0]]
    sides = (0 if size % 2 == 0 else 1, 1)
    return pad.kind == "ZeroPadding2D" and _plain("padding", pad.config["padding"], 4) == (sides, sides)


# --- reading ----------------------------------------------------------------------------------------------------------


def is_original(path: str | Path) -> bool:
    """Whether a model file is to be read by `load_original_model`: an `.h5` that Keras 3 did not save as a model.

    A damaged or foreign `.h5` counts too: `load_original_model` says what is wrong with it.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        return False
    try:
        with h5py.File(path, "r") as file:
            return "model_config" not in file.attrs or not _keras_version(file).startswith("3")
    except BROKEN_HDF5:
        return True


def holds_heads(path: str | Path) -> bool:
    """Whether a file that `is_original` holds the weights of a whole network in Keras 2's layout, not a backbone's."""
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            return "layer_names" in root.attrs and set(HEADS) <= set(root)
    except BROKEN_HDF5:
        return False  # what reads it next says what is wrong with it


def load_original_model(path: str | Path, input_size: int | None = None) -> tuple[keras.Model, Convention]:
    """Reads a model file of the release, whole or weights only, into our functional model.

    The result gives the file's own numbers for the file's own input, pixels / 255: its `rescaling` layer does nothing
    (or what the file's own does, in files of `export_original`). It is stock Keras 3, without optimiser and with
    dropout as in the file. Outputs are `O_L` (B, 2L), then `O_P` (B, 3). The convention says how to read them.

    Args:
        path: an `.h5` like `ASMNet_300W_ASMLoss.h5` (paper.md section 6).
        input_size: side of the input, for a file that does not fix it (weights only); default 224.
    Returns: (model, RELEASE).
    Raises:  InputError for a file that is no HDF5, is damaged, or whose network is another: it names the first layer
        that differs.
    Differs from the release: it loads such files only with TensorFlow 2.3, and feeds O_L on as it comes.
    """
    path = Path(path)
    architecture, stored = _read(path)
    layers, outputs, size, scale, offset = {}, [], input_size or INPUT_SIZE, 1.0, 0.0
    if architecture is not None:
        try:
            layers = _layers(architecture)
            outputs = [str(output[0]) for output in architecture["output_layers"]]
            size = _input_size(path, layers) or size
            scale, offset = _rescaling(layers)
            if abs(scale) < 0.1:
                raise InputError(f"{path}: rescales by {scale:g}: it wants pixels, the release's models pixels / 255.")
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            reason = first_line(error)
            raise InputError(f"{path}: its model_config is no functional Keras 2 network ({reason}).") from error
    rates = [layer.config.get("rate") for layer in layers.values() if layer.kind == "Dropout"]
    builder = BUILDERS["mobilenet_v2" if "Conv_1" in (layers or stored) else "asmnet"]
    head = next(iter(stored.get(HEADS[0], [])), np.zeros((1, 136)))
    try:
        model = builder(
            max(1, head.shape[-1] // 2),
            size,
            dropout=float(rates[0]) if rates else (0.0 if layers else DROPOUT),
            l2_heads=0.0,
            input_range=(offset, offset + 255.0 * scale),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no network of ours has its settings ({str(error)[:100]}).") from error
    if architecture is not None:
        try:
            _compare(path, layers, outputs, model)
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{path}: its model_config does not hang together ({error}).") from error
    _fill(path, model, stored)
    return model, RELEASE


def _read(path: Path) -> tuple[dict | None, dict[str, list[np.ndarray]]]:
    """Returns the `config` of the network, None in a weight-only file, and layer name -> arrays."""
    if not path.is_file():
        raise InputError(f"{path}: no such model. The release's files are called like ASMNet_300W_ASMLoss.h5.")
    try:
        text, stored = read_safely(lambda: _read_groups(path))
        if text is None:
            return None, stored
        return json.loads(text)["config"], stored
    except InputError:
        raise
    except BROKEN_HDF5 as error:
        whole = is_hdf5(path)
        reason = first_line(error)
        what = f"a truncated or damaged HDF5 file ({reason})" if whole else "not an HDF5 file"
        raise InputError(f"{path}: {what}. Download or save the model again.") from error


def _read_groups(path: Path) -> tuple[str | None, dict[str, list[np.ndarray]]]:
    """Returns the text of `model_config`, None without one, and layer name -> arrays.

    Raises: InputError for a file of another kind, one of BROKEN_HDF5 for a damaged one.
    """
    with h5py.File(path, "r") as file:
        if _keras_version(file).startswith("3") or ("layers" in file and "layer_names" not in file.attrs):
            raise InputError(f"{path}: written by Keras 3, not by the release. Use the .keras file of that model.")
        text = file.attrs.get("model_config")
        root = file["model_weights"] if text is not None else file
        if "layer_names" not in root.attrs:
            raise InputError(f"{path}: HDF5, but no Keras 2 model or weights in it. Is it the right file?")
        return text, {name: arrays for name, arrays in read_keras2_weights(root).items() if arrays}


def _keras_version(file: h5py.File) -> str:
    version = file.attrs.get("keras_version", "")
    return version.decode() if isinstance(version, bytes) else str(version)


def _input_size(path: Path, layers: dict[str, _Layer]) -> int | None:
    """Returns the side of the input, None where the file leaves it open. Raises: InputError unless (S, S, 3)."""
    inputs = [layer for layer in layers.values() if layer.kind == "InputLayer"]
    shapes = [layer.config.get("batch_input_shape", layer.config.get("batch_shape")) for layer in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != shapes[0][2] or shapes[0][3] != 3:
        raise InputError(f"{path}: its inputs are {shapes}, expected one of [None, S, S, 3] (release: 224).")
    return shapes[0][1]


def _rescaling(layers: dict[str, _Layer]) -> tuple[float, float]:
    """Returns scale and offset of a rescaling right behind the input; (1, 0) where there is none."""
    for layer in layers.values():
        if layer.kind == "Rescaling" and layers[layer.sources[0]].kind == "InputLayer":
            return float(layer.config["scale"]), float(layer.config["offset"])
    return 1.0, 0.0


def _fill(path: Path, model: keras.Model, stored: dict[str, list[np.ndarray]]) -> None:
    """Copies all weights by layer name. Raises: InputError for the first layer the file lacks, or has besides."""
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted:
        if layer.name not in stored:
            hint = " A backbone alone is for train.py --weights." if layer.name in HEADS else ""
            first = next(iter(stored), "none")
            raise InputError(
                f"{path}: no weights of layer {layer.name} in it, its first layer is {first}. Expected the release's "
                f"ASMNet or MobileNetV2.{hint}"
            )
        set_layer_weights(layer, stored[layer.name], path)
    extra = [name for name in stored if name not in {layer.name for layer in weighted}]
    if extra:
        raise InputError(f"{path}: has a layer {extra[0]} that the release's {model.name} has not. Another network?")


# --- writing ----------------------------------------------------------------------------------------------------------


def export_original(model: keras.Model, path: str | Path, convention: Convention = OURS) -> None:
    """Writes a model as a whole-model Keras 2 `.h5` in the release's convention, without optimiser.

    `O_L` gets the release's sign (kernel and bias times -1), `O_P` its unit. The file takes pixels / 255. Ours take
    pixels and rescale them in the model, to (-1, 1) by default, that is x -> 2 x - 1 of the file's input. The factor
    could go into the first convolution, the -1 could not: `Conv1` pads with zeros *after* rescaling, so at the border
    the constant is missing from part of its sum, and no bias has that shape. So the file keeps a `Rescaling` layer
    where our rescaling is not the plain / 255. The release's TensorFlow 2.3 has that layer, as
    `experimental.preprocessing.Rescaling`; older versions lack it. (Tested with tf_keras 2.21 only.) A model trained
    with input_range (0, 1), `--recipe paper`, is written without it, of layers that every Keras 2 has.

    The crop is not in the file: the release's crop is the tight one, so train with `--crop tight` for it.

    Args:   model: of `build_asmnet` or `build_mobilenet_v2`, or of `load_original_model`.
            path: ends in .h5. convention: the model's own; RELEASE for what `load_original_model` returned.
    Raises: InputError for another ending, a file that cannot be written, or a layer Keras 2 has not.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the release's format is known by its ending. Call it .h5.")
    config = model.get_config()
    layers = _layers(config)
    for layer in layers.values():
        if layer.kind not in _SETTINGS:
            raise InputError(f"{path}: layer {layer.name} is {layer.kind}, which has no place in the release's format.")
    scale, offset = _rescaling(layers)
    scale = round(scale * RELEASE.input_divisor / convention.input_divisor, 9)
    (source,) = (layer.name for layer in layers.values() if layer.kind == "InputLayer")
    rescaled = (scale, offset) != (1.0, 0.0)

    entries = [
        {
            "class_name": "InputLayer",
            "config": {
                "batch_input_shape": list(model.input_shape),
                "dtype": "float32",
                "sparse": False,
                "name": source,
            },
            "name": source,
            "inbound_nodes": [],
        }
    ]
    if rescaled:
        settings = {"name": "rescaling", "dtype": "float32", "scale": scale, "offset": offset}
        entries.append(_entry("Rescaling", settings, [source]))
    for layer in (layers[layer.name] for layer in model.layers):
        if layer.kind == "InputLayer" or _origin(layers, layer.name) == _INPUT:
            continue
        feeding = [name if _origin(layers, name) != _INPUT else source for name in layer.sources]
        feeding = ["rescaling" if rescaled and name == source else name for name in feeding]
        keys = (key for key in _SETTINGS[layer.kind] if key != "groups")  # always 1; TensorFlow 2.2 has no such setting
        settings = {key: layer.config[key] for key in keys}
        entries.append(
            _entry(layer.kind, {"name": layer.name, "trainable": True, "dtype": "float32"} | settings, feeding)
        )
    network = {
        "name": model.name,
        "layers": entries,
        "input_layers": [[source, 0, 0]],
        "output_layers": [[name, 0, 0] for name in HEADS],
    }
    factors = {
        "O_L": convention.landmark_sign / RELEASE.landmark_sign,
        "O_P": convention.pose_unit_deg / RELEASE.pose_unit_deg,
    }
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["keras_version"] = b"2.4.0"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": network}).encode()
        root = file.create_group("model_weights")
        root.attrs["keras_version"], root.attrs["backend"] = b"2.4.0", b"tensorflow"
        root.attrs["layer_names"] = [entry["name"].encode() for entry in entries]
        for entry in entries:
            _write_weights(root, model, entry["name"], factors.get(entry["name"], 1.0))


def _entry(kind: str, config: dict, sources: list[str]) -> dict:
    nodes = [[[name, 0, 0, {}] for name in sources]]
    return {"class_name": kind, "config": config, "name": config["name"], "inbound_nodes": nodes}


def _write_weights(root: h5py.Group, model: keras.Model, name: str, factor: float) -> None:
    """Writes the weight group of one layer; Keras 2 finds weights by the order of layers and of their names."""
    group = root.create_group(name)
    variables = [] if name == "rescaling" else model.get_layer(name).weights
    names = [f"{name}/{variable.name}:0".encode() for variable in variables]
    group.attrs["weight_names"] = np.array(names, "S") if names else np.zeros(0, "S1")
    for key, variable in zip(names, variables):
        group[key.decode()] = (variable.numpy() * factor).astype(np.float32)
