"""Opens what only TensorFlow runs: `.keras`, the release's `.h5`, SavedModel; start weights (TensorFlow)."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from asmnet_tf.data.sidecars import crop_of, read_sidecar
from asmnet_tf.files import InputError, refusing
from asmnet_tf.formats.release import OURS, Convention, is_release, load_original_model
from asmnet_tf.formats.runners import Infer, RunnableModel, input_size_of, runnable
from asmnet_tf.network import keras
from asmnet_tf.network.asmnet import count_multiply_adds
from asmnet_tf.network.checkpoints import StartWeights, load_model, read_weights
from asmnet_tf.network.fast_graphs import folded_model


def open_with_tensorflow(path: Path) -> RunnableModel:
    """Opens a model, Keras 2 as the release, in its convention, Keras 3 as this package; see `runners.open_model`."""
    if path.is_dir():
        return _open_saved_model(path)
    if release := is_release(path):
        model, convention = load_original_model(path)
        sidecar = {"crop": convention.crop, "convention": convention.describe()} | read_sidecar(path)
    else:
        (model, sidecar), convention = load_model(path), OURS
    size = input_size_of(path, model.input_shape)[1]
    costs = model.count_params(), count_multiply_adds(model)
    infer, landmarks = compiled(model, convention, folded=True), model.output_shape[0][1] // 2
    return RunnableModel(infer, landmarks, size, *costs, sidecar, "release h5" if release else "keras")


def compiled(model: keras.Model, convention: Convention = OURS, folded: bool = False) -> Infer:
    """Returns a Keras model's inference as one function; `folded`: a third faster, but blind to later weights."""
    if folded:
        model = folded_model(model)

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)])
    def infer(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(convention.to_network_input(tf.cast(images, tf.float32)), training=False)
        return [convention.landmarks_to_network_units(outputs[0]), outputs[1]]

    if not folded:
        return infer
    graph = infer.get_concrete_function()  # called directly, it saves looking for the trace: 8 % of one face
    # `infer` is bound here because the graph's variables live only as long as the model
    return lambda images, _model=infer: graph(tf.convert_to_tensor(images, tf.uint8))


def read_start_weights(source: str, input_range: tuple[float, float]) -> StartWeights:
    """As `checkpoints.read_weights`, but heads of the release's files are brought to our convention."""
    path = Path(source)
    if not is_release(path, with_heads=True):  # a name, a backbone, weights of Keras 3
        return read_weights(source, input_range)
    model, convention = load_original_model(path)
    stored = {layer.name: layer.get_weights() for layer in model.layers}
    stored["O_L"] = [convention.landmarks_to_network_units(array) for array in stored["O_L"]]
    scaling = model.get_layer("rescaling")
    scale = 255.0 * scaling.scale / convention.input_divisor
    crop = crop_of(path, {"crop": convention.crop} | read_sidecar(path))
    return StartWeights(source, stored, (scaling.offset, scaling.offset + scale), crop)


def _open_saved_model(path: Path) -> RunnableModel:
    """Opens what `model.export` or `tf.saved_model.save` wrote, through its signature."""
    if not (path / "saved_model.pb").is_file():
        raise InputError(f"{path}: a folder without saved_model.pb, so no SavedModel. Give a model file inside it?")
    with refusing(f"{path}: not a SavedModel that TensorFlow loads", then="Export again."):
        loaded = tf.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    if not signatures:
        raise InputError(f"{path}: a SavedModel without signatures. Export it with model.export.")
    signature = signatures.get("serving_default", next(iter(signatures.values())))
    inputs = signature.structured_input_signature[1]
    shapes = (
        {name: spec.shape.as_list() if spec.shape.rank else [None] for name, spec in specs.items()}
        for specs in (inputs, signature.structured_outputs)
    )

    # `loaded` is bound here because its variables live only as long as it does
    def run(images: np.ndarray, _loaded: object = loaded) -> dict[str, tf.Tensor]:
        ((name, spec),) = inputs.items()
        return signature(**{name: tf.cast(images, spec.dtype)})

    return runnable(path, "SavedModel", *shapes, run)
