"""`predict` in this process with an aligner that costs nothing: what it reads, what it keeps when something ends it."""

import csv
import errno
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from conftest import REPO
from matplotlib.cbook import get_sample_data

from asmnet_tf import cli, files, predict
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.faces import aligner, overlay, video
from asmnet_tf.faces.aligner import Face

POINTS = np.random.default_rng(0).uniform(10, 40, (68, 2))


class FakeAligner:
    """Finds one face in every image; `on_call`: what else happens at the n-th image."""

    on_call: ClassVar[dict] = {}

    def __init__(self, *_, **__):
        self.spec, self.min_score, self.detector_size, self.calls = DATASETS["300w"], 0.5, 256, 0

    def find(self, image):
        return np.array([[10.0, 10, 40, 40]]), np.ones(1), np.zeros(1)

    def detect(self, image, boxes=None, angles=None):
        self.calls += 1
        self.on_call.get(self.calls, lambda: None)()
        boxes = np.array([[10, 10, 40, 40]]) if boxes is None else boxes
        angles = np.full(len(boxes), 3.0) if angles is None else angles.tolist()
        return [Face(box, 1.0, POINTS, 1.0, 2.0, roll) for box, roll in zip(boxes, angles)]


def burst():
    raise MemoryError


def burst_of_input_error():
    raise files.InputError("in/b.png: odd")


@pytest.fixture
def on_call(monkeypatch):
    monkeypatch.setattr(aligner, "FaceAligner", FakeAligner)
    monkeypatch.setattr(FakeAligner, "on_call", {})
    return FakeAligner.on_call


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder `in` with a.png, b.png, c.png, in the current one."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        picture(Path("in") / f"{name}.png")
    return Path("in")


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((60, 50, 3), 90, np.uint8))[1].tobytes())
    return path


def clip(path, frames=6):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (64, 64))
    for _ in range(frames):
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    writer.release()
    return path


def run(*argv):
    """Returns the exit code."""
    try:
        cli.run(predict.main, lambda: predict.parse_args([str(arg) for arg in argv]))
    except SystemExit as end:
        return end.code
    return 0


def document(folder="predictions"):
    return json.loads((Path(folder) / "predictions.json").read_text(encoding="utf-8"))


def names(folder="predictions"):
    return [result["image"] for result in document(folder)["results"]]


def failures(folder="predictions"):
    return {failure["image"]: failure["reason"] for failure in document(folder)["failed"]}


@pytest.mark.parametrize("flags", [[], ["--output", "in"], ["--output", "in/deep/out"], ["--format", "pts"]])
def test_it_never_reads_what_it_drew(photos, on_call, flags, capsys):
    """Three runs, a killed one's leavings beside them; overlays also under another name and given one by one."""
    picture(photos / ".writing-x.jpg")
    for _ in range(3):
        assert run(photos, *flags) == 0
        assert capsys.readouterr().out.count("1 face") == 3
    output = Path(flags[1] if "--output" in flags else "predictions")
    shutil.copy(output / "a_overlay.jpg", photos / "holiday.jpg")
    assert run(photos, output, *photos.glob("[!.]*"), "--output", "out", "--no-draw") == 0
    assert names("out") == ["in/a.png", "in/b.png", "in/c.png"]
    assert run(photos / "holiday.jpg", "--output", "out") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert names("out") == ["in/a.png", "in/b.png", "in/c.png"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_faces_of_less_than_the_minimal_quality_are_left_out(tmp_path, monkeypatch, workers):
    """With the shipped model: the photograph and the same one blurred; as images and as a video."""
    monkeypatch.chdir(tmp_path)
    photograph = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))[60:420, 80:440]
    Path("in").mkdir()
    blurred = cv2.GaussianBlur(photograph, (0, 0), 18)
    for name, image in {"sharp": photograph, "blurred": blurred}.items():
        cv2.imwrite(f"in/{name}.png", image)
        writer = cv2.VideoWriter(f"in/{name}.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 25, (360, 360))
        for _ in range(3):
            writer.write(image)
        writer.release()
    kept = {}
    for least in ("0", "0.5"):
        assert run("in", "--min-quality", least, "--workers", workers, "--no-draw", "--min-score", "0.2") == 0
        for result in document()["results"]:
            key = result["image"], result.get("frame")
            kept.setdefault(key, []).append([face["quality"] for face in result["faces"]])
    assert len(kept) == 8
    for (image, _), (every, good) in kept.items():
        assert len(every) == 1
        assert good == (every if "sharp" in image else []), image
        assert 0 <= every[0] <= 1


def test_a_model_without_a_quality_has_no_minimal_one(photos, capsys):
    assert run(photos, "--model", "asmnet_300w_112_60", "--min-quality", "0.5") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "--min-quality: asmnet_300w_112_60 has no quality" in line


def test_a_photograph_called_like_an_overlay_is_read_and_kept(photos, on_call):
    own = picture(photos / "a_overlay.jpg").read_bytes()
    for _ in range(2):
        assert run(photos, "--output", photos) == 0
        assert names(photos) == ["in/a.png", "in/a_overlay.jpg", "in/b.png", "in/c.png"]
    assert (photos / "a_overlay.jpg").read_bytes() == own
    assert overlay.is_overlay(photos / "a-2_overlay.jpg")


def test_overlays_are_pictures_and_videos_as_before(photos, on_call):
    assert run(photos / "a.png", clip(Path("clip.mp4"))) == 0
    assert cv2.imread("predictions/a_overlay.jpg").shape == (60, 50, 3)
    capture = cv2.VideoCapture("predictions/clip_overlay.mp4")
    assert sum(capture.read()[0] for _ in range(9)) == 6
    assert run("predictions/clip_overlay.mp4", "--output", "out") == 2


@pytest.mark.parametrize("name", [b"caf\xe9", b"new\nline", b'quote"d', b"\x1b[31mred", "日本".encode()])
def test_any_name_of_a_file(photos, on_call, name, capsys):
    name = os.fsdecode(name)
    picture(photos / f"{name}.png")
    clip(Path("clip.mp4")).rename(photos / f"{name}-video.mp4")
    readable = files.utf8(name) == name
    assert run(photos, "--format", "json", "csv", "pts") == (0 if readable else 2)
    assert files.utf8(f"in/{name}.png") in names()
    assert files.utf8(f"in/{name}-video.mp4") in (names() if readable else failures())
    with open("predictions/predictions.csv", newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == names()
    assert Path(f"predictions/{name}_1.pts").is_file()
    assert overlay.is_overlay(Path(f"predictions/{name}_overlay.jpg"))
    printed = "".join(capsys.readouterr())
    assert printed.replace("\n", "").isprintable()
    assert all(line.count("in/") for line in printed.splitlines() if "degrees" in line)


def test_what_it_does_not_read_is_counted_in_a_folder_and_refused_by_name(photos, on_call, capsys):
    for name in ("x.heic", "deep/y.HEIC", "z.gif", "raw.NEF", "old.3gp", "map.jp2", "notes.txt", "._a.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    assert run(photos, "--no-draw") == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    (photos / "all").symlink_to("/", target_is_directory=True)
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    assert run(photos, "--no-draw") == 2
    told += capsys.readouterr().err.splitlines()[:2]
    assert "gone.jpg: no such file or folder (a link to what is not there)" in "".join(told[1:])
    for words in ("2 .heic", "1 .gif", "1 .nef", "1 .3gp", "1 .jp2", "1 hidden"):
        assert words in told[0]
    assert run(photos / "x.heic", photos / "z.gif", photos / "a.png", "--no-draw") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(":")[1] for error in errors] == [" in/x.heic", " in/z.gif"]
    assert names() == ["in/a.png"]
    assert list(failures()) == ["in/x.heic", "in/z.gif"]


def test_every_input_that_failed_is_named_and_the_others_are_done(photos, on_call, capsys):
    (photos / "b.png").write_text("no picture")
    Path("cut.mp4").write_bytes(b"no video")
    Path("empty").mkdir()
    bad = ["in/b.png", "cut.mp4", "absent.jpg", "empty"]
    assert run(photos, "cut.mp4", "absent.jpg", "empty") == 2
    assert names() == ["in/a.png", "in/c.png"]
    errors = capsys.readouterr().err.splitlines()
    assert sorted(errors) == sorted(f"error: {reason}" for reason in failures().values())
    assert sorted(failures()) == sorted(bad)
    before = Path("predictions/predictions.json").read_bytes()
    assert run("absent.jpg", "empty") == 2
    assert Path("predictions/predictions.json").read_bytes() == before  # nothing was done: nothing is written


def test_the_same_photograph_given_twice_counts_once(photos, on_call):
    assert run(photos, photos / "a.png", "./in/../in/b.png", "--no-draw") == 0
    assert names() == ["in/a.png", "in/b.png", "in/c.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_what_is_done_is_written(photos, on_call, number, code, capsys):
    on_call[2] = lambda: os.kill(os.getpid(), number)
    assert run(photos) == code
    assert names() == ["in/a.png", "in/b.png"]
    assert list(failures()) == ["in/c.png"]
    assert "2 of 3 inputs done" in capsys.readouterr().err


def test_a_signal_in_a_video_leaves_it_whole(photos, on_call, capsys):
    on_call[3] = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run(clip(Path("clip.mp4")), clip(Path("next.mp4"))) == 130
    assert [result["frame"] for result in document()["results"]] == [0, 1, 2]
    assert list(failures()) == ["clip.mp4", "next.mp4"]
    assert "0 of 2 inputs done" in capsys.readouterr().err
    assert cv2.VideoCapture("predictions/clip_overlay.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_an_error_of_any_kind_loses_nothing(photos, on_call):
    on_call[2] = burst
    with pytest.raises(MemoryError):
        run(photos)
    assert names() == ["in/a.png"]
    assert list(failures()) == ["in/b.png", "in/c.png"]


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_called_that_and_ends_it(photos, on_call, monkeypatch, capsys):
    old = picture(Path("predictions/b_overlay.jpg"))
    old.write_bytes(old.read_bytes() + overlay.MARK)
    before = old.read_bytes()
    on_call[2] = lambda: monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert run(photos) == 2
    assert names() == ["in/a.png", "in/b.png"]
    assert list(failures()) == ["in/b.png", "in/c.png"]
    assert "predictions/b_overlay.jpg: cannot be written (No space left on device)" in capsys.readouterr().err
    assert old.read_bytes() == before
    assert not list(Path("predictions").glob(".writing-*"))


def test_the_landmarks_go_before_the_overlays_where_the_disk_is_full(photos, on_call, monkeypatch):
    """Room for two files."""
    fsync = os.fsync

    def sync(file):
        overlays = len(list(Path("predictions").glob("*_overlay.jpg")))
        return full_disk() if overlays > 1 and os.readlink(f"/proc/self/fd/{file}").endswith(".json") else fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    assert run(photos, "--format", "json") == 2
    assert names() == ["in/a.png", "in/b.png", "in/c.png"]
    assert list(failures()) == ["in/c.png", "in/b.png"]
    assert [path.name for path in Path("predictions").glob("*.jpg")] == ["a_overlay.jpg"]


class ShortWriter:
    """Writes all but the last frames, as OpenCV does on a full disk: without a word."""

    def __init__(self, *args):
        self._writer, self._frames = cv2_writer(*args), 0

    def write(self, frame):
        self._frames += 1
        if self._frames < 4:
            self._writer.write(frame)

    def __getattr__(self, name):
        return getattr(self._writer, name)


class NoWriter(ShortWriter):
    def isOpened(self):
        return False


cv2_writer = cv2.VideoWriter


@pytest.mark.parametrize("writer", [ShortWriter, NoWriter])
@pytest.mark.parametrize(("free", "words"), [(0, "No space left on device"), (1 << 40, "OpenCV cannot write mp4v")])
def test_a_video_is_whole_or_not_there(photos, on_call, monkeypatch, writer, free, words, capsys):
    source = clip(Path("clip.mp4"))
    monkeypatch.setattr(video.cv2, "VideoWriter", writer)
    monkeypatch.setattr(video.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free))
    assert run(source) == 2
    assert words in failures()["clip.mp4"]
    assert sorted(os.listdir("predictions")) == ["predictions.csv", "predictions.json"]
    assert len(names()) == (6 if writer is ShortWriter else 1)


def test_a_closed_pipe_ends_it_and_what_is_done_is_written(photos, on_call, monkeypatch):
    class Closed:
        encoding = "utf-8"

        def write(self, text):
            if "in/b.png" in text:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        predict.main(predict.parse_args([str(photos)]))
    assert names() == ["in/a.png", "in/b.png"]
    assert list(failures()) == ["in/c.png"]


def test_after_a_kill_it_goes_on_and_does_no_image_twice(photos, on_call, capsys):
    """The journal of a killed run: a whole line, half of another, a frame of a video."""
    flags = [photos, clip(Path("clip.mp4")), "--no-draw", "--format", "jsonl", "csv"]
    assert run(*flags) == 0
    whole = Path("predictions/predictions.jsonl")
    lines, table = whole.read_bytes().splitlines(True), Path("predictions/predictions.csv").read_bytes()
    whole.unlink()
    Path("predictions/predictions.partial.jsonl").write_bytes(lines[0] + lines[4] + lines[1][:-40])
    for detections in (2 + 6, 6):  # of images and frames
        on_call[detections + 1] = burst
        assert run(*flags, "--resume") == 0
        assert whole.read_bytes() == b"".join(lines)
        assert Path("predictions/predictions.csv").read_bytes() == table
        assert not Path("predictions/predictions.partial.jsonl").exists()
    picture(Path("other/d.png"))
    assert run("other", "--resume") == 2
    whole.write_bytes(whole.read_bytes().replace(b'"landmarks": [', b'"landmarks": [[0, 0], '))
    assert run(photos, "--resume") == 2
    assert [line.split(": ")[2][:9] for line in capsys.readouterr().err.splitlines()] == ["is of oth", "is of ano"]


def test_what_a_signal_left_is_not_done_twice(photos, on_call, capsys):
    on_call[2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert run(photos) == 143
    (photos / "b.png").unlink()
    on_call[2] = burst
    assert run(photos, "--resume") == 0
    assert names() == ["in/a.png", "in/c.png"]
    assert "1 results are of images that are not given now" in capsys.readouterr().err


def test_a_picture_that_failed_or_went_is_drawn_by_the_next_run(photos, on_call):
    on_call[2] = burst_of_input_error
    assert run(photos, "--resume") == 2
    assert run(photos, "--resume") == 0
    Path("predictions/a_overlay.jpg").unlink()
    assert run(photos, "--resume") == 0
    assert sorted(names()) == ["in/a.png", "in/b.png", "in/c.png"]
    assert all(overlay.is_overlay(Path(f"predictions/{name}_overlay.jpg")) for name in "abc")


def test_folders_and_files_that_may_not_be_read_are_named(photos, on_call, monkeypatch, capsys):
    (photos / "locked").mkdir()
    walk, stat = os.walk, os.stat

    def refused(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def locked(folder, onerror):
        onerror(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(photos / "locked")))
        return walk(folder)

    monkeypatch.setattr(os, "walk", locked)
    monkeypatch.setattr(os, "stat", lambda path, **more: (refused if str(path) == "in/b.png" else stat)(path, **more))
    assert run(photos, "--no-draw") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in errors] == [
        "error: in/locked: this folder cannot be read",
        "error: in/b.png: cannot be read",
    ]
    assert names() == ["in/a.png", "in/c.png"]
    assert run("") == 2


def test_more_videos_than_a_process_may_have_files_open(photos, on_call):
    resource = pytest.importorskip("resource")
    one = clip(Path("one.mp4"), 1).absolute()
    Path("videos").mkdir()
    for number in range(60):
        Path(f"videos/{number}.mp4").symlink_to(one)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, before[1]))
    try:
        assert run("videos", "--no-draw") == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(names()) == 60


@pytest.mark.parametrize(("name", "fps"), [("rec-10:30.avi", 25.0), ("slow.avi", 119.457), ("slower.avi", 239.683)])
def test_videos_of_any_rate_and_name(photos, on_call, name, fps):
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), fps, (64, 64))
    for _ in range(4):
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    writer.release()
    os.rename("clip.avi", name)
    assert run(name, "--output", "out-10:30") == 0
    drawn = cv2.VideoCapture(f"./out-10:30/{Path(name).stem}_overlay.mp4")
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.05)


def test_points_of_a_frame_do_not_replace_those_of_a_photograph(photos, on_call):
    clip(photos / "clip.mp4", 2)
    picture(photos / "clip_000000.png")
    assert run(photos, "--format", "pts", "--no-draw") == 0
    assert {path.name for path in Path("predictions").glob("clip*")} == {
        "clip_000000_1.pts",
        "clip-2_000000_1.pts",
        "clip-2_000001_1.pts",
    }


def test_a_video_that_ends_early_is_told_with_a_number_of_frames_too(photos, on_call, monkeypatch, capsys):
    class Cut(video.Video):
        def __init__(self, source):
            super().__init__(source)
            self.frames = 40

    monkeypatch.setattr(video, "Video", Cut)
    assert run(clip(Path("clip.mp4")), "--no-draw", "--frames", "5") == 0
    assert run(clip(Path("clip.mp4")), "--no-draw", "--frames", "30") == 2
    assert "ends after 6 of 40 frames" in capsys.readouterr().err


def test_shards_part_the_inputs_and_share_a_folder(photos, on_call):
    Path("boxes.csv").write_text("image,x_min,y_min,x_max,y_max\n" + "".join(f"{n}.png,1,1,9,9\n" for n in "abc"))
    with files.owned("predictions", part="-2-of-2"):
        assert run(photos, "--shard", "1/2", "--boxes", "boxes.csv") == 0
        assert run(photos, "--shard", "2/2") == 2
    assert [run(photos, "--shard", shard) for shard in ("2/2", "4/4", "0/2", "3/2", "2")] == [0, 0, 2, 2, 2]
    written = {path.name: json.loads(path.read_text()) for path in Path("predictions").glob("*.json")}
    assert {name: [result["image"] for result in part["results"]] for name, part in written.items()} == {
        "predictions-1-of-2.json": ["in/a.png", "in/c.png"],
        "predictions-2-of-2.json": ["in/b.png"],
        "predictions-4-of-4.json": [],
    }


def test_a_video_by_its_address(photos, on_call, capsys):
    clip(Path("clip.mp4"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        assert run(f"http://me:secret@{place}/clip.mp4?x=1", "--frames", 4) == 0
        assert run(f"http://{place}/absent.mp4", "--output", "out") == 2
        server.shutdown()
    assert names() == [f"http://{place}/clip.mp4?x=1"] * 4
    assert Path(f"predictions/127_0_0_1_{server.server_port}_clip_mp4_overlay.mp4").is_file()
    assert not any(b"secret" in path.read_bytes() for path in Path("predictions").iterdir())
    assert capsys.readouterr().err.count(f"error: http://{place}/absent.mp4: cannot be opened") == 1


def test_a_window_ends_the_video_and_what_is_done_is_written(photos, on_call, monkeypatch):
    shown = []
    monkeypatch.setattr(video.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    monkeypatch.setattr(video.cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(video.cv2, "waitKey", lambda _: ord("q") if len(shown) == 3 else -1)
    monkeypatch.setattr(video.cv2, "getWindowProperty", lambda *_: len(shown) < 5)
    monkeypatch.setattr(video.cv2, "destroyAllWindows", lambda: None)
    assert run(clip(Path("clip.mp4")), clip(Path("next.mp4")), "--show") == 0
    assert [result["frame"] for result in document()["results"]] == [0, 1, 2, 0, 1]
    assert shown[0].max() > 200  # frames/s, on grey
    assert run(photos, "--show") == 2


def test_without_a_display_one_line(photos, on_call, monkeypatch, capfd):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert run(clip(Path("clip.mp4")), "--show") == 2
    assert capfd.readouterr().err.startswith("error: --show: ")
    assert not Path("predictions").exists()


HOLD = """
import sys, time
from asmnet_tf.files import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_into_one_folder(photos, on_call, capsys):
    """The second is refused as long as the first lives, and no longer."""
    command, environment = [sys.executable, "-c", HOLD, "out"], {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        process.stdout.readline()
        assert run(photos, "--output", "out") == 2
        assert "out: " in capsys.readouterr().err
        assert not Path("out/predictions.json").exists()
        assert run(photos, "--output", "other") == 0
    finally:
        process.kill()
        process.communicate()
    assert run(photos, "--output", "out") == 0
    assert len(names("out")) == 3


def test_own_boxes_are_told_where_they_do_not_fit(photos, on_call, capsys):
    rows = ["./in/a.png,10,10,40,40", "C:\\in\\b.png,500,500,540,540", "d.png,10,10,40,40"]
    Path("boxes.csv").write_text("\n".join(["image,x_min,y_min,x_max,y_max", *rows]))
    assert run(photos, "--boxes", "boxes.csv", "--no-draw") == 2
    assert {result["image"]: len(result["faces"]) for result in document()["results"]} == {"in/a.png": 1, "in/c.png": 0}
    assert "boxes.csv, line 3" in failures()["in/b.png"]
    out, err = capsys.readouterr()
    assert "in/c.png: no row in boxes.csv" in out
    assert [line for line in err.splitlines() if "line 4, d.png" in line]
    assert [line for line in err.splitlines() if "image without a row" in line and "in/c.png" in line]


def test_own_boxes_bring_their_angles(photos, on_call):
    rows = [f"{name}.png,1,1,9,9,{angle}" for name, angle in (("b", 180), ("a", ""), ("a", -45))]
    Path("boxes.csv").write_text("\n".join(["image,x_min,y_min,x_max,y_max,angle", *rows]))
    assert run(photos, "--boxes", "boxes.csv", "--no-draw", "--format", "json") == 0
    rolls = [[face["roll"] for face in result["faces"]] for result in document()["results"]]
    assert rolls == [[None, -45], [180], []]  # None: the aligner was asked to look
