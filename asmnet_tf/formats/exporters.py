"""Makes a SavedModel, TFLite or ONNX of a Keras model, and compares the two on faces (TensorFlow); for `export.py`.

All hold the inference graph, batch norms folded into the convolutions, behind one signature, `serving_default`:
`image` (B, S, S, 3), RGB 0..255 -> {`O_L`: (B, 2L), `O_P`: (B, 3)} float32, in network units. `image` is float32, or
uint8 in an int8 file.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from asmnet_tf.config import PHOTO_ENDINGS, POSE_RANGE_DEG
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.geometry import crop_frame, crop_image, landmark_box, read_image
from asmnet_tf.data.layouts import DATASETS, REAL, spec_of
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.sidecars import crop_of
from asmnet_tf.files import InputError, refusing
from asmnet_tf.formats.keras_runners import compiled
from asmnet_tf.formats.release import OUTPUTS, RELEASE, export_release
from asmnet_tf.formats.runners import needed, open_model
from asmnet_tf.network import keras
from asmnet_tf.network.asmnet import count_multiply_adds
from asmnet_tf.network.fast_graphs import folded_model
from asmnet_tf.synthetic.renderer import render_face

SIGNATURE = "serving_default"
SYNTHETIC = "synthetic"
SEED = 1  # of the synthetic faces; those of the datasets have seed 0


def write(model: keras.Model, path: Path, to: str, quantise: str, crops: np.ndarray) -> None:
    """Writes an export; `to`: tflite, onnx, savedmodel or h5. Args and Raises: see `to_tflite` and `export_release`."""
    if to == "tflite":
        path.write_bytes(to_tflite(model, quantise, crops))
    else:
        {"savedmodel": write_saved_model, "onnx": write_onnx, "h5": export_release}[to](model, path)


def describe(model: keras.Model, to: str, quantise: str, has_pose: bool = True) -> dict:
    """Returns what the side-car of an export says: what the file takes, gives, costs, and that no pose was trained."""
    size, landmarks, release = model.input_shape[1], model.output_shape[0][1], to == "h5"
    return {
        "format": to,
        "quantisation": quantise,
        "num_landmarks": landmarks // 2,
        "input_size": size,
        "input": f"RGB pixels {'/ 255' if release else '0..255'}, {'uint8' if quantise == 'int8' else 'float32'} "
        f"(B, {size}, {size}, 3)",
        "outputs": [f"O_L float32 (B, {landmarks})", "O_P float32 (B, 3)"],
        "landmarks": f"O_L: {'(centre - p)' if release else '(p - centre)'} / size of the crop, x0, y0, x1, ...",
        "pose": f"O_P: yaw, pitch, roll over {POSE_RANGE_DEG:g} degrees" if has_pose else None,
        "pose_range_deg": POSE_RANGE_DEG,
        "parameters": model.count_params(),
        "multiply_adds": count_multiply_adds(model),
        "tensorflow": tf.__version__,
    } | ({"convention": RELEASE.describe()} if release else {"signature": f"{SIGNATURE}: image -> O_L, O_P"})


def write_saved_model(model: keras.Model, folder: str | Path, shifts: list[np.ndarray] | None = None) -> None:
    """Writes a SavedModel. Args: shifts: (2L,) and (3,), added to the outputs. The model itself stays as it is."""
    graph = folded_model(model)

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = graph(image, training=False)
        if shifts is not None:
            outputs = [output + tf.constant(shift, tf.float32) for output, shift in zip(outputs, shifts)]
        return dict(zip(OUTPUTS, outputs))

    archive = keras.export.ExportArchive()
    archive.track(graph)
    archive.add_endpoint(SIGNATURE, serve, [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")])
    archive.write_out(folder, verbose=False)


def write_onnx(model: keras.Model, path: Path) -> None:
    """Writes an ONNX file: `image` (B, S, S, 3) float32 -> `O_L`, `O_P`. Raises: InputError without extra [onnx]."""
    onnx, tf2onnx = (needed(module, path, "onnx") for module in ("onnx", "tf2onnx"))
    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")]
    call = tf.function(lambda image: dict(zip(OUTPUTS, model(image, training=False))), input_signature=signature)
    converted, _ = tf2onnx.convert.from_function(call, signature, opset=17)  # of a dict the names are kept
    onnx.checker.check_model(converted)
    path.write_bytes(converted.SerializeToString())


def to_tflite(model: keras.Model, quantise: str = "none", crops: np.ndarray | None = None) -> bytes:
    """Returns the content of a TFLite file.

    int8 is full-integer: weights scaled by channel, activations by tensor from the ranges seen on `crops`. What
    rounding adds to an output on average over `crops` is then taken off its bias, in a second conversion: rounded
    weights shift the pooled features alike for all faces.

    Args:   quantise: none, float16 or int8. crops: RGB uint8 (N, S, S, 3), of int8 only.
    Raises: InputError for a model that TFLite cannot express.
    """

    def convert(folder: str, shifts: list[np.ndarray] | None = None) -> bytes:
        write_saved_model(model, folder, shifts)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.optimizations = [] if quantise == "none" else [tf.lite.Optimize.DEFAULT]
        if quantise == "float16":
            converter.target_spec.supported_types = [tf.float16]
        elif quantise == "int8":
            images = crops.astype(np.float32)
            images[0, 0, 0], images[0, -1, -1] = 0.0, 255.0  # so that the input's scale is 1: plain uint8
            converter.representative_dataset = lambda: ([image[None]] for image in images)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
        with refusing(f"{model.name}: TFLite cannot express this model", then="Use --to savedmodel."):
            return converter.convert()

    with tempfile.TemporaryDirectory() as folder:
        content = convert(f"{folder}/plain")
        if quantise != "int8":
            return content
        path = Path(folder) / "rounded.tflite"
        path.write_bytes(content)
        outputs = zip(compiled(model)(crops), open_model(path).infer(crops))
        shifts = [np.mean(exact, 0, np.float64) - np.mean(rounded, 0, np.float64) for exact, rounded in outputs]
        return convert(f"{folder}/shifted", shifts)


def differences(model: keras.Model, path: Path, crops: np.ndarray) -> dict[str, float]:
    """Opens an exported file and returns how far it is from its model on crops (N, S, S, 3), on average and at most.

    Landmarks: |difference| of a coordinate, as a share of the crop's side. Pose: of an angle.
    """
    exact, exported = compiled(model)(crops), open_model(path).infer(crops)
    landmarks, pose = (np.abs(np.asarray(a) - np.asarray(b)) for a, b in zip(exact, exported))
    return {
        "faces": len(crops),
        "landmarks_mean": float(landmarks.mean()),
        "landmarks_max": float(landmarks.max()),
        "pose_mean_deg": float(pose.mean()) * POSE_RANGE_DEG,
        "pose_max_deg": float(pose.max()) * POSE_RANGE_DEG,
    }


def face_crops(source: str, count: int, path: Path, model: keras.Model, sidecar: dict) -> np.ndarray:
    """Returns faces in the crop of a model's side-car, RGB uint8 (N, S, S, 3), 2 <= N <= count.

    Args:   source: `synthetic`, or a folder: of 300W or WFLW, whose training faces are cropped as in evaluation, or of
            face crops, each of which is brought to S x S as it is. Of more than `count` every n-th is taken.
    Raises: InputError for a folder without two faces, an image that does not decode or is annotated (so no crop), or a
            side-car without a crop.
    """
    size, num_landmarks = model.input_shape[1], model.output_shape[0][1] // 2
    crop, scale = crop_of(path, sidecar)
    if source == SYNTHETIC:
        faces = (render_face(SEED, i) for i in range(count))
        boxes = ((face.image, landmark_box(face.landmarks_68)) for face in faces)
        return np.stack([crop_image(image, crop_frame(box, crop, scale), size) for image, box in boxes])
    folder = Path(source)
    own = [spec_of(sidecar, num_landmarks, path)] if "description" in sidecar else []
    for spec in (*own, *(DATASETS[name] for name in REAL)):
        places = [folder / part.path for part in spec.splits.get("train", ())]
        if spec.num_landmarks == num_landmarks and any(place.exists() for place in places):
            samples = _spread(read_samples(spec, folder, "train", quiet=True), count, folder)
            return FacePatches(samples, crop, scale, size, margin=1.0, cache="none").crops()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give one of faces, or --calibrate {SYNTHETIC}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_ENDINGS)
    for path in paths:
        if path.with_suffix(".pts").exists():
            raise InputError(f"{path}: annotated, so no face crop. Give the dataset's folder, as downloaded.")
    images = [read_image(path) for path in _spread(paths, count, folder)]
    frames = [((w - 1) / 2, (h - 1) / 2, w, h) for h, w in (image.shape[:2] for image in images)]
    return np.stack([crop_image(image, np.array(frame), size) for image, frame in zip(images, frames)])


def _spread(items: list, count: int, folder: Path) -> list:
    if len(items) < 2:
        raise InputError(f"{folder}: {len(items)} faces, two are needed: one calibrates, the other compares.")
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]
