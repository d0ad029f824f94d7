"""The release's model files: genuine Keras 2 files, written and computed by tf_keras in a process of its own."""

import json
import shutil
from pathlib import Path

import cv2
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from asmnet_tf.config import crop_scale
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.files import InputError
from asmnet_tf.formats import release as release_format
from asmnet_tf.formats.keras_runners import read_start_weights
from asmnet_tf.formats.release import OURS, RELEASE, export_release, is_release, load_original_model
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network import checkpoints
from asmnet_tf.network.asmnet import build_asmnet, build_mobilenet_v2

pytest.importorskip("tf_keras", reason="tf_keras writes the files (tests/requirements.txt)")
SCRIPT = Path(__file__).with_name("keras2_files.py")
WHOLE = ["asmnet_68", "asmnet_98", "mobilenet_v2_68", "mobilenet_v2_98"]


@pytest.fixture(scope="module")
def release(run_python, tmp_path_factory) -> Path:
    """A folder of files in the release's format, each with an .npz of inputs and of what tf_keras makes of them."""
    folder = tmp_path_factory.mktemp("release")
    run_python(SCRIPT, folder)
    return folder


@pytest.fixture(scope="module")
def exported(release, faces_300w, run_python, tmp_path_factory) -> tuple[Path, dict[str, keras.Model]]:
    """Files that export_release wrote, with what tf_keras makes of them, and the models they were made from.

    And, one process less, what it makes of the test faces: ASMNet_300W_ASMLoss.h5, which is `asmnet_68` of `release`.
    """
    folder, sources = tmp_path_factory.mktemp("exported"), {}
    for name, build, count, input_range in (
        ("asmnet", build_asmnet, 68, (-1.0, 1.0)),
        ("mnv2", build_mobilenet_v2, 98, (-1.0, 1.0)),
        ("plain", build_asmnet, 68, (0.0, 1.0)),
    ):
        model = build(count, 64, input_range=input_range)
        donor = load_original_model(release / f"{model.name}_{count}.h5")[0]
        model.set_weights(donor.get_weights())
        export_release(model, folder / f"{name}.h5")
        sources[name] = model
    again = load_original_model(release / "asmnet_68.h5")[0]
    export_release(again, folder / "again.h5", RELEASE)
    sources["again"] = again
    shutil.copy(release / "asmnet_68.h5", folder / "ASMNet_300W_ASMLoss.h5")
    samples = read_samples(DATASETS["300w"], faces_300w, "test")
    np.save(folder / "ASMNet_300W_ASMLoss.npy", FacePatches(samples, "tight", 1.0, 64, margin=1.0).crops())
    run_python(SCRIPT, folder, *(f"{name}.h5" for name in (*sources, "ASMNet_300W_ASMLoss")))
    return folder, sources


def check_outputs(model, convention, file, factor=1.0):
    """Equal to 1e-5 of the largest output, and the outputs depend on the image by far more than that."""
    expected = np.load(file.with_suffix(".npz"), allow_pickle=False)
    outputs = model(convention.to_network_input(expected["pixels"]), training=False)
    for name, output in zip(("O_L", "O_P"), outputs):
        theirs = expected[name] * (factor if name == "O_L" else 1.0)
        scale = np.abs(theirs).max()
        assert output.shape == theirs.shape
        assert np.ptp(theirs, axis=0).max() > 1e-2 * scale, name
        error = np.abs(output.numpy() - theirs).max() / scale
        assert error < 1e-5, f"{file.name} {name}: {error:.1e}"


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*WHOLE, "ASMNet_300W_ASMLoss"])
def test_outputs_of_whole_models(release, name):
    """68 points: TensorFlow 2.3's graph, attributes of 2020. 98: with optimiser state. ASMNet_300W_ASMLoss: 224 px."""
    with h5py.File(release / f"{name}.h5") as file:
        layers = [layer["name"] for layer in json.loads(file.attrs["model_config"])["config"]["layers"]]
        assert ("Conv1_pad" in layers) == (file.attrs["keras_version"] == b"2.4.3") == ("98" not in name)
        assert ("optimizer_weights" in file) == ("98" in name)
    model, convention = load_original_model(release / f"{name}.h5")
    assert convention == RELEASE
    assert model.name == ("mobilenet_v2" if "mobilenet" in name else "asmnet")
    assert model.input_shape[1] == (224 if "ASMLoss" in name else 64)
    assert model.output_names == ["O_L", "O_P"]
    assert model.output_shape == [(None, 196 if "98" in name else 136), (None, 3)]
    check_outputs(model, convention, release / f"{name}.h5")


@pytest.mark.parametrize("name", ["asmnet", "mobilenet_v2"])
def test_outputs_of_weight_only_files(release, name):
    file = release / f"{name}_weights_only.h5"
    model, convention = load_original_model(file, input_size=64)
    assert model.name == name
    check_outputs(model, convention, file)
    assert load_original_model(file)[0].input_shape == (None, 224, 224, 3)


def test_result_is_stock_keras(release, run_python, tmp_path):
    """Saved, it loads in a process without this package, and gives the same."""
    model = load_original_model(release / "asmnet_68.h5")[0]
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    assert model.count_params() == 1_439_507
    assert model.get_layer("rescaling").get_config()["scale"] == 1.0
    assert model.get_layer("rescaling").get_config()["offset"] == 0.0
    assert model.get_layer("dropout").rate == pytest.approx(0.3)
    model.save(tmp_path / "model.keras")
    code = (
        "import keras, numpy as np, sys\n"
        f"data = np.load({str(release / 'asmnet_68.npz')!r})\n"
        f"outputs = keras.models.load_model({str(tmp_path / 'model.keras')!r})(data['pixels'] / np.float32(255))\n"
        "print(max(np.abs(a - data[k]).max() for k, a in zip(('O_L', 'O_P'), outputs)))\n"
        "assert not any(name.startswith('asmnet_tf') for name in sys.modules)\n"
    )
    assert float(run_python("-c", code).stdout.split()[-1]) < 5e-5


def test_training_can_start_from_them(release):
    """train.py --weights reads the same files and brings the heads to our convention: (p - centre) / size."""
    path = release / "asmnet_68.h5"
    original, convention = load_original_model(path)
    start = read_start_weights(str(path), (-1.0, 1.0))
    assert (start.input_range, start.crop) == ((0.0, 1.0), ("tight", 1.0))
    model = build_asmnet(68, 64, input_range=start.input_range)
    received = checkpoints.set_weights(model, start, start.crop)
    assert set(received) == {layer.name for layer in model.layers if layer.weights}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    theirs, pose = original(convention.to_network_input(images))
    ours, our_pose = model(images)
    assert np.asarray(ours) == pytest.approx(np.asarray(convention.landmarks_to_network_units(theirs)), abs=1e-4)
    assert np.asarray(our_pose) == pytest.approx(np.asarray(pose), abs=1e-4)
    with pytest.raises(InputError, match="tight crops"):
        checkpoints.set_weights(model, start, ("square", 1.2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "layer Conv1 is not in it"),
        ("narrow", "layer Conv1 has filters 16, expected 32"),
        ("headless", "layer GlobalAveragePooling2D of ReLU of Conv_1_bn is not in it"),
        ("backbone", "no weights of layer O_L in it.*train.py --weights"),
        ("sequential", "no functional Keras 2 network"),
    ],
)
def test_another_network_is_refused_by_its_first_layer_that_differs(release, name, message):
    assert is_release(release / f"{name}.h5")
    with pytest.raises(InputError, match=message) as error:
        load_original_model(release / f"{name}.h5")
    assert str(error.value).startswith(f"{release / name}.h5: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 100, 3000, 0.5, 0.999])
def test_truncated_files(release, tmp_path, kept):
    content = (release / "asmnet_68.h5").read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(InputError, match=r"cut\.h5: (a truncated or damaged|not an) HDF5 file[^\n]*$"):
        load_original_model(path)


def test_files_of_another_kind(tmp_path):
    text, image, empty = tmp_path / "text.h5", tmp_path / "image.h5", tmp_path / "empty.h5"
    text.write_text("<html>404 Not Found</html>")
    image.write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    h5py.File(empty, "w").close()
    for path, message in ((text, "not an HDF5 file"), (image, "not an HDF5 file"), (empty, "no Keras 2 model")):
        assert is_release(path)
        with pytest.raises(InputError, match=rf"{path.name}: .*{message}"):
            load_original_model(path)
    with pytest.raises(InputError, match=r"none\.h5: no such model"):
        load_original_model(tmp_path / "none.h5")


def spoil_config(change):
    def spoil(file):
        config = json.loads(file.attrs["model_config"])
        change(config["config"])
        file.attrs["model_config"] = json.dumps(config)

    return spoil


def layer_of(config, name):
    return next(layer for layer in config["layers"] if layer["name"] == name)


def set_weight(file, name, value):
    file["model_weights"][name][...] = value


def drop_layer(file, name):
    root = file["model_weights"]
    names = [n for n in root.attrs["layer_names"] if n not in (name, name.encode())]
    assert len(names) == len(root.attrs["layer_names"]) - 1
    root.attrs["layer_names"] = names


def squash(config):
    nodes = [[["O_L", 0, 0, {}]]]
    settings = {"name": "squash", "activation": "tanh"}
    config["layers"].append({"class_name": "Activation", "config": settings, "name": "squash", "inbound_nodes": nodes})
    config["output_layers"][0][0] = "squash"


def reverse_taps(config):
    next(layer for layer in config["layers"] if layer["class_name"] == "Concatenate")["inbound_nodes"][0].reverse()


def self_feeding(config):
    dropout = next(layer for layer in config["layers"] if layer["class_name"] == "Dropout")
    dropout["inbound_nodes"] = [[[dropout["name"], 0, 0, {}]]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.attrs.__setitem__("model_config", '{"config"'), "damaged"),
        (lambda f: f.attrs.__setitem__("model_config", "[]"), "damaged"),
        (lambda f: f.__delitem__("model_weights"), "damaged"),
        (lambda f: f["model_weights"].__delitem__("bn_Conv1"), "damaged"),
        (lambda f: set_weight(f, "Conv1/Conv1/kernel:0", np.nan), "layer Conv1 holds values that are not finite"),
        (lambda f: drop_layer(f, "block_5_expand"), "no weights of layer block_5_expand in it"),
        (spoil_config(lambda c: c["layers"].pop(5)), "no functional Keras 2 network|is not in it"),
        (spoil_config(lambda c: c["output_layers"].pop()), "its outputs are O_L, expected O_L, O_P"),
        (spoil_config(lambda c: layer_of(c, "O_P")["config"].update(activation="tanh")), "O_P has activation tanh"),
        (spoil_config(lambda c: layer_of(c, "bn_Conv1")["config"].update(epsilon=1e-5)), "bn_Conv1 has epsilon 1e-05"),
        (spoil_config(lambda c: layer_of(c, "Conv1_pad")["config"].update(padding=[[1, 1], [1, 1]])), "Conv1 follows"),
        (
            spoil_config(lambda c: layer_of(c, "O_L").update(inbound_nodes=[[["block_15_add", 0, 0, {}]]])),
            "layer O_L follows Add of .*, expected Concatenate of ",
        ),
        (
            spoil_config(lambda c: c["layers"][0]["config"].update(batch_input_shape=[None, 64, 32, 3])),
            "its inputs are",
        ),
        (
            spoil_config(lambda c: layer_of(c, "block_3_depthwise_relu")["config"].update(max_value=None)),
            "block_3_depthwise_BN has max_value None, expected 6.0",
        ),
        (spoil_config(reverse_taps), "layer Concatenate of GlobalAveragePooling2D of .* is not in it"),
        (spoil_config(squash), "its outputs are squash, O_P, expected O_L, O_P"),
        (spoil_config(self_feeding), "no functional Keras 2 network"),
    ],
)
def test_damaged_and_altered_files(release, tmp_path, spoil, message):
    path = tmp_path / "altered.h5"
    shutil.copy(release / "asmnet_68.h5", path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=rf"altered\.h5: [^\n]*({message})[^\n]*$"):
        load_original_model(path)


def test_a_layer_too_many(release, tmp_path):
    """Weights only, so that nothing but the weights tells."""
    path = tmp_path / "more.h5"
    shutil.copy(release / "asmnet_weights_only.h5", path)
    with h5py.File(path, "r+") as file:
        group = file.create_group("landmarks_2")
        group["kernel:0"] = np.zeros((3, 3))
        group.attrs["weight_names"] = [b"kernel:0"]
        names = list(file.attrs["layer_names"])
        file.attrs["layer_names"] = np.array([*names, "landmarks_2"], "S")
    with pytest.raises(InputError, match=r"more\.h5: has a layer landmarks_2"):
        load_original_model(path)


def test_which_files_are_the_releases(release, tmp_path):
    model = build_asmnet(68, 32)
    for name in ("m.keras", "m.h5", "m.weights.h5"):
        model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    assert is_release(release / "asmnet_68.h5")
    assert is_release(release / "asmnet_weights_only.h5")
    assert not is_release(tmp_path / "m.keras")
    assert not is_release(tmp_path / "m.h5")  # Keras 3 reads its own
    assert open_model(tmp_path / "m.h5").format == "keras"
    with pytest.raises(InputError, match=r"m\.weights\.h5: written by Keras 3"):
        load_original_model(tmp_path / "m.weights.h5")
    with pytest.raises(InputError, match=r"m\.h5: written by Keras 3"):
        load_original_model(tmp_path / "m.h5")


# --- conventions ------------------------------------------------------------------------------------------------------


def test_convention_of_the_release():
    pixels = np.array([[0, 51, 255]], np.uint8)
    fed = RELEASE.to_network_input(pixels)
    assert fed.dtype == np.float32
    assert fed == pytest.approx(np.array([[0.0, 0.2, 1.0]]))
    assert np.array_equal(RELEASE.to_network_input(tf.constant(pixels, tf.float32)), fed)
    outputs = np.array([[0.5, -0.25]], np.float32)
    assert np.array_equal(RELEASE.landmarks_to_network_units(outputs), [[-0.5, 0.25]])
    assert np.array_equal(RELEASE.landmarks_to_network_units(tf.constant(outputs)), [[-0.5, 0.25]])
    assert (RELEASE.crop, crop_scale(RELEASE.crop)) == ("tight", 1.0)
    assert RELEASE.describe() == "release: input pixels / 255, landmarks (centre - p) / size, pose x 65 degrees"


def test_our_convention_changes_nothing():
    numbers = np.arange(6.0)
    for convert in (OURS.to_network_input, OURS.landmarks_to_network_units):
        assert convert(numbers) is numbers


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asmnet", "mnv2", "plain"])
def test_exported_file_in_keras_2(exported, name):
    """tf_keras, fed pixels / 255, gives minus our landmarks, and our pose."""
    folder, sources = exported
    check_outputs(sources[name], OURS, folder / f"{name}.h5", factor=-1.0)
    with h5py.File(folder / f"{name}.h5") as file:
        kinds = {layer["class_name"] for layer in json.loads(file.attrs["model_config"])["config"]["layers"]}
    assert ("Rescaling" in kinds) == (name != "plain")  # input_range (0, 1) is the release's input


@pytest.mark.parametrize("name", ["asmnet", "mnv2", "plain"])
def test_exported_file_comes_back(exported, name):
    folder, sources = exported
    model, convention = load_original_model(folder / f"{name}.h5")
    check_outputs(model, convention, folder / f"{name}.h5")
    pixels = np.load(folder / f"{name}.npz", allow_pickle=False)["pixels"]
    landmarks, pose = model(convention.to_network_input(pixels), training=False)
    ours = sources[name](pixels, training=False)
    assert convention.landmarks_to_network_units(landmarks).numpy() == pytest.approx(ours[0].numpy(), abs=5e-5)
    assert pose.numpy() == pytest.approx(ours[1].numpy(), abs=5e-5)


def test_a_model_of_the_release_exported_again_is_the_same(release, exported):
    folder, _ = exported
    check_outputs(load_original_model(folder / "again.h5")[0], RELEASE, release / "asmnet_68.h5")
    first, second = (checkpoints._read_layer_weights(path) for path in (release / "asmnet_68.h5", folder / "again.h5"))
    weighted = {name: arrays for name, arrays in first.items() if arrays}
    assert len(weighted) == sum(bool(arrays) for arrays in second.values())
    for name, arrays in weighted.items():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, second[name], strict=True)), name


def test_export_refuses_and_keeps_what_was_there(release, tmp_path, monkeypatch):
    model = load_original_model(release / "asmnet_68.h5")[0]
    with pytest.raises(InputError, match=r"m\.keras: .* Call it \.h5"):
        export_release(model, tmp_path / "m.keras")
    inputs = keras.Input((32, 32, 3))
    other = keras.Model(inputs, keras.layers.GaussianNoise(0.1, name="noise")(inputs))
    with pytest.raises(InputError, match="layer noise is GaussianNoise"):
        export_release(other, tmp_path / "m.h5")
    (tmp_path / "m.h5").write_text("precious")
    monkeypatch.setattr(release_format, "_write_weights", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match=r"m\.h5: cannot be written \(disk full\)"):
        export_release(model, tmp_path / "m.h5")
    assert (tmp_path / "m.h5").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]


# --- evaluate.py ------------------------------------------------------------------------------------------------------


def test_evaluate_a_file_of_the_release(exported, faces_300w, run_batch, tmp_path):
    """Landmarks and NME equal those computed by hand from tf_keras' outputs on the same crops."""
    file, out = exported[0] / "ASMNet_300W_ASMLoss.h5", tmp_path / "out"
    samples = read_samples(DATASETS["300w"], faces_300w, "test")
    theirs = np.load(file.with_suffix(".npz"), allow_pickle=False)
    flags = [file, "--dataset", "300w", "--data-dir", faces_300w, "--output", out, "--save-predictions"]
    (done,) = run_batch([("evaluate", flags)]).done
    assert done.returncode == 0, done.stderr
    assert "absent" not in done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])["ASMNet_300W_ASMLoss"]["full"]
    saved = np.load(out / "ASMNet_300W_ASMLoss.npz", allow_pickle=False)
    nme = []
    for i, sample in enumerate(samples):
        low, high = sample.landmarks.min(axis=0), sample.landmarks.max(axis=0)
        landmarks = (low + high) / 2 - theirs["O_L"][i].reshape(-1, 2) * (high - low)
        assert saved["landmarks"][i] == pytest.approx(landmarks, abs=1e-2)
        distance = np.linalg.norm(landmarks - sample.landmarks, axis=1).mean()
        nme.append(distance / np.linalg.norm(sample.landmarks[36] - sample.landmarks[45]))
        assert saved["pose"][i] == pytest.approx(theirs["O_P"][i] * 65, abs=1e-2)
    assert scores["n"] == len(samples)
    assert scores["nme_pct"] == pytest.approx(100 * np.mean(nme), rel=1e-4)
    info = json.loads((out / "metrics.json").read_text())["methods"]["ASMNet_300W_ASMLoss"]
    assert info["convention"] == RELEASE.describe()
    assert info["crop"] == "tight 1"
    assert RELEASE.describe() in (out / "summary.md").read_text()


def test_evaluate_names_what_is_wrong_with_the_file(release, faces_300w, run_batch, tmp_path):
    (tmp_path / "page.h5").write_text("<html>")
    data = ["--dataset", "300w", "--data-dir", faces_300w, "--output", tmp_path / "out"]
    files = {
        tmp_path / "page.h5": "not an HDF5 file",
        release / "resnet.h5": "layer Conv1 is not in it",
        release / "asmnet_98.h5": "finds 98 landmarks, 300W has 68",
    }
    for done, message in zip(run_batch([("evaluate", [file, *data]) for file in files]).done, files.values()):
        assert done.returncode == 2
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
        assert "Traceback" not in done.stderr
