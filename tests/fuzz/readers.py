"""Every reader of the package: valid small files of its kind, all synthetic, and how it is called.

A `Reader` reads one path and checks what came: whatever the file, the result is valid or an InputError.
"""

import contextlib
import dataclasses
import functools
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
from scipy.io import savemat

from asmnet_tf.data import annotations, geometry, pose
from asmnet_tf.data.layouts import DATASETS, FOLDER, Source, find_spec, spec_of
from asmnet_tf.evaluation import predictions, truth
from asmnet_tf.faces import face_files
from asmnet_tf.formats import release_pca
from asmnet_tf.shape import shape_model, training_shapes

SPEC = DATASETS["300w"]


@dataclass(frozen=True)
class Reader:
    """seeds: valid files. name: what the file is called, relative to the folder of the test. slow: files of the slow
    part, quick: of the quick one. prepare: writes what must stand beside the file, once."""

    seeds: Callable[[], list[bytes]]
    name: str
    read: Callable[[Path], object]
    slow: int
    quick: int
    prepare: Callable[[Path], object] = lambda folder: None
    tensorflow: bool = False


READERS: dict[str, Reader] = {}


def reader(name: str, seeds: Callable, slow: int, quick: int = 25, prepare: Callable = lambda folder: None, tf=False):
    """Registers a function that reads a path, under the function's own name."""

    def register(read: Callable[[Path], object]) -> Callable:
        READERS[read.__name__] = Reader(functools.cache(seeds), name, read, slow, quick, prepare, tf)
        return read

    return register


def _rng() -> np.random.Generator:
    return np.random.default_rng(5)


def _bytes(save: Callable, *args, **kwargs) -> bytes:
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def _finite(*arrays: np.ndarray) -> None:
    assert all(np.isfinite(array).all() for array in arrays)


def _silent() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    return stack


# --- annotations and images -------------------------------------------------------------------------------------------


def _pts() -> list[bytes]:
    rows = "".join(f"{x:.3f} {y:.3f}\n" for x, y in _rng().uniform(1, 200, (68, 2)))
    texts = [f"version: 1\nn_points: 68\n{{\n{rows}}}\n", rows, rows.replace("\n", "\r\n"), rows.replace(".", ",")]
    return [*(text.encode() for text in texts), rows.encode("utf-16")]


@reader("a.pts", _pts, slow=3000)
def pts(path: Path) -> None:
    points = annotations.read_pts(path, 68)
    assert points.shape == (68, 2)
    _finite(points)


def _jpeg(value: int = 90) -> bytes:
    pixels = _rng().integers(0, value, (24, 32, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def _images() -> list[bytes]:
    colour, deep = _rng().integers(0, 256, (24, 32, 3), np.uint8), _rng().integers(0, 1 << 16, (24, 32, 3), np.uint16)
    kinds = [(".jpg", colour), (".png", colour), (".png", deep), (".png", colour[..., 0]), (".bmp", colour)]
    kinds += [(".jpg", colour[..., 0]), (".png", np.dstack([colour, colour[..., :1]])), (".webp", colour)]
    kinds += [(".tif", colour), (".ppm", colour)]
    progressive = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    return [progressive, *(cv2.imencode(ending, pixels)[1].tobytes() for ending, pixels in kinds)]


@reader("a.jpg", _images, slow=3000, quick=75)
def image(path: Path) -> None:
    size = geometry.image_size(path)
    pixels = geometry.read_image(path)
    assert size[:2] == pixels.shape[1::-1]
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    patch = geometry.cut_patch(pixels, np.array([10.0, 10, 20, 20]), 32)
    assert patch.pixels.size


def _own_folder(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(_jpeg())
    (folder / "b.jpg").write_bytes(_jpeg())


def _own(path: Path) -> None:
    """Reads a file of annotations of five points, with bad faces skipped and not."""
    sources = {"test": (Source("test", path.name),)}
    spec = dataclasses.replace(DATASETS["points5"], splits=sources)
    for skip in (True, False):
        samples = annotations.read_samples(spec, path.parent, "test", quiet=True, bad=annotations.BadSamples(skip))
        assert all(sample.landmarks.shape == (5, 2) for sample in samples)
        _finite(*(sample.landmarks for sample in samples))


def _points5() -> list[tuple[str, list]]:
    return [(name, _rng().uniform(2, 22, (5, 2)).round(2).tolist()) for name in ("a.jpg", "b.jpg", "a.jpg")]


def _own_csv() -> list[bytes]:
    header = "image," + ",".join(f"x{i},y{i}" for i in range(5))
    rows = [",".join([name, *(str(v) for point in points for v in point)]) for name, points in _points5()]
    text = "\n".join([header, *rows, ""])
    return [text.encode(), text.replace(",", ";").replace("\n", "\r\n").encode("utf-16")]


@reader("a.csv", _own_csv, slow=1000, prepare=_own_folder)
def own_csv(path: Path) -> None:
    _own(path)


def _own_xml() -> list[bytes]:
    images = ""
    for name, points in _points5():
        parts = "".join(f"<part name='{k:02d}' x='{x}' y='{y}'/>" for k, (x, y) in enumerate(points))
        images += f"<image file='{name}'><box top='1' left='1' width='20' height='20'>{parts}</box></image>\n"
    return [f"<?xml version='1.0'?>\n<dataset><images>{images}</images></dataset>\n".encode()]


@reader("a.xml", _own_xml, slow=1000, prepare=_own_folder)
def own_xml(path: Path) -> None:
    _own(path)


def _own_coco() -> list[bytes]:
    images = [{"id": k, "file_name": name} for k, name in enumerate(("a.jpg", "b.jpg"))]
    faces = [
        {"id": k, "image_id": int(name[0] == "b"), "keypoints": [v for x, y in points for v in (x, y, 2)]}
        for k, (name, points) in enumerate(_points5())
    ]
    return [json.dumps({"images": images, "annotations": faces}).encode()]


@reader("a.json", _own_coco, slow=1000, prepare=_own_folder)
def own_coco(path: Path) -> None:
    _own(path)


def _descriptions() -> list[bytes]:
    texts = (b"\n" + path.read_bytes() for path in sorted(FOLDER.glob("*.toml")))
    return [text.replace(b"\nname = ", b"\nname = 'x' # ", 1) for text in texts]


@reader("a.toml", _descriptions, slow=1000)
def description(path: Path) -> None:
    spec = find_spec(str(path))
    assert sorted(spec.flip_map) == list(range(spec.num_landmarks))
    assert all(0 <= i < spec.num_landmarks for indices, _ in spec.contours for i in indices)


def _aflw2000() -> list[bytes]:
    content = {"Pose_Para": _rng().uniform(-0.5, 0.5, (1, 7)), "pt3d_68": _rng().uniform(2, 22, (3, 68))}
    return [_bytes(savemat, content), _bytes(savemat, content, do_compression=True)]


@reader("a.mat", _aflw2000, slow=1000, prepare=_own_folder)
def aflw2000_mat(path: Path) -> None:
    samples = annotations.read_samples(DATASETS["aflw2000"], path.parent, "test", quiet=True)
    _finite(*(sample.landmarks for sample in samples), *(sample.pose for sample in samples))


def _wflw_folder(folder: Path) -> None:
    images = folder / "wflw/WFLW_images/0--Parade"
    images.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes(_jpeg())
    (folder / "wflw/WFLW_annotations/list_98pt_rect_attr_train_test").mkdir(parents=True)


def _wflw() -> list[bytes]:
    lines = []
    for name in ("a.jpg", "b.jpg", "a.jpg", "absent.jpg"):
        points = " ".join(f"{v:.2f}" for v in _rng().uniform(0, 30, 196))
        lines.append(f"{points} 1 2 30 40 0 1 0 0 1 0 0--Parade/{name}")
    return ["\n".join(lines).encode() + b"\n", "\n\n".join(lines[:2]).encode()]


_WFLW_LIST = "wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"


@reader(_WFLW_LIST, _wflw, slow=2000, prepare=_wflw_folder)
def wflw_list(path: Path) -> None:
    folder = path.parents[2]
    with _silent():
        samples = annotations.read_samples(DATASETS["wflw"], folder, "train", quiet=True)
    for sample in samples:
        assert sample.image_path.resolve().is_relative_to((folder / "WFLW_images").resolve())
        assert sample.name.isprintable() or "\n" not in sample.name
        _finite(sample.landmarks, sample.bbox)


def _mat() -> list[bytes]:
    file = io.BytesIO()
    with h5py.File(file, "w") as mat:
        mat["phisTr"] = np.vstack([_rng().uniform(1, 20, (58, 2)), np.eye(29, 2)])
        refs = mat.create_dataset("IsTr", (1, 2), h5py.ref_dtype)
        for i, shape in enumerate([(3, 24, 20), (24, 20)]):
            data = mat.create_dataset(f"#refs#/{i}", data=_rng().integers(0, 256, shape, np.uint8), chunks=True)
            refs[0, i] = data.ref
    return [file.getvalue()]


@reader("COFW_train_color.mat", _mat, slow=1500)
def cofw_mat(path: Path) -> None:
    samples = annotations.read_samples(DATASETS["cofw"], path.parent, "train", quiet=True)
    for sample in samples[:3]:
        _finite(sample.landmarks)
        assert sample.read_image().shape[2] == 3


def _pose_csv() -> list[bytes]:
    rows = "".join(f"helen/{i},{i}.5,-{i},0.25\n" for i in range(12))
    semicolons = f"name;yaw;pitch;roll\n{rows.replace(',', ';').replace('.', ',')}".encode("utf-16-le")
    return [semicolons, f"name,yaw,pitch,roll\n{rows}".encode(), b'roll,"name",yaw,pitch,more\n1,"a,b",2,3,4\n']


@reader("pose.csv", _pose_csv, slow=1200)
def pose_csv(path: Path) -> None:
    _finite(*pose.read_pose_labels(path).values())


@reader("boxes.csv", lambda: [b"image,x_min,y_min,x_max,y_max,angle\na.jpg,1,2,3.5,4,1\nb/c.png,0,0,9,9,\n"], slow=700)
def boxes_csv(path: Path) -> None:
    _finite(*(row.box for row in face_files.read_boxes(path)))


@reader("poses/helen/a.npy", lambda: [_bytes(np.save, np.array([0.1, -0.5, 1.0]))], slow=700)
def pose_npy(path: Path) -> None:
    _finite(*pose.read_pose_labels(path.parents[1]).values())


# --- arrays -----------------------------------------------------------------------------------------------------------


def _shapes(points: int = 68, count: int = 40) -> np.ndarray:
    mean = np.linspace(-0.45, 0.45, 2 * points)
    return mean + _rng().normal(0, 0.02, (count, 2 * points))


@reader("shapes.npy", lambda: [_bytes(np.save, _shapes().astype(t)) for t in ("f4", "f8")], slow=1500)
def shapes_npy(path: Path) -> None:
    shapes = training_shapes.read_shapes(path, SPEC)
    model = shape_model.ShapeModel.fit(shapes, "300w", "square", 1.2).keep(90.0)
    _finite(model.mean_shape, model.eigenvectors, model.eigenvalues)


def _shape_model(points: int = 8) -> shape_model.ShapeModel:
    return shape_model.ShapeModel.fit(_shapes(points), "300w", "square", 1.2).keep(90.0)


def _shape_models() -> list[bytes]:
    model = _shape_model()
    fields = {name: getattr(model, name) for name in vars(model)}
    return [_bytes(np.savez, **fields), _bytes(np.savez_compressed, **fields)]


@reader("model.npz", _shape_models, slow=2500)
def shape_model_npz(path: Path) -> None:
    model = shape_model.ShapeModel.load(path)
    _finite(model.smooth(model.mean_shape + 0.01), release_pca.to_units(model).eigenvalues)


def _release_parts(folder: Path) -> None:
    model = _shape_model()
    np.save(folder / "ibug_eigenvectors_90.npy", model.eigenvectors)
    np.save(folder / "ibug_meanvector_90.npy", model.mean_shape)


@reader(
    "ibug_eigenvalues_90.npy", lambda: [_bytes(np.save, _shape_model().eigenvalues)], slow=700, prepare=_release_parts
)
def release_pca_npy(path: Path) -> None:
    model = release_pca.load_release_pca(path.parent, "300w", 90)
    _finite(model.smooth(model.mean_shape + 0.01))


def _predictions() -> list[bytes]:
    landmarks = _rng().uniform(0, 200, (3, 68, 2))
    arrays = {"names": np.array(["helen/a", "helen/b", "c"]), "landmarks": landmarks, "pose": np.ones((3, 3))}
    truth = {"landmarks_gt": landmarks + 1, "pose_gt": np.zeros((3, 3))}
    return [_bytes(np.savez_compressed, **arrays), _bytes(np.savez, **arrays, **truth)]


@reader("theirs.npz", _predictions, slow=2500)
def predictions_npz(path: Path) -> None:
    file = predictions.read_predictions(path)
    spec = spec_of({}, file.landmarks.shape[1], path)
    if file.landmarks_gt is not None:
        truth.methods_of_files({"theirs": file}, truth.truth_of_files(file, None), [])
    chosen = predictions.align(file, file.names, spec.num_landmarks)
    assert chosen.landmarks.shape == (len(file.names), spec.num_landmarks, 2)
    assert chosen.pose is None or chosen.pose.shape == (len(file.names), 3)


# --- text beside models -----------------------------------------------------------------------------------------------


_SIDECAR = {"dataset": "300w", "num_landmarks": 68, "input_size": 112, "crop": "square", "crop_scale": 1.2, "seed": 0}


@reader("best.json", lambda: [json.dumps(_SIDECAR, indent=2).encode()], slow=1200, tf=True)
def sidecar(path: Path) -> None:
    from asmnet_tf.data import sidecars

    crop, scale = sidecars.crop_of(path.with_suffix(".keras"), sidecars.read_sidecar(path.with_suffix(".keras")), None)
    assert crop in ("square", "tight")
    assert 0.1 < scale < 10


_FLAGS = {"arch": "asmnet", "lr": 0.001, "epochs": 3, "alpha": [2.0, 1.0, 0.5], "seed": 0, "name": "x"}


@reader("args.json", lambda: [json.dumps({"flags": _FLAGS, "counts": {"train": 1}}).encode()], slow=600, tf=True)
def run_arguments(path: Path) -> None:
    from asmnet_tf.training import run_folder

    run_folder.check_flags(path.parent, {"deterministic": False, **_FLAGS})


# --- networks ---------------------------------------------------------------------------------------------------------


@functools.cache
def _network():
    """A network of the contract in a few kB, with layers as ASMNet has them."""
    import keras

    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(image)
    x = keras.layers.Conv2D(4, 3, strides=4, padding="same", use_bias=False, name="Conv1")(x)
    x = keras.layers.BatchNormalization(name="bn_Conv1")(x)
    x = keras.layers.ReLU(6.0, name="Conv1_relu")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(x)
    heads = [keras.layers.Dense(n, name=name)(x) for name, n in (("O_L", 136), ("O_P", 3))]
    return keras.Model(image, heads, name="tiny")


def _saved(path: Path, save: Callable[[Path], object]) -> bytes:
    save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def _scratch(name: str) -> Path:
    import tempfile

    return Path(tempfile.mkdtemp()) / name


def _keras_files() -> list[bytes]:
    sys.path.append(str(Path(__file__).parents[1]))
    from tools.install_pretrained import halve

    def half(path: Path) -> None:
        _network().save(path)
        halve(path, path)

    return [_saved(_scratch("a.keras"), _network().save), _saved(_scratch("a.keras"), half)]


@reader("best.keras", _keras_files, slow=1000, quick=30, tf=True)
def keras_file(path: Path) -> None:
    from asmnet_tf.network import checkpoints

    model, _ = checkpoints.load_model(path)
    side = model.input_shape[1]
    if model.input_shape == (None, side, side, 3) and side and side <= 64:
        landmarks, angles = model(np.zeros((1, side, side, 3), np.float32), training=False)
        assert landmarks.shape[1] % 2 == 0
        assert angles.shape == (1, 3)


def _weight_files() -> list[bytes]:
    """Weights of the same network as Keras 3 and Keras 2 write them."""
    names = [layer.name for layer in _network().layers]
    keras2 = io.BytesIO()
    with h5py.File(keras2, "w") as file:
        file.attrs["keras_version"] = b"2.4.0"
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in names]
        for layer in _network().layers:
            group = root.create_group(layer.name)
            keys = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.array([key.encode() for key in keys], "S") if keys else np.zeros(0, "S1")
            for key, weight in zip(keys, layer.weights):
                group[key] = weight.numpy()
    return [_saved(_scratch("a.weights.h5"), _network().save_weights), keras2.getvalue()]


@reader("some.weights.h5", _weight_files, slow=2000, quick=30, tf=True)
def weights_h5(path: Path) -> None:
    from asmnet_tf.network import checkpoints

    try:
        checkpoints.set_weights(_network(), checkpoints.read_weights(str(path), (-1.0, 1.0)), ("square", 1.2))
    finally:
        _finite(*_network().get_weights())


def _release() -> list[bytes]:
    from asmnet_tf.formats import release
    from asmnet_tf.network.asmnet import build_asmnet

    model = build_asmnet(68, 32, input_range=(0, 1))
    return [_saved(_scratch("a.h5"), lambda path: release.export_release(model, path))]


@reader("ASMNet.h5", _release, slow=200, quick=5, tf=True)
def release_h5(path: Path) -> None:
    from asmnet_tf.formats import release

    assert release.is_release(path) in (True, False)
    _finite(*release.load_original_model(path)[0].get_weights())


def _tflite() -> list[bytes]:
    import tensorflow as tf

    def convert(**settings) -> bytes:
        converter = tf.lite.TFLiteConverter.from_keras_model(_network())
        for key, value in settings.items():
            setattr(converter, key, value)
        return converter.convert()

    return [convert(), convert(optimizations=[tf.lite.Optimize.DEFAULT])]


@reader("model.tflite", _tflite, slow=1500, quick=40, tf=True)
def tflite(path: Path) -> None:
    from asmnet_tf.formats import runners

    model = runners.open_model(path)
    landmarks, angles = model.infer(np.zeros((2, model.input_size, model.input_size, 3), np.uint8))
    assert np.shape(landmarks) == (2, 2 * model.num_landmarks)
    assert np.shape(angles) == (2, 3)


@functools.cache
def _trainer(folder: Path):

    from asmnet_tf.config import AUGMENTATIONS, RECIPES, Phase
    from asmnet_tf.data import batches, patches
    from asmnet_tf.network import loss
    from asmnet_tf.training import schedule, trainer

    image_path = folder / "face.jpg"
    image_path.write_bytes(_jpeg())
    points = _rng().uniform(2, 22, (68, 2)).astype(np.float32)
    box = geometry.landmark_box(points)
    face = annotations.Sample("a", image_path, points, box, frozenset(), np.zeros(3))
    faces = [dataclasses.replace(face, name=str(i)) for i in range(4)]
    kept = patches.FacePatches(faces, "square", 1.2, 32, cache="memory")
    batches = batches.TrainingBatches(kept, AUGMENTATIONS["tuned"], 2, seed=0)
    plan = schedule.Plan(dataclasses.replace(RECIPES["paper"], phases=(Phase(2, lr=1e-3),)), 0, steps_per_epoch=2)
    loss = loss.MultiTaskLoss(SPEC.flip_map, None)
    return trainer.Trainer(_network(), batches, None, loss, plan, SPEC, folder, {})


def _states() -> list[bytes]:
    from asmnet_tf.training.run_folder import LOG_COLUMNS

    folder = _scratch("run")
    folder.mkdir()
    trainer = _trainer(folder)
    trainer.progress.epoch, trainer.progress.rows = 1, [dict.fromkeys(LOG_COLUMNS, 1)]
    trainer._save_state()
    return [(folder / "state.npz").read_bytes()]


@reader("state.npz", _states, slow=700, quick=20, tf=True)
def run_state(path: Path) -> None:
    from asmnet_tf.training.run_folder import load_state

    trainer = _trainer(path.parent)
    with _silent():
        trainer.go_on(*load_state(path.parent, 2))
    _finite(*trainer.model.get_weights())
