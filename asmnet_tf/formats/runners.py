"""Opens a model for inference whatever wrote it: `.keras`, the release's `.h5`, TFLite, SavedModel (TensorFlow).

Every kind ends as a `RunnableModel`, all that scoring knows of a model; one more kind is one more branch of
`open_model`. A SavedModel is a program: open those you trust.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from asmnet_tf.data.sidecars import crop_of, read_sidecar
from asmnet_tf.files import InputError, first_line
from asmnet_tf.formats.release import OURS, Convention, holds_heads, is_release, load_original_model
from asmnet_tf.network import keras
from asmnet_tf.network.asmnet import count_multiply_adds
from asmnet_tf.network.checkpoints import StartWeights, load_model, read_weights
from asmnet_tf.network.fast_graphs import folded_model

_process: int | None = None  # that opened the first model
MAX_INPUT_SIZE = 4096  # pixels; one image then is 50 MB
# RGB uint8 (B, S, S, 3), any B -> landmarks (B, 2L) and pose (B, 3) in network units, as arrays or eager tensors
Infer = Callable[[np.ndarray], Sequence]


@dataclass(frozen=True, eq=False)
class RunnableModel:
    """A model ready to run.

    infer: pixels 0..255 to network units, see `Infer`; another convention is translated inside it. input_size: S.
    parameters, multiply_adds: of one image; None where the file does not tell. sidecar: the `.json` beside it, or {}.
    format: in words, for the report.
    """

    infer: Infer
    num_landmarks: int
    input_size: int
    parameters: int | None = None
    multiply_adds: int | None = None
    sidecar: dict = field(default_factory=dict)
    format: str = "keras"


def open_model(path: str | Path, threads: int | None = None) -> RunnableModel:
    """Opens a model: a folder is a SavedModel, `.tflite` or what begins so TFLite, `.h5` the release's, else `.keras`.

    Args:   threads: of TFLite; default: the cores, 4 at most, for one face has no work for more.
    Raises: InputError for a file that is missing, damaged or no model with landmarks and pose. It and what it returns
            raise RuntimeError in a fork of the process that opened the first model.
    """
    check_process()
    path = Path(path)
    if path.is_dir():
        model = _open_saved_model(path)
    elif path.suffix == ".tflite" or _begins_like_tflite(path):
        model = _open_tflite(path, threads or min(4, os.cpu_count() or 1))
    else:
        model = _open_keras(path)

    def infer(images: np.ndarray) -> Sequence:
        check_process()
        return model.infer(images)

    return replace(model, infer=infer)


def check_process() -> None:
    """Raises: RuntimeError in a fork of a process that has opened a model: there, TensorFlow waits for ever."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise RuntimeError(
            f"process {os.getpid()} is a fork of process {_process}, which holds a model: TensorFlow does not run in "
            "it. Open the model in each process, started with multiprocessing.get_context('spawn')."
        )


def compiled(model: keras.Model, convention: Convention = OURS, folded: bool = False) -> Infer:
    """Returns the inference of a Keras model as one graph function; what it says is brought to network units.

    Args: folded: run `folded_model`, about a third faster. Weights that change later are then not seen.
    """
    if folded:
        model = folded_model(model)
    size = model.input_shape[1]

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def infer(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(convention.to_network_input(tf.cast(images, tf.float32)), training=False)
        return [convention.landmarks_to_network_units(outputs[0]), convention.pose_to_network_units(outputs[1])]

    if not folded:
        return infer
    graph = infer.get_concrete_function()  # called directly, it saves looking for the trace: 8 % of one face

    # `infer` is bound here because the graph's variables live only as long as the model
    def call(images: np.ndarray, _model: object = infer) -> list[tf.Tensor]:
        return graph(tf.convert_to_tensor(images, tf.uint8))

    return call


def read_start_weights(source: str, input_range: tuple[float, float]) -> StartWeights:
    """Reads what training is to start from; heads of the release's files are brought to our convention.

    Args and Raises: see `checkpoints.read_weights`.
    """
    path = Path(source)
    if source == "imagenet" or not (is_release(path) and holds_heads(path)):  # or a backbone, or weights of Keras 3
        return read_weights(source, input_range)
    model, convention = load_original_model(path)
    stored = {layer.name: layer.get_weights() for layer in model.layers}
    stored["O_L"] = [convention.landmarks_to_network_units(array) for array in stored["O_L"]]
    stored["O_P"] = [convention.pose_to_network_units(array) for array in stored["O_P"]]
    scaling = model.get_layer("rescaling")
    scale = 255.0 * scaling.scale / convention.input_divisor
    crop = crop_of(path, {"crop": convention.crop} | read_sidecar(path))
    return StartWeights(source, stored, (scaling.offset, scaling.offset + scale), crop)


# --- what the kinds share ---------------------------------------------------------------------------------------------


def _runnable(
    path: Path,
    kind: str,
    inputs: dict[str, Sequence[int | None]],
    outputs: dict[str, Sequence[int | None]],
    run: Callable[[np.ndarray], dict],
) -> RunnableModel:
    """Returns the model of a graph whose tensors have names and shapes (None: any length).

    Args:   run: images of as many as the graph takes at a time -> its outputs by name.
    Raises: InputError unless it takes images and returns landmarks and pose.
    """
    if len(inputs) != 1:
        raise InputError(f"{path}: {len(inputs)} inputs, expected one, images (B, S, S, 3).")
    batch, size = _input_size(path, next(iter(inputs.values())))
    landmarks, pose = _output_names(path, outputs)

    def infer(images: np.ndarray) -> Sequence:
        if batch is None:
            results = run(images)
            return [results[landmarks], results[pose]]
        parts = []
        for first in range(0, len(images), batch):
            part = images[first : first + batch]
            results = run(np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)]))  # a full batch
            parts.append([np.asarray(results[name])[: len(part)] for name in (landmarks, pose)])
        return [np.concatenate(column) for column in zip(*parts)]

    sidecar = read_sidecar(path)  # it may tell what the file does not: what the model costs
    costs = (value if type(value) is int else None for value in map(sidecar.get, ("parameters", "multiply_adds")))
    return RunnableModel(infer, int(outputs[landmarks][1]) // 2, size, *costs, sidecar, kind)


def _input_size(path: Path, shape: Sequence[int | None]) -> tuple[int | None, int]:
    """Returns the batch size (None: any) and S of an input (B, S, S, 3). Raises: InputError for another shape."""
    batch, *rest = (None if n is None or n < 1 else int(n) for n in shape)
    if len(rest) != 3 or rest[0] is None or not 0 < rest[0] == rest[1] <= MAX_INPUT_SIZE or rest[2] != 3:
        raise InputError(f"{path}: takes input of shape {tuple(shape)}, expected images (B, S, S, 3) of one size.")
    return batch, rest[0]


def _output_names(path: Path, shapes: dict[str, Sequence[int | None]]) -> list[str]:
    """Returns the names of landmarks and pose: `O_L` and `O_P`, else by shape, since exporters lose names and order.

    Raises: InputError unless there is one (B, 2L) and one (B, 3).
    """
    fits = {"O_L": lambda n: n > 3 and n % 2 == 0, "O_P": lambda n: n == 3}
    chosen = []
    for wanted, fit in fits.items():
        found = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] is not None and fit(shape[1])]
        found = [wanted] if wanted in found else found
        if len(found) != 1:
            given = {name: tuple(shape) for name, shape in shapes.items()}
            raise InputError(f"{path}: outputs {given}, expected landmarks (B, 2L) and pose (B, 3).")
        chosen += found
    return chosen


# --- the kinds --------------------------------------------------------------------------------------------------------


def _open_keras(path: Path) -> RunnableModel:
    """Opens what Keras saved: Keras 2 as the release, in its convention, Keras 3 as this package."""
    if release := is_release(path):
        model, convention = load_original_model(path)
        sidecar = {"crop": convention.crop, "convention": convention.describe()} | read_sidecar(path)
    else:
        (model, sidecar), convention = load_model(path), OURS
    size = _input_size(path, model.input_shape)[1]
    costs = model.count_params(), count_multiply_adds(model)
    infer, landmarks = compiled(model, convention, folded=True), model.output_shape[0][1] // 2
    return RunnableModel(infer, landmarks, size, *costs, sidecar, "release h5" if release else "keras")


def _open_saved_model(path: Path) -> RunnableModel:
    """Opens what `model.export` or `tf.saved_model.save` wrote, through its signature."""
    if not (path / "saved_model.pb").is_file():
        raise InputError(f"{path}: a folder without saved_model.pb, so no SavedModel. Give a model file inside it?")
    try:
        loaded = tf.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    except Exception as error:  # TensorFlow has many; all mean the folder is not usable
        raise InputError(
            f"{path}: not a SavedModel that TensorFlow loads ({first_line(error, 120)}). Export again."
        ) from error
    if not signatures:
        raise InputError(f"{path}: a SavedModel without signatures. Export it with model.export.")
    signature = signatures.get("serving_default", next(iter(signatures.values())))
    inputs = signature.structured_input_signature[1]

    def shapes(specs: dict[str, tf.TensorSpec]) -> dict[str, list[int | None]]:
        return {name: spec.shape.as_list() if spec.shape.rank else [None] for name, spec in specs.items()}

    # `loaded` is bound here because its variables live only as long as it does
    def run(images: np.ndarray, _loaded: object = loaded) -> dict[str, tf.Tensor]:
        ((name, spec),) = inputs.items()
        return signature(**{name: tf.cast(images, spec.dtype)})

    return _runnable(path, "SavedModel", shapes(inputs), shapes(signature.structured_outputs), run)


def _begins_like_tflite(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError:
        return False  # what opens it next says why


def _open_tflite(path: Path, threads: int) -> RunnableModel:
    """Opens a TFLite file, float or integer, through its signature where it has one, and runs it on noise.

    The interpreter trusts what it reads: a damaged file that passes `_check_whole` may end the process.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: this model cannot be read ({error.strerror}).") from error
    try:
        _check_whole(content)
        model = _interpreted(path, content, threads)
        noise = np.random.default_rng(0).integers(0, 256, (2, model.input_size, model.input_size, 3), np.uint8)
        for count in (1, 2):
            came = [np.shape(output) for output in model.infer(noise[:count])]
            if came != [(count, 2 * model.num_landmarks), (count, 3)]:
                raise ValueError(f"outputs of shape {came} for {count} images")
        return model
    except InputError:
        raise
    except Exception as error:  # ValueError, RuntimeError, struct.error and more; all mean the file is not usable
        raise InputError(
            f"{path}: not a model that TFLite loads ({first_line(error, 120)}). Export it again."
        ) from error


def _check_whole(content: bytes) -> None:
    """Reads every table of a TFLite file in Python, where a part that is missing is an error.

    The interpreter follows offsets past the end of a file that is cut short, which ends the process.
    """
    from tensorflow.lite.python import schema_py_generated as schema  # slow to import, and only TFLite needs it

    if content[4:8] != b"TFL3":
        raise ValueError("not a TFLite file" if content else "empty file")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, MemoryError) as error:
        raise ValueError("cut short or damaged") from error
    if not model.subgraphs:
        raise ValueError("no network in it")
    for buffer in model.buffers or []:  # weights of a file of more than 2 GB lie outside the tables
        if buffer.offset > 1 and buffer.offset + buffer.size > len(content):
            raise ValueError("cut short")


def _interpreted(path: Path, content: bytes, threads: int) -> RunnableModel:
    """Returns what runs the signature `serving_default`, else the first one, else the main graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it will move to another package; ours is pinned
        interpreter = tf.lite.Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    keys = list(interpreter.get_signature_list())
    if keys:
        graph = interpreter.get_signature_runner("serving_default" if "serving_default" in keys else keys[0])
        inputs, outputs = graph.get_input_details(), graph.get_output_details()
    else:
        details = interpreter.get_input_details(), interpreter.get_output_details()
        inputs, outputs = ({str(tensor["index"]): tensor for tensor in tensors} for tensors in details)

        def graph(**values: np.ndarray) -> dict[str, np.ndarray]:
            for name, value in values.items():
                interpreter.resize_tensor_input(int(name), value.shape)
            interpreter.allocate_tensors()
            for name, value in values.items():
                interpreter.set_tensor(int(name), value)
            interpreter.invoke()
            return {name: interpreter.get_tensor(int(name)) for name in outputs}

    def shapes(details: dict[str, dict]) -> dict[str, list[int | None]]:
        return {name: [None if n < 0 else int(n) for n in d["shape_signature"]] for name, d in details.items()}

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results = graph(**{name: _quantised(images, pixels) for name, pixels in inputs.items()})
        return {name: _dequantised(results[name], details) for name, details in outputs.items()}

    (pixels, *_) = inputs.values()
    model = _runnable(path, f"TFLite {np.dtype(pixels['dtype']).name}", shapes(inputs), shapes(outputs), run)
    if pixels["dtype"] == np.int8 and not pixels["quantization"][0]:
        raise InputError(f"{path}: int8 input without a scale, so pixels have no meaning. Export it again.")
    return model


def _quantised(pixels: np.ndarray, details: dict) -> np.ndarray:
    """Returns pixels 0..255 as a model's input has them: value = (q - zero point) * scale."""
    dtype, (scale, zero) = details["dtype"], details["quantization"]
    if not scale or (dtype, scale, zero) == (np.uint8, 1.0, 0):  # what `export.py` writes
        return pixels.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.round(pixels / scale + zero), limits.min, limits.max).astype(dtype)


def _dequantised(values: np.ndarray, details: dict) -> np.ndarray:
    scale, zero = details["quantization"]
    return (values.astype(np.float64) - zero) * scale if scale else values
