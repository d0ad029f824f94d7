"""ASMNet and the MobileNetV2 baseline as plain functional Keras models (paper section 3.3; TensorFlow / Keras).

Input: RGB pixels 0..255, float or uint8, (B, S, S, 3); rescaling is a layer. Outputs, in this order: `O_L` (B, 2L)
landmarks in network units x0, y0, x1, ...; `O_P` (B, 3) yaw, pitch, roll over 65 degrees.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from asmnet_tf.config import DROPOUT, HEAD_L2, HEADS, INPUT_SIZE, INPUT_SIZES
from asmnet_tf.engine import check_keras, keras
from asmnet_tf.files import (
    MAX_EXPANSION,
    InputError,
    check_archive,
    first_line,
    limited_memory,
    replacing,
    write_text,
)
from asmnet_tf.hdf5 import BROKEN_HDF5, read_dataset, read_safely
from asmnet_tf.model_zoo import crop_of, find_model, pretrained_path, read_sidecar, sidecar_path

layers = keras.layers
IMAGENET_RANGE = (-1.0, 1.0)  # what Keras' MobileNetV2 weights are fed
LOADING_BYTES = 4 << 30  # that `load_model` may take; ours take some 50 MB
ASMNET_TAPS = (  # pooled features, in this order (paper figure 2; 24 + 32 + 64 + 96 + 160 + 160 = 536)
    "block_1_project_BN",
    "block_3_project_BN",
    "block_6_project_BN",
    "block_10_project_BN",
    "block_13_project_BN",
    "block_15_add",
)
# the spatial head: 4 x 4 cells (the last map of a 112 px input); 17 channels would make 1.4801 M parameters
SPATIAL_GRID = 4
SPATIAL_CHANNELS = 16
# save_model(half=True): smaller arrays (batch norm, biases, depthwise kernels) stay float32. On 64 LFPW faces at 112 px
# float16 then moves landmarks by 0.007 px on average instead of 0.025, for 11 % more bytes
HALF_ABOVE = 10_000


def build_asmnet(
    num_landmarks: int = 68,
    input_size: int = INPUT_SIZE,
    dropout: float = DROPOUT,
    l2_heads: float = HEAD_L2,
    input_range: tuple[float, float] = (-1.0, 1.0),
    head: str = "pooled",
) -> keras.Model:
    """Builds ASMNet: MobileNetV2 up to `block_15_add`, six pooled taps, two linear heads.

    Args:
        num_landmarks: L. input_size: side of the input in pixels, 32 or more.
        dropout: rate before the heads. l2_heads: L2 on kernel and bias of both heads (in `model.losses`).
        input_range: what pixels 0 and 255 become; the release has (0, 1), ImageNet weights want (-1, 1).
        head: pooled: the heads see the 536 pooled features (the paper's). spatial: beside them `block_15_add` by
            position, see `_spatial_features`; weights of one input size fit every other.
    Returns: a model with random weights; for L = 68 1,439,507 parameters, 1,477,715 with the spatial head.
    Raises:  ValueError for a size below 32 or an unknown head.
    """
    if head not in HEADS:
        raise ValueError(f"head is {head!r}; it is one of {', '.join(HEADS)}")
    base, inputs = _backbone(input_size, input_range)
    taps = [base.get_layer(name).output for name in ASMNET_TAPS]
    pooled = [layers.GlobalAveragePooling2D(name=f"pool_{name}")(tap) for name, tap in zip(ASMNET_TAPS, taps)]
    features = layers.Concatenate(name="features")(pooled)
    if head == "spatial":
        features = layers.Concatenate(name="features_spatial")([features, _spatial_features(taps[-1])])
    return _with_heads("asmnet", inputs, features, num_landmarks, dropout, l2_heads)


def build_mobilenet_v2(
    num_landmarks: int = 68,
    input_size: int = INPUT_SIZE,
    dropout: float = DROPOUT,
    l2_heads: float = HEAD_L2,
    input_range: tuple[float, float] = (-1.0, 1.0),
    head: str = "pooled",
) -> keras.Model:
    """Builds the paper's baseline `mnv2`: the whole MobileNetV2, its 1280 pooled features into the same two heads.

    Arguments, result and errors as `build_asmnet`, but head can only be pooled; 2,436,043 parameters for L = 68.
    """
    if head != "pooled":
        raise ValueError(f"head is {head!r}; mobilenet_v2 has the pooled one only")
    base, inputs = _backbone(input_size, input_range)
    features = layers.GlobalAveragePooling2D(name="features")(base.get_layer("out_relu").output)
    return _with_heads("mobilenet_v2", inputs, features, num_landmarks, dropout, l2_heads)


BUILDERS = {"asmnet": build_asmnet, "mobilenet_v2": build_mobilenet_v2}


def _backbone(input_size: int, input_range: tuple[float, float]) -> tuple[keras.Model, keras.KerasTensor]:
    check_keras()
    if not INPUT_SIZES[0] <= input_size <= INPUT_SIZES[1]:
        raise InputError(f"--input-size {input_size}: the network takes {INPUT_SIZES[0]} to {INPUT_SIZES[1]} pixels.")
    low, high = input_range
    inputs = layers.Input((input_size, input_size, 3), name="image")
    pixels = layers.Rescaling((high - low) / 255.0, offset=low, name="rescaling")(inputs)
    return keras.applications.MobileNetV2(input_tensor=pixels, include_top=False, weights=None), inputs


def _spatial_features(tap: keras.KerasTensor) -> keras.KerasTensor:
    """Returns a map (B, n, n, C) as 256 numbers that keep their place: 1 x 1 projection, 4 x 4 grid, flattened.

    Global average pooling throws position away (findings 15). The grid is the same for every n, so the parameters are
    too: bilinear sampling reads all of a map of up to 8 x 8 (256 px input), and enlarges one below 4 x 4.
    """
    x = layers.Conv2D(SPATIAL_CHANNELS, 1, use_bias=False, name="spatial_project")(tap)
    x = layers.BatchNormalization(momentum=0.999, name="spatial_project_BN")(x)  # the sum of a residual has any scale
    if tap.shape[1] != SPATIAL_GRID:
        x = layers.Resizing(SPATIAL_GRID, SPATIAL_GRID, interpolation="bilinear", name="spatial_grid")(x)
    return layers.Flatten(name="spatial")(x)


def _with_heads(
    name: str,
    inputs: keras.KerasTensor,
    features: keras.KerasTensor,
    num_landmarks: int,
    dropout: float,
    l2_heads: float,
) -> keras.Model:
    features = layers.Dropout(dropout, name="dropout")(features)

    def head(units: int, head_name: str) -> keras.KerasTensor:
        def penalty() -> keras.regularizers.Regularizer | None:
            return keras.regularizers.L2(l2_heads) if l2_heads else None

        dense = layers.Dense(
            units, kernel_regularizer=penalty(), bias_regularizer=penalty(), dtype="float32", name=head_name
        )
        return dense(features)

    return keras.Model(inputs, [head(2 * num_landmarks, "O_L"), head(3, "O_P")], name=name)


def start_at_mean(model: keras.Model, landmarks_norm: np.ndarray, pose_norm: np.ndarray) -> None:
    """Makes an untrained model predict the mean shape (2L,) and the mean pose (3,): biases set, kernels near zero.

    Random heads on random pooled features start at an NME of 100 to 170 %, the mean shape at 15 to 35 %; the difference
    costs the first epochs.
    """
    for name, mean in (("O_L", landmarks_norm), ("O_P", pose_norm)):
        head = model.get_layer(name)
        head.kernel.assign(head.kernel * 0.01)
        head.bias.assign(mean)


def freeze_batch_norm(model: keras.Model, received: Collection[str]) -> None:
    """Lets training use, and leave as they are, the statistics, scales and offsets of stored batch norms.

    Args: received: names of the layers that were given weights; a batch norm that is new goes on learning.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and layer.name in received:
            layer.trainable = False


# --- counting ---------------------------------------------------------------------------------------------------------


def count_multiply_adds(model: keras.Model) -> int:
    """Returns the multiply-adds of convolutions and dense layers for one image.

    The paper's FLOPs are twice this number (0.51 G for ASMNet at 224 px, 0.60 G for MobileNetV2).
    """
    total = 0
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            total += int(np.prod(layer.output.shape[1:3])) * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            total += int(np.prod(layer.kernel.shape))
    return total


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

    Sources: `imagenet`, a shipped name (`model_zoo`), or a file: `.keras`, Keras 3 `.weights.h5`, Keras 2 whole-model
    or weight-only `.h5` (whose heads, if any, are taken as they are: see `model_files.read_start_weights`).

    Args:   input_range: assumed of a whole ASMNet in a file of weights alone; of a backbone it is ImageNet's (-1, 1).
    Raises: InputError if the file cannot be read.
    """
    if source == "imagenet":
        try:
            donor = keras.applications.MobileNetV2(include_top=False, weights="imagenet")
        except Exception as error:  # Keras raises bare Exception where the download fails
            reason = first_line(error, 100)
            raise InputError(f"--weights imagenet: download failed ({reason}). Give a file instead.") from error
        return StartWeights(source, {layer.name: layer.get_weights() for layer in donor.layers}, IMAGENET_RANGE)
    path = find_model(source)
    if path.suffix == ".keras":
        model, sidecar = load_model(path)
        scalings = [layer for layer in model.layers if isinstance(layer, layers.Rescaling)]
        low, high = (scalings[0].offset, 255.0 * scalings[0].scale + scalings[0].offset) if scalings else (0.0, 255.0)
        crop = crop_of(path, sidecar) if sidecar else None
        stored = {layer.name: layer.get_weights() for layer in model.layers}
        return StartWeights(source, stored, (float(low), float(high)), crop)
    stored = _read_layer_weights(path)
    assumed = input_range if "O_L" in stored else IMAGENET_RANGE
    told = f"{source}: does not say its input range; {assumed[0]:g} to {assumed[1]:g} is assumed"
    print(told if "O_L" in stored else f"{told}, as of ImageNet weights", file=sys.stderr)
    return StartWeights(source, stored, assumed)


def set_weights(model: keras.Model, start: StartWeights, crop: tuple[str, float]) -> list[str]:
    """Copies weights by layer name into a model; layers that the source lacks stay as they are.

    Arrays of another shape are an error, except in the heads (`O_L`, `O_P`), which belong to a number of landmarks and
    a kind of head: pooled ones become spatial ones that say the same, others are left alone.

    Args:    crop: (crop, scale) that the model is to be trained in.
    Returns: the names of the layers that received weights; with "O_L" among them the model is whole.
    Raises:  InputError if there is no layer of this model, or its landmarks are of another crop.
    """
    received = []
    for layer in model.layers:
        arrays = start.layers.get(layer.name)
        if not layer.weights or not arrays:
            continue
        if layer.name in ("O_L", "O_P"):
            arrays = _as_spatial_head(model, layer, arrays)
            if [tuple(w.shape) for w in layer.weights] != [a.shape for a in arrays]:
                continue
        set_layer_weights(layer, arrays, start.source)
        received.append(layer.name)
    if not received:
        raise InputError(
            f"{start.source}: no layer of this model in it. Expected MobileNetV2 layer names (Conv1, block_1_...)."
        )
    if "O_L" in received and start.crop not in (None, crop):
        raise InputError(
            f"{start.source}: finds landmarks in {start.crop[0]} crops of {start.crop[1]:g} x the box, this run has "
            f"{crop[0]} ones of {crop[1]:g}. Train with --crop {start.crop[0]}, or start from other weights."
        )
    return received


def _as_spatial_head(model: keras.Model, layer: layers.Dense, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the arrays of a pooled head for a spatial one: the features it did not see count nothing at first."""
    sizes = {other.name: other.output.shape[-1] for other in model.layers if other.name.startswith("features")}
    if "features_spatial" not in sizes or arrays[0].shape != (sizes["features"], layer.units):
        return arrays
    missing = np.zeros((sizes["features_spatial"] - sizes["features"], layer.units), arrays[0].dtype)
    return [np.concatenate([arrays[0], missing]), *arrays[1:]]


def set_layer_weights(layer: keras.layers.Layer, arrays: list[np.ndarray], source: str | Path) -> None:
    """Gives a layer the arrays read from `source`. Raises: InputError for other shapes or non-finite values."""
    shapes = [tuple(w.shape) for w in layer.weights]
    if shapes != [a.shape for a in arrays]:
        raise InputError(
            f"{source}: layer {layer.name} is {[a.shape for a in arrays]}, here {shapes}. Another network?"
        )
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError(f"{source}: layer {layer.name} holds values that are not finite. Use another file.")
    layer.set_weights(arrays)


def _read_layer_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns layer name -> arrays of an `.h5` file, in the order Keras lists them."""

    def read() -> dict[str, list[np.ndarray]]:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layers" in root and "layer_names" not in root.attrs:
                return _read_keras3(root)
            return read_keras2_weights(root)

    try:
        return read_safely(read)
    except BROKEN_HDF5 as error:
        reason = first_line(error)
        raise InputError(f"{path}: no weights can be read ({reason}). Expected .keras, .weights.h5 or .h5.") from error


def _read_keras3(root: h5py.Group) -> dict[str, list[np.ndarray]]:
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


def read_keras2_weights(root: h5py.Group) -> dict[str, list[np.ndarray]]:
    """Returns layer name -> float32 arrays of a Keras 2 weight group, in the order Keras lists them; [] if unweighted.

    Args:   root: the `model_weights` group of a whole-model file, or the root of a weight-only file.
    Raises: one of BROKEN_HDF5 for a damaged file.
    """

    def text(value: bytes | str) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    stored: dict[str, list[np.ndarray]] = {}
    for name in map(text, root.attrs.get("layer_names", list(root))):
        group = root[name]
        names = [text(n) for n in group.attrs.get("weight_names", [])]
        if not names:
            stored.setdefault(name, [])
        owners = {n.split("/")[-2] if "/" in n else name for n in names}
        for n in names:  # a model used as a layer lists the weights of all its layers in one group
            owner = name if len(owners) == 1 else n.split("/")[-2]
            stored.setdefault(owner, []).append(_float32(group, n))
    return stored


# --- saving and loading -----------------------------------------------------------------------------------------------


def save_model(model: keras.Model, path: str | Path, sidecar: dict, half: bool = False) -> None:
    """Writes `<path>` and its side-car JSON; each replaces an older file only when it is complete.

    half: large kernels are float16 in the file, about half its size; `keras.models.load_model` reads them into float32.

    Raises: InputError if a file cannot be written, or a weight is too large for float16.
    """
    with replacing(path) as temporary:
        _in_float32(model).save(temporary)
        if half:
            _halve(temporary, path)
    write_text(sidecar_path(path), json.dumps(sidecar, indent=2) + "\n")


def _halve(archive: Path, path: str | Path) -> None:
    """Rewrites a `.keras` archive with its large kernels as float16; `path` is what an error calls it."""
    with zipfile.ZipFile(archive) as file:
        members = {name: file.read(name) for name in file.namelist()}
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"]), "r") as old, h5py.File(halved, "w") as new:

        def copy(name: str, entry: h5py.Group | h5py.Dataset) -> None:
            if isinstance(entry, h5py.Dataset):
                values = entry[()]
                if values.dtype == np.float32 and values.size > HALF_ABOVE:
                    if np.abs(values).max() > np.finfo(np.float16).max:
                        raise InputError(f"{path}: {name} holds weights beyond +-65504. Save it in float32.")
                    values = values.astype(np.float16)
                made = new.create_dataset(name, data=values)
            else:
                made = new.require_group(name)
            made.attrs.update(entry.attrs)

        old.visititems(copy)
    members["model.weights.h5"] = halved.getvalue()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def _in_float32(model: keras.Model) -> keras.Model:
    """Returns a model that computes in float32: one trained in mixed precision is copied, so that it runs anywhere."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer.__class__.from_config(layer.get_config() | {"dtype": "float32"})

    clone = keras.models.clone_model(model, clone_function=copy)
    clone.set_weights(model.get_weights())
    return clone


def load_model(path: str | Path) -> tuple[keras.Model, dict]:
    """Loads a `.keras` model, a file or a shipped name (`model_zoo`), and its side-car; an absent side-car is {}.

    Raises: InputError if either cannot be read or the outputs are not `O_L` (2L) and `O_P` (3).
    """
    check_keras()
    path = find_model(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model. train.py writes best.keras and last.keras in its run folder.")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        if _holds_lambda(path):
            raise ValueError("it holds a Lambda layer, which is code, and code of a file is never run")
        keras.ops.zeros(1)  # starts TensorFlow, whose threads and GPU driver must not count below
        # what the file says of a layer decides how much memory its random weights take, before any stored one is read
        with limited_memory(max(LOADING_BYTES, MAX_EXPANSION * path.stat().st_size)):
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile each have their own; all mean the file is not usable
        reason = first_line(error, 120)
        if not zipfile.is_zipfile(path) and path.suffix == ".keras":
            reason = "truncated or no .keras archive"
        elif isinstance(error, MemoryError) or "OOM when allocating" in str(error):
            reason = "its layers need too much memory"
        raise InputError(f"{path}: not a model that Keras loads ({reason}). Save it again.") from error
    shapes = [tuple(output.shape) for output in getattr(model, "outputs", [])]
    if len(shapes) != 2 or len(shapes[0]) != 2 or not shapes[0][1] or shapes[0][1] % 2 or shapes[1] != (None, 3):
        raise InputError(f"{path}: outputs of shape {shapes}, expected landmarks (None, 2L) and pose (None, 3).")
    return model, read_sidecar(path)


def _holds_lambda(path: Path) -> bool:
    """Says whether the network that a `.keras` or `.h5` file describes has a Lambda layer; False where none is told.

    Keras' safe mode refuses code in a file; a Lambda that names a registered function it would call.
    """
    found = []

    def look(entry: dict) -> None:
        found.append(entry.get("class_name") == "Lambda")

    with contextlib.suppress(*BROKEN_HDF5, zipfile.BadZipFile, RecursionError):  # what is broken Keras will say
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                json.loads(archive.read("config.json"), object_hook=look)
        else:
            with h5py.File(path, "r") as file:
                json.loads(file.attrs["model_config"], object_hook=look)
    return any(found)


def load_pretrained(name: str) -> keras.Model:
    """Loads a model that ships with the package: plain Keras, float32, for inference or further training.

    Args:    name: one of `pretrained_names()`.
    Returns: the model; input and outputs as at the top of this file. `pretrained_sidecar` tells its crop.
    Raises:  InputError that lists the names, for another one.
    """
    return load_model(pretrained_path(name))[0]
