"""Every export opens, says what its model says, and tells so in its side-car; what cannot be exported is one line."""

import contextlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from asmnet_tf import export, files
from asmnet_tf.data import sidecars
from asmnet_tf.data.geometry import crop_frame, crop_image, landmark_box
from asmnet_tf.files import InputError
from asmnet_tf.formats import exporters
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network import checkpoints
from asmnet_tf.network.asmnet import build_asmnet, count_multiply_adds, start_at_mean
from asmnet_tf.synthetic.renderer import render_face

SIZE = 64
SIDECAR = {"dataset": "300w", "crop": "square", "crop_scale": 1.2, "commit": "abc", "stored": "as float16"}
# name of the file, its flags, how far a coordinate may be off (network units): at most, on average
KINDS = {
    "plain": ("m_plain.tflite", ["--to", "tflite"], 1e-5, 1e-6),
    "float16": ("m_float16.tflite", ["--to", "tflite", "--quantise", "float16"], 5e-3, 5e-4),
    "int8": ("m_int8.tflite", ["--to", "tflite", "--quantise", "int8"], 0.5, 1.5e-2),  # few faces calibrate
    "savedmodel": ("m_saved", ["--to", "savedmodel"], 1e-5, 1e-6),
    "onnx": ("m_onnx.onnx", ["--to", "onnx"], 1e-5, 1e-6),
    "h5": ("m_release.h5", ["--to", "h5"], 1e-5, 1e-6),
}


def save(model, path, sidecar=SIDECAR):
    checkpoints.save_model(model, path, sidecar)
    return path


def run(*args):
    export.main(export.parse_args([str(arg) for arg in args]))


@pytest.fixture(scope="module")
def model(trained_64):
    return checkpoints.load_model(trained_64 / "m.keras")[0]


@pytest.fixture(scope="module")
def folder(trained_64, run_batch, faces_300w, tmp_path_factory):
    folder, more = tmp_path_factory.mktemp("exports"), ["--calibrate", faces_300w, "--faces", 20, "--output"]
    commands = [[trained_64 / "m.keras", *flags, *more, folder / name] for name, flags, *_ in KINDS.values()]
    for done in run_batch([("asmnet_tf.export", argv) for argv in commands]).done:
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def crops():
    """Faces that no export has seen."""
    faces = [render_face(7, i) for i in range(12)]
    frames = [crop_frame(landmark_box(face.landmarks_68), "square") for face in faces]
    return np.stack([crop_image(face.image, frame, SIZE) for face, frame in zip(faces, frames)])


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_says_what_its_model_says(folder, model, crops, kind):
    name, _, at_most, on_average = KINDS[kind]
    opened = open_model(folder / name)
    exact = [np.asarray(output) for output in model(crops.astype(np.float32), training=False)]
    assert np.ptp(exact[0], axis=0).mean() > 0.05  # the faces differ
    for first, last in ((0, 12), (3, 4)):  # any number of faces
        outputs = [np.asarray(output) for output in opened.infer(crops[first:last])]
        assert [output.shape for output in outputs] == [(last - first, 136), (last - first, 3)]
        away = [np.abs(output - wanted[first:last]) for output, wanted in zip(outputs, exact)]
        print(f"{name}: {away[0].mean():.1e}, {away[0].max():.1e}; pose {away[1].max():.1e}")
        assert away[0].max() < at_most
        assert away[0].mean() < on_average
        assert away[1].max() < at_most
    assert (opened.num_landmarks, opened.input_size) == (68, SIZE)
    assert (opened.parameters, opened.multiply_adds) == (1_439_507, count_multiply_adds(model))


def test_sizes(folder):
    size = {kind: export.bytes_of(folder / name) for kind, (name, *_) in KINDS.items()}
    assert size["float16"] < 0.55 * size["plain"]
    assert size["int8"] < 0.35 * size["plain"]
    assert export.bytes_of(folder / KINDS["savedmodel"][0]) > 4 * 1_400_000


@pytest.mark.parametrize(("kind", "dtype"), [("plain", np.float32), ("float16", np.float32), ("int8", np.uint8)])
def test_tflite_signature(folder, kind, dtype):
    interpreter = tf.lite.Interpreter(str(folder / KINDS[kind][0]))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["O_L", "O_P"]}}
    runner = interpreter.get_signature_runner("serving_default")
    pixels = runner.get_input_details()["image"]
    assert pixels["dtype"] == dtype
    assert pixels["quantization"] == ((1.0, 0) if kind == "int8" else (0.0, 0))  # 1.0: plain pixels
    assert list(pixels["shape_signature"]) == [-1, SIZE, SIZE, 3]
    assert {details["dtype"] for details in runner.get_output_details().values()} == {np.float32}


def test_onnx_names_its_outputs_and_takes_any_batch(folder, tmp_path):
    session = onnxruntime.InferenceSession(str(folder / KINDS["onnx"][0]), providers=["CPUExecutionProvider"])
    assert [tensor.name for tensor in session.get_inputs()] == ["image"]
    assert session.get_inputs()[0].shape[1:] == [SIZE, SIZE, 3]
    outputs = session.run(["O_L", "O_P"], {"image": np.zeros((3, SIZE, SIZE, 3), np.float32)})
    assert [output.shape for output in outputs] == [(3, 136), (3, 3)]
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((folder / KINDS["onnx"][0]).read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"damaged\.onnx"):
        open_model(damaged)


def test_saved_model_signature(folder):
    signature = tf.saved_model.load(str(folder / KINDS["savedmodel"][0])).signatures["serving_default"]
    assert {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()} == {"image": tf.float32}
    assert set(signature.structured_outputs) == {"O_L", "O_P"}


def test_side_cars(folder, faces_300w):
    facts = {kind: json.loads(sidecars.sidecar_path(folder / name).read_text()) for kind, (name, *_) in KINDS.items()}
    for kind, fact in facts.items():
        assert fact.items() >= {"dataset": "300w", "crop": "square", "crop_scale": 1.2, "commit": "abc"}.items(), kind
        assert fact.items() >= {"input_size": SIZE, "num_landmarks": 68, "source_model": "m.keras"}.items()
        assert fact["outputs"] == ["O_L float32 (B, 136)", "O_P float32 (B, 3)"]
        assert fact["compared"]["faces"] == 10
        assert "stored" not in fact
    assert [facts[kind]["quantisation"] for kind in KINDS] == ["none", "float16", "int8", "none", "none", "none"]
    assert facts["plain"]["input"] == "RGB pixels 0..255, float32 (B, 64, 64, 3)"
    assert facts["int8"]["input"] == "RGB pixels 0..255, uint8 (B, 64, 64, 3)"
    assert facts["int8"]["calibration"] == faces_300w.name
    assert facts["h5"]["input"] == "RGB pixels / 255, float32 (B, 64, 64, 3)"
    assert facts["h5"]["landmarks"].startswith("O_L: (centre - p) / size")
    assert facts["h5"]["convention"].startswith("release: ")
    assert open_model(folder / KINDS["h5"][0]).sidecar["crop"] == "square"  # not the release's tight one
    assert facts["plain"]["compared"]["landmarks_max"] < 1e-5 < facts["int8"]["compared"]["landmarks_max"]


def test_int8_biases_take_off_what_rounding_adds(folder, model, faces_300w):
    """On the faces it was calibrated on, the mean error is small against the error of one face."""
    crops = exporters.face_crops(str(faces_300w), 20, Path("m.keras"), model, SIDECAR)[::2]
    exact = np.asarray(model(crops.astype(np.float32), training=False)[0])
    away = np.asarray(open_model(folder / KINDS["int8"][0]).infer(crops)[0]) - exact
    print(f"{np.abs(away.mean(axis=0)).mean():.1e} of {np.abs(away).mean():.1e}")
    assert np.abs(away.mean(axis=0)).mean() < 0.4 * np.abs(away).mean()


def test_calibration_faces(model, faces_300w, tmp_path):
    def crops(source, count):
        return exporters.face_crops(str(source), count, tmp_path / "m.keras", model, SIDECAR)

    assert crops(faces_300w, 1000).shape == (48, SIZE, SIZE, 3)  # 24 + 12 + 12 training faces, no test face
    assert np.array_equal(crops(faces_300w, 4), crops(faces_300w, 48)[::12])
    (tmp_path / "crops/more").mkdir(parents=True)
    for k, value in enumerate((10, 200)):
        image = np.full((90, 70, 3), value, np.uint8)
        tf.io.write_file(str(tmp_path / f"crops/more/{k}.png"), tf.io.encode_png(image))
    plain = crops(tmp_path / "crops", 10)
    assert np.array_equal(plain, np.stack([np.full((SIZE, SIZE, 3), value) for value in (10, 200)]))
    (tmp_path / "crops/more/0.pts").write_text("")
    with pytest.raises(InputError, match=r"0\.png: annotated"):
        crops(tmp_path / "crops", 10)


def test_a_spatial_head_too_and_a_model_without_pose(tmp_path):
    model = build_asmnet(68, SIZE, head="spatial")
    start_at_mean(model, np.zeros(136), np.zeros(3))
    save(model, tmp_path / "s.keras", SIDECAR | {"pose": None})
    run(tmp_path / "s.keras", "--to", "tflite", "--faces", 2, "--output", tmp_path / "s_lite.tflite")
    exported = open_model(tmp_path / "s_lite.tflite")
    assert exported.parameters == 1_477_715
    assert not exported.has_pose


def test_a_model_of_no_use_is_not_written(model, tmp_path):
    broken = build_asmnet(68, SIZE)
    broken.set_weights(model.get_weights())
    broken.get_layer("O_L").bias.assign(np.full(136, np.nan))
    save(broken, tmp_path / "m.keras")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/saved_model.pb").write_text("of an earlier export")
    with pytest.raises(InputError, match="out: not written, its landmarks are up to nan"):
        run(tmp_path / "m.keras", "--to", "savedmodel", "--faces", 2, "--output", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.keras", "out"]
    assert (tmp_path / "out/saved_model.pb").read_text() == "of an earlier export"


def test_names(tmp_path):
    def name(model, *flags):
        args = export.parse_args(["m", *flags])
        return export._file_name(tmp_path / model, args.to, args.quantise)

    assert name("a.keras", "--to", "tflite") == "a.tflite"
    assert name("mine/best.keras", "--to", "tflite", "--quantise", "int8") == "mine_int8.tflite"
    assert name("mine/last.keras", "--to", "savedmodel") == "mine_savedmodel"
    assert name("a.keras", "--to", "h5") == "a_release.h5"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "new/place"

    def write(text, error=None):
        with files.replacing_folder(place, "known") as temporary:
            (temporary / "known").write_text(text)
            if error:
                raise error

    write("1")
    write("2")
    with pytest.raises(InputError, match="place: cannot be written"):
        write("3", OSError(28, "No space left on device"))
    with contextlib.suppress(KeyboardInterrupt):
        write("4", KeyboardInterrupt())
    assert (place / "known").read_text() == "2"
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    (place / "known").rename(place / "other")
    with pytest.raises(InputError, match="place: holds something else, no known"):
        write("5")
    assert (place / "other").read_text() == "2"


def test_bad_input(run_batch, model, tmp_path):
    source = save(model, tmp_path / "m.keras")
    save(model, tmp_path / "odd.keras", {"crop": "round"})
    (tmp_path / "cut.keras").write_bytes(source.read_bytes()[:1000])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("kept")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.png").write_bytes(b"")
    lite, out = ["--to", "tflite"], ["--output", tmp_path / "out.tflite"]
    cases = {
        "asmnet_x: no such model, neither a file nor shipped": ["asmnet_x", *lite, *out],
        "absent.keras: no such model": [tmp_path / "absent.keras", *lite, *out],
        "cut.keras: not a model that Keras loads": [tmp_path / "cut.keras", *lite, *out],
        "theirs.h5: exports start from a .keras model": [tmp_path / "theirs.h5", *lite, *out],
        "out.onnx: --to tflite writes files that end in .tflite": [source, *lite, "--output", tmp_path / "out.onnx"],
        "m.tflite: its side-car would replace that of m.keras": [source, *lite, "--output", tmp_path / "m.tflite"],
        "absent: no such folder": [source, *lite, *out, "--calibrate", tmp_path / "absent"],
        "one: 1 faces, two are needed": [source, *lite, *out, "--calibrate", tmp_path / "one"],
        "odd.json: crop is 'round'": [tmp_path / "odd.keras", *lite, *out],
        "full: holds something else, no saved_model.pb": [
            *(source, "--to", "savedmodel", "--faces", 2, "--output", tmp_path / "full")
        ],
    }
    before = sorted(path for path in tmp_path.rglob("*"))
    for words, done in zip(cases, run_batch([("asmnet_tf.export", case) for case in cases.values()]).done):
        assert done.returncode == 2, (words, done.stderr)
        assert "Traceback" not in done.stderr
        (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
        assert words in line
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "flags", [["--to", "h5", "--quantise", "int8"], ["--to", "core"], [], ["--to", "tflite", "--faces", "1"]]
)
def test_flags_that_argparse_refuses(flags, capsys):
    with pytest.raises(SystemExit) as end:
        export.parse_args(["m.keras", *flags])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err
