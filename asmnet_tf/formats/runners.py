"""Opens a model for inference whatever wrote it: TFLite and ONNX here, what needs TensorFlow in keras_runners.py.

Every kind ends as a `RunnableModel`, all that scoring knows of a model; one more kind is one more branch of
`open_model`. A SavedModel is a program: open those you trust.
"""

import importlib
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from asmnet_tf.data.sidecars import has_pose, read_sidecar
from asmnet_tf.files import InputError, cores, refusing

_process: int | None = None  # that opened the first model of TensorFlow
MAX_INPUT_SIZE = 4096  # pixels; one image then is 50 MB
# RGB uint8 (B, S, S, 3), any B -> landmarks (B, 2L) and pose (B, 3) in network units, as arrays or eager tensors
Infer = Callable[[np.ndarray], Sequence]


@dataclass(frozen=True, eq=False)
class RunnableModel:
    """A model ready to run.

    infer: pixels 0..255 to network units, see `Infer`; another convention is translated inside it. input_size: S.
    parameters, multiply_adds: of one image; None where the file does not tell. sidecar: the `.json` beside it, or {}.
    """

    infer: Infer
    num_landmarks: int
    input_size: int
    parameters: int | None = None
    multiply_adds: int | None = None
    sidecar: dict = field(default_factory=dict)
    format: str = "keras"

    @property
    def has_pose(self) -> bool:
        """Whether the pose was trained."""
        return has_pose(self.sidecar)


def open_model(path: str | Path, threads: int | None = None) -> RunnableModel:
    """Opens a model: `.tflite` or what begins so TFLite, `.onnx` ONNX, a folder a SavedModel, else `.keras` or `.h5`.

    Args:   threads: of TFLite and ONNX; default: the cores, 4 at most, for one face has no work for more.
    Raises: InputError for a file that is missing, damaged or no model with landmarks and pose. A model of
            TensorFlow raises RuntimeError, here and when it runs, in a fork of the process that opened the first one.
    """
    global _process
    path, threads = Path(path), threads or min(4, cores())
    if not needs_tensorflow(path):
        return (_open_onnx if path.suffix == ".onnx" else _open_tflite)(path, threads)
    check_process()
    _process = os.getpid()
    model = needed("asmnet_tf.formats.keras_runners", path, "train").open_with_tensorflow(path)

    def infer(images: np.ndarray) -> Sequence:
        check_process()
        return model.infer(images)

    return replace(model, infer=infer)


def needs_tensorflow(path: Path) -> bool:
    """Returns whether only TensorFlow runs a model: all but TFLite and ONNX files."""
    if path.is_dir() or path.suffix in (".tflite", ".onnx"):
        return path.is_dir()
    try:
        with open(path, "rb") as file:
            return file.read(8)[4:] != b"TFL3"
    except OSError:
        return True  # what opens it next says why


def needed(module: str, path: Path, extra: str) -> ModuleType:
    """Imports what a kind of model needs. Raises: InputError that names the extra, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        told = f"{error.name or module} is not installed, which this kind of model needs"
        raise InputError(f'{path}: {told}. pip install "asmnet-tf[{extra}]"') from error


def check_process() -> None:
    """Raises: RuntimeError in a fork of a process that has opened a model of TensorFlow, whose threads it lacks."""
    if _process not in (None, os.getpid()):
        raise RuntimeError(
            f"process {os.getpid()} is a fork of process {_process}, which holds a model: TensorFlow does not run "
            "in a fork. Open the model in each process, started with multiprocessing.get_context('spawn')."
        )


# --- what the kinds share ---------------------------------------------------------------------------------------------


def runnable(
    path: Path, kind: str, inputs: dict[str, Sequence], outputs: dict[str, Sequence], run: Callable[[np.ndarray], dict]
) -> RunnableModel:
    """Returns the model of a graph whose tensors have names and shapes (any length: no number, or below 1).

    Args:   run: images of as many as the graph takes at a time -> its outputs by name.
    Raises: InputError unless it takes images and returns landmarks and pose.
    """
    if len(inputs) != 1:
        raise InputError(f"{path}: {len(inputs)} inputs, expected one, images (B, S, S, 3).")
    batch, size = input_size_of(path, next(iter(inputs.values())))
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


def input_size_of(path: Path, shape: Sequence) -> tuple[int | None, int]:
    """Returns the batch size (None: any) and S of an input (B, S, S, 3). Raises: InputError for another shape."""
    batch, *rest = _lengths(shape)
    if len(rest) != 3 or rest[0] is None or not rest[0] == rest[1] <= MAX_INPUT_SIZE or rest[2] != 3:
        raise InputError(f"{path}: takes input of shape {(batch, *rest)}, expected images (B, S, S, 3) of one size.")
    return batch, rest[0]


def _lengths(shape: Sequence) -> list[int | None]:
    return [int(n) if isinstance(n, (int, np.integer)) and n > 0 else None for n in shape]


def _output_names(path: Path, shapes: dict[str, Sequence]) -> list[str]:
    """Returns the names of landmarks and pose: `O_L` and `O_P`, else by shape, since exporters lose names and order."""
    given = {name: tuple(_lengths(shape)) for name, shape in shapes.items()}
    chosen = []
    for wanted, fits in (("O_L", lambda n: n > 3 and n % 2 == 0), ("O_P", lambda n: n == 3)):
        found = [name for name, shape in given.items() if len(shape) == 2 and shape[1] and fits(shape[1])]
        if wanted not in found and len(found) != 1:
            raise InputError(f"{path}: outputs {given}, expected landmarks (B, 2L) and pose (B, 3).")
        chosen.append(wanted if wanted in found else found[0])
    return chosen


# --- the kinds --------------------------------------------------------------------------------------------------------


def _open_onnx(path: Path, threads: int) -> RunnableModel:
    """Opens an ONNX file; from its bytes, so that it can name no other file."""
    runtime = needed("onnxruntime", path, "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    with refusing(f"{path}: not a model that ONNX Runtime loads", then="Export it again."):
        session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    (pixels, *_) = session.get_inputs()
    kinds = {"uint8": np.uint8, "float16": np.float16, "float": np.float32, "double": np.float64}
    dtype = kinds.get(pixels.type.removeprefix("tensor(").removesuffix(")"))
    if dtype is None:
        raise InputError(f"{path}: takes {pixels.type}, expected pixels 0..255 as uint8 or float. Export it again.")
    inputs, outputs = ({t.name: t.shape for t in tensors} for tensors in (session.get_inputs(), session.get_outputs()))

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(None, {pixels.name: images.astype(dtype, copy=False)})))

    return runnable(path, "ONNX", inputs, outputs, run)


def _open_tflite(path: Path, threads: int) -> RunnableModel:
    """Opens a TFLite file, float or integer, through its signature where it has one, and runs it on noise.

    The interpreter trusts what it reads: a damaged file that passes `_check_whole` may end the process.
    """
    with refusing(f"{path}: this model cannot be read", (OSError,)):
        content = path.read_bytes()
    try:
        package = "ai_edge_litert"
        interpreter = importlib.import_module(f"{package}.interpreter").Interpreter
    except ImportError:  # no wheel of it for this system
        package = "tensorflow.lite.python"
        interpreter = needed(f"{package}.interpreter", path, "train").Interpreter
    with refusing(f"{path}: not a model that TFLite loads", then="Export it again."):
        _check_whole(content, importlib.import_module(f"{package}.schema_py_generated"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # TensorFlow's says that it will move to the other package
            model = _interpreted(path, interpreter(model_content=content, num_threads=threads))
        noise = np.random.default_rng(0).integers(0, 256, (2, model.input_size, model.input_size, 3), np.uint8)
        for count in (1, 2):
            came = [np.shape(output) for output in model.infer(noise[:count])]
            if came != [(count, 2 * model.num_landmarks), (count, 3)]:
                raise ValueError(f"outputs of shape {came} for {count} images")
        return model


def _check_whole(content: bytes, schema: ModuleType) -> None:
    """Reads every table of a TFLite file in Python: the interpreter follows offsets past the end of one cut short."""
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


def _interpreted(path: Path, interpreter: Any) -> RunnableModel:
    """Returns what runs the signature `serving_default`, else the first one, else the main graph."""
    interpreter.allocate_tensors()
    keys = list(interpreter.get_signature_list())
    if keys:
        graph = interpreter.get_signature_runner("serving_default" if "serving_default" in keys else keys[0])
        inputs, outputs = graph.get_input_details(), graph.get_output_details()
    else:
        details = interpreter.get_input_details(), interpreter.get_output_details()
        inputs, outputs = ({str(tensor["index"]): tensor for tensor in tensors} for tensors in details)

        def graph(**values: np.ndarray) -> dict[str, np.ndarray]:
            ((name, value),) = values.items()
            interpreter.resize_tensor_input(int(name), value.shape)
            interpreter.allocate_tensors()
            interpreter.set_tensor(int(name), value)
            interpreter.invoke()
            return {name: interpreter.get_tensor(int(name)) for name in outputs}

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results = graph(**{name: _quantised(images, pixels) for name, pixels in inputs.items()})
        return {name: _dequantised(results[name], details) for name, details in outputs.items()}

    (pixels, *_) = inputs.values()
    shapes = ({name: details["shape_signature"] for name, details in side.items()} for side in (inputs, outputs))
    model = runnable(path, f"TFLite {np.dtype(pixels['dtype']).name}", *shapes, run)
    if pixels["dtype"] == np.int8 and not pixels["quantization"][0]:
        raise InputError(f"{path}: int8 input without a scale, so pixels have no meaning. Export it again.")
    if pixels["quantization"][0]:
        limits = np.iinfo(pixels["dtype"])
        low, high = _dequantised(np.array([limits.min, limits.max]), pixels)
        if high < 128:
            told = f"takes {low:.3g} to {high:.3g}, expected pixels 0..255"
            raise InputError(f"{path}: {told}. Put the rescaling into the model and export it again.")
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
