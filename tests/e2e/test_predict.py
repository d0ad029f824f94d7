"""`python -m asmnet_tf.predict` as a user runs it: photograph, folder, video, boxes; and what it cannot use."""

import csv
import json
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import REPO
from matplotlib.cbook import get_sample_data

from asmnet_tf.data.annotations import read_pts

# what only training, evaluating .keras files and exporting need
WITHOUT = {"tensorflow", "keras", "sklearn", "scipy", "h5py", "matplotlib"}
PHOTOGRAPH = get_sample_data("grace_hopper.jpg", asfileobj=False)
FRAMES = 14


def test_a_photograph_needs_no_tensorflow(run_python, tmp_path):
    """The name of a shipped model runs on LiteRT; what TensorFlow alone runs is refused in one line."""
    code = (
        "import runpy, sys\n"
        f"without = {WITHOUT}\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in without: raise ImportError(f'no {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.path.insert(0, {str(REPO)!r})\n"
        "runpy.run_module('asmnet_tf.predict', run_name='__main__')\n"
    )
    done = run_python("-c", code, PHOTOGRAPH, "--output", tmp_path / "out")
    assert "1 face" in done.stdout
    (face,) = json.loads((tmp_path / "out/predictions.json").read_text())["results"][0]["faces"]
    assert len(face["landmarks"]) == 68
    model = REPO / "asmnet_tf/pretrained/asmnet_300w.keras"
    command = ["-c", code, PHOTOGRAPH, "--output", tmp_path / "out", "--model", model]
    failed = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "asmnet_300w.keras" in failed.stderr
    assert "Traceback" not in failed.stderr


def write_video(path, images, fps=25.0):
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    for image in images:
        writer.write(image)
    writer.release()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Good and bad inputs: see the names."""
    folder = tmp_path_factory.mktemp("inputs")
    photograph = cv2.imread(str(PHOTOGRAPH))
    (folder / "photos/deep").mkdir(parents=True)
    shutil.copy(PHOTOGRAPH, folder / "photos/grace.jpg")
    cv2.imwrite(str(folder / "photos/deep/grace.png"), cv2.resize(photograph, (256, 300), interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(folder / "photos/blank.png"), np.full((50, 80), 120, np.uint8))
    (folder / "empty").mkdir()
    (folder / "empty/notes.md").write_text("nothing here")
    (folder / "text.jpg").write_text("this is no image")
    write_video(folder / "pan.mp4", [photograph[60:480, 2 * i : 2 * i + 440] for i in range(FRAMES)])
    (folder / "cut.mp4").write_bytes((folder / "pan.mp4").read_bytes()[:3000])
    (folder / "boxes.csv").write_text("image,x_min,y_min,x_max,y_max\ngrace.jpg,168,152,360,343\n")
    (folder / "columns.csv").write_text("image,x,y,w,h\ngrace.jpg,168,152,360,343\n")
    return folder


@pytest.fixture(scope="module")
def done(inputs, run_batch):
    """All commands in one process; name -> what came of it."""
    out = inputs / "out"
    commands = {
        "photograph": ["--output", out / "photograph"],
        "folder": [inputs / "photos", "--output", out / "folder", "--format", "json", "csv", "pts", "--workers", "2"],
        "video": [inputs / "pan.mp4", "--output", out / "video", "--smooth", "--detect-every", "5"],
        "boxes": [inputs / "photos/grace.jpg", "--boxes", inputs / "boxes.csv", "--no-draw", "--output", out / "boxes"],
        "no images": [inputs / "empty", "--output", out / "bad"],
        "absent": [inputs / "absent.jpg", "--output", out / "bad"],
        "text": [inputs / "text.jpg", "--output", out / "bad"],
        "text among others": [inputs / "text.jpg", inputs / "photos/grace.jpg", "--output", out / "mixed"],
        "cut video": [inputs / "cut.mp4", "--output", out / "bad"],
        "no camera": ["--camera", "63", "--output", out / "bad"],
        "columns": [inputs / "photos", "--boxes", inputs / "columns.csv", "--output", out / "bad"],
        "boxes of a video": [inputs / "pan.mp4", "--boxes", inputs / "boxes.csv", "--output", out / "bad"],
        "model": [inputs / "photos", "--model", "no_such_model", "--output", out / "bad"],
    }
    batch = run_batch([("asmnet_tf.predict", argv) for argv in commands.values()])
    return dict(zip(commands, batch.done))


def faces_of(folder):
    document = json.loads((folder / "predictions.json").read_text())
    return [(result["image"], result["faces"]) for result in document["results"]]


def test_without_an_input_the_shipped_photograph(done, inputs):
    run = done["photograph"]
    overlay = inputs / "out/photograph/grace_hopper_overlay.jpg"
    assert run.returncode == 0
    assert str(overlay) in run.stdout
    drawn, photograph = cv2.imread(str(overlay)), cv2.imread(str(PHOTOGRAPH))
    assert drawn.shape == photograph.shape
    difference = np.abs(drawn.astype(int) - photograph).max(axis=-1) > 60
    assert difference[150:340, 170:365].mean() > 0.01
    assert difference[400:].mean() < 0.001
    ((_, (face,)),) = faces_of(inputs / "out/photograph")
    assert np.array(face["landmarks"]).shape == (68, 2)
    assert abs(face["yaw"]) < 15


def test_a_folder_with_all_below_it(done, inputs):
    run, out = done["folder"], inputs / "out/folder"
    assert run.returncode == 0
    assert "blank.png: no face found" in run.stdout
    faces = {image.rsplit("/photos/", 1)[1]: found for image, found in faces_of(out)}
    assert {image: len(found) for image, found in faces.items()} == {
        "blank.png": 0,
        "deep/grace.png": 1,
        "grace.jpg": 1,
    }
    large = np.array(faces["grace.jpg"][0]["landmarks"])
    small = (np.array(faces["deep/grace.png"][0]["landmarks"]) + 0.5) * 2 - 0.5  # half the size: the same face
    assert np.linalg.norm(large - small, axis=1).mean() < 4
    assert read_pts(out / "grace_1.pts", 68) == pytest.approx(large, abs=1e-3)
    assert (out / "deep/grace_1.pts").is_file()
    assert (out / "deep/grace_overlay.jpg").is_file()
    with open(out / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_video_is_followed(done, inputs):
    run, out = done["video"], inputs / "out/video"
    assert run.returncode == 0
    assert f"{FRAMES} frames, 1 face, " in run.stdout
    assert "frames/s" in run.stdout
    capture = cv2.VideoCapture(str(out / "pan_overlay.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == FRAMES
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    faces = faces_of(out)
    assert [[face["face"] for face in found] for _, found in faces] == [[1]] * FRAMES
    centres = np.array([np.mean(found[0]["landmarks"], axis=0) for _, found in faces])
    # the camera pans by 2 px a frame, so the face goes left by 26 px, smoothing lags a little
    assert centres[-1] - centres[0] == pytest.approx([-26, 0], abs=6)
    assert not list(out.glob(".writing-*"))


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs Xvfb, a display without a screen")
def test_in_a_window(inputs, run_python, tmp_path, monkeypatch):
    with subprocess.Popen(["Xvfb", "-displayfd", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as display:
        try:
            monkeypatch.setenv("DISPLAY", f":{int(display.stdout.readline())}")
            flags = ["--show", "--frames", "4", "--no-draw", "--output", tmp_path]
            run_python("-m", "asmnet_tf.predict", inputs / "pan.mp4", *flags, cwd=REPO)
        finally:
            display.terminate()
    assert len(faces_of(tmp_path)) == 4


def test_own_boxes_and_nothing_drawn(done, inputs):
    assert done["boxes"].returncode == 0
    ((_, (face,)),) = faces_of(inputs / "out/boxes")
    assert face["box"] == [168, 152, 360, 343]
    assert face["score"] == 1
    assert not list((inputs / "out/boxes").glob("*.jpg"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no images", ["empty", "no image or video in this folder"]),
        ("absent", ["absent.jpg", "no such file"]),
        ("text", ["text.jpg", "do not decode as an image"]),
        ("cut video", ["cut.mp4", "not a video"]),
        ("no camera", ["camera 63", "cannot be opened"]),
        ("columns", ["columns.csv", "columns image, x, y, w, h"]),
        ("boxes of a video", ["pan.mp4", "--boxes is for images"]),
        ("model", ["no_such_model", "asmnet_300w_112_60"]),
        ("text among others", ["text.jpg", "do not decode as an image"]),
    ],
)
def test_what_cannot_be_used_is_one_line(done, name, words):
    run = done[name]
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode == 2
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors
    assert "Traceback" not in run.stderr


def test_one_bad_image_does_not_stop_the_others(done, inputs):
    assert [len(found) for _, found in faces_of(inputs / "out/mixed")] == [1]


def test_help_is_quick_and_imports_nothing_heavy(run_python):
    start = time.perf_counter()
    run = run_python("-X", "importtime", "-m", "asmnet_tf.predict", "--help", cwd=REPO)
    assert "--camera" in run.stdout
    assert not any(f" {name}\n" in run.stderr for name in ("numpy", "cv2", "tensorflow"))
    assert time.perf_counter() - start < 20  # hung, not slow
