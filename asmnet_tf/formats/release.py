"""The authors' release (github.com/aliprf/ASMNet, TensorFlow 2.3, Keras 2.4): its model files and its conventions.

The release saves whole models as Keras 2 `.h5`; Keras 3 cannot load them (it stops at `DepthwiseConv2D`). Here the
network that such a file describes is compared, layer by layer, with ours, and its weights go into ours by layer name:
what comes out is a plain functional Keras 3 model. Nothing of the file is executed. Its PCA files are read by
`release_pca.py`, without TensorFlow.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from asmnet_tf.config import DROPOUT, INPUT_SIZE, POSE_RANGE_DEG
from asmnet_tf.files import BROKEN_HDF5, InputError, refusing, replacing
from asmnet_tf.network import keras
from asmnet_tf.network.asmnet import BUILDERS
from asmnet_tf.network.checkpoints import as_text, read_keras2_weights, set_layer_weights

OUTPUTS = ("O_L", "O_P")
SUFFIXES = (".h5", ".hdf5")

# --- conventions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """How the numbers that go into and come out of a model relate to ours. It is applied outside the model.

    input_divisor: the model is fed RGB pixels 0..255 over this number.
    landmark_sign: the model's landmarks times this are (p - centre) / size of the crop, our network units.
    crop:          the crop frame the model was trained in; of our own models the side-car says it.

    Pose is the same in both: yaw, pitch, roll over 65 degrees, with HopeNet's signs (`pose.py`). Methods take NumPy
    arrays and TensorFlow tensors alike. Half pixels: the release measures landmarks from the left edge of the box,
    0..S, minus S / 2; ours are pixel indices, -0.5..S - 0.5, minus (S - 1) / 2 (`geometry.py`): the box's edges are at
    +-0.5 in both, so no shift is due. Not undone: the release cuts its crops at whole pixels, which moves the image by
    up to half a source pixel against the landmarks, differently for every face.
    """

    name: str
    input_divisor: float
    landmark_sign: float
    crop: str

    def to_network_input(self, images: Any) -> Any:
        """RGB pixels 0..255 (..., S, S, 3) -> what the model is fed; float32 for an uint8 array."""
        return images if self.input_divisor == 1.0 else images / np.float32(self.input_divisor)

    def landmarks_to_network_units(self, outputs: Any) -> Any:
        """The model's `O_L` (..., 2L) -> our network units (p - centre) / size."""
        return outputs if self.landmark_sign == 1.0 else outputs * np.float32(self.landmark_sign)

    def describe(self) -> str:
        """Returns one line for a report."""
        pixels = "pixels" if self.input_divisor == 1.0 else f"pixels / {self.input_divisor:g}"
        landmarks = "(p - centre) / size" if self.landmark_sign > 0 else "(centre - p) / size"
        return f"{self.name}: input {pixels}, landmarks {landmarks}, pose x {POSE_RANGE_DEG:g} degrees"


OURS = Convention("ours", 1.0, 1.0, "square")
RELEASE = Convention("release", 255.0, -1.0, "tight")

# --- the network as a list of layers ----------------------------------------------------------------------------------

# What makes a layer compute what it computes, by class; also what an exported file says about it.
_SETTINGS = {
    "InputLayer": "",
    "Rescaling": "scale offset",
    "ZeroPadding2D": "padding data_format",
    "Conv2D": "filters kernel_size strides padding data_format dilation_rate groups activation use_bias",
    "DepthwiseConv2D": "kernel_size strides padding data_format dilation_rate depth_multiplier activation use_bias",
    "BatchNormalization": "axis momentum epsilon center scale",
    "ReLU": "max_value negative_slope threshold",
    "Add": "",
    "GlobalAveragePooling2D": "data_format",
    "Concatenate": "axis",
    "Dropout": "rate",
    "Dense": "units activation use_bias",
}
_INPUT = "the input"


@dataclass(frozen=True)
class _Layer:
    kind: str
    config: dict
    sources: tuple[str, ...]  # names of the layers that feed it


def _layers(config: dict) -> dict[str, _Layer]:
    """Reads the `config` of a functional model, Keras 2 or 3. Raises: KeyError, TypeError, ... where it is none."""

    def sources(node: Any) -> list[str]:
        if isinstance(node, dict):  # Keras 3: tensors named in nested arguments
            return [node["keras_history"][0]] if "keras_history" in node else sources(list(node.values()))
        return [name for value in node for name in sources(value)] if isinstance(node, (list, tuple)) else []

    found = {}
    for entry in config["layers"]:
        nodes = entry["inbound_nodes"]
        if len(nodes) > 1:
            raise ValueError(f"layer {entry['name']} is applied {len(nodes)} times")
        keras2 = bool(nodes) and isinstance(nodes[0], list)  # [[name, node, tensor, {}], ...]
        feeding = [str(source[0]) for source in nodes[0]] if keras2 else sources(nodes)
        kind = entry["class_name"].removesuffix("V1").removesuffix("V2")  # TensorFlow 1 and 2.0: BatchNormalizationV2
        found[str(entry["name"])] = _Layer(kind, dict(entry["config"]), tuple(feeding))
    return found


def _computed(layers: dict[str, _Layer], size: int) -> dict[str, dict[str, Any]]:
    """Returns what each layer computes from an input of a size: what it `is`, what it `follows`, the settings it `has`.

    Dropout is left out, and all before the first other layer is one. A layer without weights, whose name Keras chose
    (global_average_pooling2d_3), is called by what it does: `ReLU of bn_Conv1`.

    Raises: KeyError for a layer that what stands before it does not feed, ...
    """
    found, called = {}, {}
    for name, layer in layers.items():
        feeding = [called[source] for source in layer.sources]
        if layer.kind == "InputLayer" or (layer.kind == "Rescaling" and feeding == [_INPUT]):
            called[name] = _INPUT
        elif layer.kind == "Dropout":
            called[name] = feeding[0]
        else:
            keys = set(_SETTINGS.get(layer.kind, "").split()) - {"momentum", "rate"}  # these are of training only
            settings = {key: _plain(key, value, layer.kind) for key, value in layer.config.items() if key in keys}
            before = found.get(feeding[0], {})
            first = layer.kind == "Conv2D" and settings.get("padding") == "valid" and before.get("follows") == [_INPUT]
            if first and before.get("has padding") == ((1 if size % 2 else 0, 1),) * 2:
                # until TensorFlow 2.3 a layer of its own, Conv1_pad, pads what `same` pads
                settings, feeding = settings | {"padding": "same"}, [_INPUT]
            feeding = sorted(feeding) if layer.kind == "Add" else feeding
            weighted = layer.kind in ("Conv2D", "DepthwiseConv2D", "BatchNormalization", "Dense")
            called[name] = name if weighted else f"{layer.kind} of {', '.join(feeding)}"[:2000]
            facts = {"is": layer.kind, "follows": feeding} | {f"has {key}": value for key, value in settings.items()}
            if found.setdefault(called[name], facts) != facts:
                raise ValueError(f"two layers are {called[name]}")
    return found


def _plain(key: str, value: Any, kind: str) -> Any:
    """Returns a setting so that equal settings compare equal: 3 and [3, 3], axis -1 and [3]."""
    if isinstance(value, (list, tuple)):
        value = tuple(_plain("", v, kind) for v in value)
        value = value[0] if key == "axis" and len(value) == 1 else value
    if key == "axis" and isinstance(value, int):
        return value % (4 if kind == "BatchNormalization" else 2)
    if key in ("kernel_size", "strides", "dilation_rate") and isinstance(value, int):
        return (value, value)
    return round(value, 9) if isinstance(value, float) else value


def _compare(path: Path, theirs: dict[str, _Layer], outputs: list[str], model: keras.Model) -> None:
    """Walks our model from the input on. Raises: InputError that names the first layer that the file has otherwise."""

    def differs(what: str) -> InputError:
        return InputError(f"{path}: {what}. It is not the release's {model.name}; expected ASMNet or MobileNetV2.")

    ours, came = (_computed(layers, model.input_shape[1]) for layers in (_layers(model.get_config()), theirs))
    for name, expected in ours.items():
        if name not in came:
            raise differs(f"layer {name[:150]} is not in it, its first layer is {next(iter(came), 'none')}")
        for key, value in came[name].items():  # an older Keras may lack a setting: it is at its default
            if value != expected.get(key):
                pair = (", ".join(x) if key == "follows" else str(x) for x in (value, expected.get(key)))
                raise differs("layer {:.150} {} {:.150}, expected {:.150}".format(name, key, *pair))
    if sorted(outputs) != sorted(OUTPUTS):
        raise differs(f"its outputs are {', '.join(outputs)}, expected {', '.join(OUTPUTS)}")


# --- reading ----------------------------------------------------------------------------------------------------------


def is_release(path: str | Path, with_heads: bool = False) -> bool:
    """Whether `load_original_model` reads a file or says what is wrong with it: any `.h5` but a model of Keras 3.

    Args: with_heads: only if it holds the weights of a whole network in Keras 2's layout, not a backbone's.
    """
    if Path(path).suffix not in SUFFIXES:
        return False
    try:
        with h5py.File(path, "r") as file:
            if "model_config" in file.attrs and as_text(file.attrs.get("keras_version", ""))[:1] == "3":
                return False
            root = file.get("model_weights", file)
            return not with_heads or ("layer_names" in root.attrs and set(OUTPUTS) <= set(root))
    except BROKEN_HDF5:
        return not with_heads  # what reads it next says what is wrong with it


def load_original_model(path: str | Path, input_size: int | None = None) -> tuple[keras.Model, Convention]:
    """Reads a model file of the release, whole or weights only, into our functional model.

    The result gives the file's own numbers for the file's own input, pixels / 255: its `rescaling` layer does what the
    file's does, mostly nothing. It is stock Keras 3, without optimiser and with dropout as in the file. Outputs are
    `O_L` (B, 2L), then `O_P` (B, 3). The convention says how to read them.

    Args:    input_size: side of the input, for a file that does not fix it (weights only); default 224.
    Returns: (model, RELEASE).
    Raises:  InputError for a file that is no HDF5, is damaged, or has another network: it names the first other layer.
    Differs from the release: it loads such files only with TensorFlow 2.3, and feeds O_L on as it comes.
    """
    path = Path(path)
    architecture, stored = _read(path)
    broken = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError)
    with refusing(f"{path}: describes no functional Keras 2 network of ours", broken):
        layers = _layers(architecture) if architecture else {}
        size = (_input_size(path, layers) if architecture else None) or input_size or INPUT_SIZE
        scale, offset = _rescaling(layers)
        if abs(scale) < 0.1:
            raise InputError(f"{path}: rescales by {scale:g}: it wants pixels, the release's models pixels / 255.")
        rates = [layer.config.get("rate") for layer in layers.values() if layer.kind == "Dropout"]
        model = BUILDERS["mobilenet_v2" if "Conv_1" in (layers or stored) else "asmnet"](
            max(1, stored.get(OUTPUTS[0], [np.zeros((1, 136))])[0].shape[-1] // 2),
            size,
            dropout=float(rates[0]) if rates else (0.0 if layers else DROPOUT),
            l2_heads=0.0,
            input_range=(offset, offset + 255.0 * scale),
        )
        if architecture:
            _compare(path, layers, [str(output[0]) for output in architecture["output_layers"]], model)
    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    for name, layer in weighted.items():
        if name not in stored:
            hint = " A backbone alone is for train.py --weights." if name in OUTPUTS else ""
            told = f"no weights of layer {name} in it, its first layer is {next(iter(stored), 'none')}"
            raise InputError(f"{path}: {told}. Expected the release's ASMNet or MobileNetV2.{hint}")
        set_layer_weights(layer, stored[name], path)
    for name in stored:
        if name not in weighted:
            raise InputError(f"{path}: has a layer {name} that the release's {model.name} has not. Another network?")
    return model, RELEASE


def _read(path: Path) -> tuple[dict | None, dict[str, list[np.ndarray]]]:
    """Returns the `config` of the network, None in a weight-only file, and layer name -> arrays."""
    if not path.is_file():
        raise InputError(f"{path}: no such model. The release's files are called like ASMNet_300W_ASMLoss.h5.")
    again = "Download or save the model again."
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: not an HDF5 file. {again}")
    with refusing(f"{path}: a truncated or damaged HDF5 file", BROKEN_HDF5, again), h5py.File(path, "r") as file:
        keras3 = as_text(file.attrs.get("keras_version", ""))[:1] == "3"
        if keras3 or ("layers" in file and "layer_names" not in file.attrs):
            raise InputError(f"{path}: written by Keras 3, not by the release. Use the .keras file of that model.")
        text = file.attrs.get("model_config")
        root = file["model_weights"] if text is not None else file
        if "layer_names" not in root.attrs:
            raise InputError(f"{path}: HDF5, but no Keras 2 model or weights in it. Is it the right file?")
        return None if text is None else json.loads(text)["config"], read_keras2_weights(root)


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


# --- writing ----------------------------------------------------------------------------------------------------------


def export_release(model: keras.Model, path: str | Path, convention: Convention = OURS) -> None:
    """Writes a model as a whole-model Keras 2 `.h5` in the release's convention, without optimiser.

    `O_L` gets the release's sign (kernel and bias times -1). The file takes pixels / 255; where our
    rescaling is another, to (-1, 1) by default, it keeps a `Rescaling` layer, which TensorFlow 2.3 has as
    `experimental.preprocessing.Rescaling` and older versions lack. Folded into the first convolution, which pads with
    zeros *after* rescaling, the offset would be missing from part of the sums at the border. A model trained with
    input_range (0, 1), `--recipe paper`, is written of layers that every Keras 2 has. (Tested with tf_keras 2.21 only.)
    The crop is not in the file: the release's crop is the tight one, so train with `--crop tight` for it.

    Args:   convention: the model's own; RELEASE for what `load_original_model` returned.
    Raises: InputError for another ending than .h5, a file that cannot be written, or a layer Keras 2 has not.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the release's format is known by its ending. Call it .h5.")
    layers = _layers(model.get_config())
    for name, layer in layers.items():
        if layer.kind not in _SETTINGS:
            raise InputError(f"{path}: layer {name} is {layer.kind}, which has no place in the release's format.")
    scale, offset = _rescaling(layers)
    scale = round(scale * RELEASE.input_divisor / convention.input_divisor, 9)
    before = [name for name, layer in layers.items() if layer.kind in ("InputLayer", "Rescaling")]
    source = next(name for name in before if layers[name].kind == "InputLayer")
    entries = [_entry("InputLayer", source, {"batch_input_shape": list(model.input_shape), "sparse": False}, [])]
    if (scale, offset) != (1.0, 0.0):
        entries.append(_entry("Rescaling", "rescaling", {"scale": scale, "offset": offset}, [source]))
    pixels = entries[-1]["name"]
    for name in [name for name in layers if name not in before]:
        layer = layers[name]
        feeding = [pixels if fed in before else fed for fed in layer.sources]
        keys = _SETTINGS[layer.kind].replace(" groups", "").split()  # always 1; TensorFlow 2.2 has no such setting
        settings = {"trainable": True} | {key: layer.config[key] for key in keys}
        entries.append(_entry(layer.kind, name, settings, feeding))
    ends = {"input_layers": [[source, 0, 0]], "output_layers": [[name, 0, 0] for name in OUTPUTS]}
    network = {"class_name": "Functional", "config": {"name": model.name, "layers": entries} | ends}
    sign = convention.landmark_sign / RELEASE.landmark_sign
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        root = file.create_group("model_weights")
        for group in (file, root):
            group.attrs["keras_version"], group.attrs["backend"] = b"2.4.0", b"tensorflow"
        file.attrs["model_config"] = json.dumps(network).encode()
        root.attrs["layer_names"] = [entry["name"].encode() for entry in entries]
        for entry in entries:
            _write_weights(root, model, entry["name"], sign if entry["name"] == "O_L" else 1.0)


def _entry(kind: str, name: str, settings: dict, sources: list[str]) -> dict:
    nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
    config = {"name": name, "dtype": "float32"} | settings
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes}


def _write_weights(root: h5py.Group, model: keras.Model, name: str, factor: float) -> None:
    """Writes the weight group of one layer; Keras 2 finds weights by the order of layers and of their names."""
    group = root.create_group(name)
    variables = [] if name == "rescaling" else model.get_layer(name).weights
    names = [f"{name}/{variable.name}:0".encode() for variable in variables]
    group.attrs["weight_names"] = np.array(names, "S")
    for key, variable in zip(names, variables):
        group[key.decode()] = (variable.numpy() * factor).astype(np.float32)
