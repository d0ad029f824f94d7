"""What predict writes reads back: .pts by the dataset reader, json and csv by the standard library; boxes files."""

import csv
import errno
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asmnet_tf.data.annotations import read_pts
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.faces.aligner import Face
from asmnet_tf.faces.face_files import ResultFiles, boxes_inside, match_boxes, read_boxes
from asmnet_tf.files import InputError

SPEC = DATASETS["300w"]
FACE = Face(
    np.array([1.0, 2, 31, 42]), 0.75, np.random.default_rng(0).uniform(-5, 300, (68, 2)).round(4), 10.0, -5.5, 2.25
)


def write_results(folder, results, formats, failed=()):
    files = ResultFiles(folder, formats, SPEC)
    for result in results:
        files.add(*result)
    return files.write("net", failed)


@pytest.fixture
def folder(tmp_path):
    other = replace(FACE, landmarks=FACE.landmarks + 1, quality=0.8125)
    results = [
        ("in/a.jpg", "sub/a", (300, 200), [(1, FACE), (2, other)]),
        ("clip.mp4", "clip", (64, 48), [(3, FACE)], 7),
        ("empty.png", "empty", (5, 6), []),
    ]
    assert len(write_results(tmp_path, results, ("pts", "csv", "json", "jsonl"))) == 4
    return tmp_path


def test_pts_are_read_back_by_the_dataset_reader(folder):
    """The reader takes 1 off, so a writer that forgot to add it would be off by one pixel."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pts"))
    assert names == ["clip_000007_3.pts", "sub/a_1.pts", "sub/a_2.pts"]
    assert read_pts(folder / "sub/a_1.pts", 68) == pytest.approx(FACE.landmarks, abs=1e-4)
    lines = (folder / "sub/a_2.pts").read_text().splitlines()
    assert lines[:3] == ["version: 1", "n_points:  68", "{"]
    assert [float(v) for v in lines[3].split()] == pytest.approx(FACE.landmarks[0] + 2, abs=1e-4)


def test_json_and_csv_say_the_same(folder):
    document = json.loads((folder / "predictions.json").read_text())
    image, frame, empty = document["results"]
    assert (document["model"], image["image"], image["width"], image["height"]) == ("net", "in/a.jpg", 300, 200)
    assert "frame" not in image
    assert (frame["frame"], empty["faces"]) == (7, [])
    assert document["results"] == [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert not list(folder.glob("*partial*"))
    face = frame["faces"][0]
    assert (face["face"], face["score"], face["box"]) == (3, 0.75, [1, 2, 31, 42])
    assert [face[angle] for angle in ("yaw", "pitch", "roll")] == [10, -5.5, 2.25]
    assert np.array(face["landmarks"]) == pytest.approx(FACE.landmarks)
    with open(folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["frame"], row["face"]) for row in rows] == [
        ("in/a.jpg", "", "1"),
        ("in/a.jpg", "", "2"),
        ("clip.mp4", "7", "3"),
    ]
    points = [[float(rows[2][f"{axis}{i}"]) for axis in "xy"] for i in range(68)]
    assert np.array(points) == pytest.approx(FACE.landmarks)
    assert float(rows[2]["pitch"]) == -5.5
    assert [face["quality"] for face in image["faces"]] == [None, 0.8125]
    assert [row["quality"] for row in rows] == ["", "0.8125", ""]


@pytest.mark.parametrize("form", ["{}", "{};", " {} "])
def test_a_boxes_file_of_a_spreadsheet(tmp_path, form):
    table = [["Image", "X_min", "Y_min", "X_max", "Y_max"], ["é 1.jpg", "1,5", "2", "3,5", "4"]]
    (tmp_path / "boxes.csv").write_text("\r\n".join(form.format(";".join(row)) for row in table), encoding="utf-16")
    assert [(row.image, row.box.tolist()) for row in read_boxes(tmp_path / "boxes.csv")] == [
        ("é 1.jpg", [1.5, 2, 3.5, 4])
    ]


def test_a_name_of_two_lines_in_a_boxes_file(tmp_path):
    (tmp_path / "boxes.csv").write_text('image,x_min,y_min,x_max,y_max\n"two\nlines.jpg",1,2,3,4\nb.jpg,1,2,3,4\n')
    assert [(row.line, row.image) for row in read_boxes(tmp_path / "boxes.csv")] == [
        (3, "two\nlines.jpg"),
        (4, "b.jpg"),
    ]


def test_a_boxes_file_may_tell_angles(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("Angle,image,x_min,y_min,x_max,y_max\n-90,a.jpg,1,2,3,4\n,a.jpg,1,2,3,4\n ,a.jpg,1,2,3,4\n")
    rows = read_boxes(path)
    assert [row.angle for row in rows] == pytest.approx([-90, np.nan, np.nan], nan_ok=True)
    matched, notes = match_boxes(path, rows, [Path("a.jpg")], [])
    assert [row.line for row in matched[Path("a.jpg")]] == [2, 3]
    assert "line 4, a.jpg" in notes[-1]


def test_what_is_missing_is_listed_and_no_name_spoils_a_file(tmp_path):
    names = ["caf\udce9.jpg", 'new\nline "quoted".jpg', "\x1b[31mred.jpg"]
    results = [(name, f"stem{i}", (300, 200), [(1, FACE)]) for i, name in enumerate(names)]
    write_results(tmp_path, results, ("json", "csv"), [{"image": names[0], "reason": "too long"}])
    document = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    escaped = ["caf\\udce9.jpg", *names[1:]]
    assert [result["image"] for result in document["results"]] == escaped
    assert document["failed"] == [{"image": escaped[0], "reason": "too long"}]
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [row["image"] for row in csv.DictReader(file)] == escaped


def test_a_file_that_cannot_be_written_takes_no_other_with_it(tmp_path):
    (tmp_path / "predictions.json").mkdir()
    with pytest.raises(InputError, match=r"predictions\.json"):
        write_results(tmp_path, [("a.jpg", "a", (9, 9), [(1, FACE)])], ("json", "csv", "pts"))
    assert (tmp_path / "predictions.csv").is_file()
    assert (tmp_path / "a_1.pts").is_file()


class FullDisk(io.FileIO):
    def write(self, line):
        if len(line) < 50:
            raise OSError(errno.ENOSPC, "full")
        return super().write(line[: len(line) // 2])


def test_a_line_is_in_the_journal_whole_or_not_at_all(tmp_path):
    results = ResultFiles(tmp_path, ["jsonl"], SPEC)
    results.add("a.jpg", "a", (9, 9), [(1, FACE)])
    whole, results._file = results._file, FullDisk(tmp_path / "predictions.partial.jsonl", "ab")
    with pytest.raises(InputError) as caught:
        results.add("b.jpg", "b", (9, 9), [(1, FACE)])
    assert caught.value.disk_full
    assert results.done == {"a.jpg"}
    results._file = whole
    results.add("c.jpg", "c", (9, 9), [])
    results.write("net")
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("ending", [".png", ".JPG"])
def test_the_annotation_of_a_photograph_is_not_overwritten(tmp_path, ending):
    (tmp_path / f"a_1{ending}").touch()
    (tmp_path / "a_1.pts").write_text("by hand")
    with pytest.raises(InputError, match=r"a_1\.pts"):
        write_results(tmp_path, [("a.jpg", "a", (9, 9), [(1, FACE)])], ("pts",))
    assert (tmp_path / "a_1.pts").read_text() == "by hand"


def boxes_file(folder, *names):
    path = folder / "boxes.csv"
    rows = "".join(f"{name},{i},0,{i + 9},9\n" for i, name in enumerate(names))
    path.write_text(f"image,x_min,y_min,x_max,y_max\n{rows}", encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Three photographs in two folders, named as a user does who stands above them."""
    monkeypatch.chdir(tmp_path)
    return [Path(name) for name in ("in/a.jpg", "in/deep/b.jpg", "in/deep/c.JPG")]


@pytest.mark.parametrize(
    "name",
    [
        *("in/deep/b.jpg", "./in/deep/b.jpg", "in//deep/../deep/b.jpg", "{here}/in/deep/b.jpg"),
        *("in\\deep\\b.jpg", ".\\in\\deep\\b.jpg", "deep/b.jpg", "deep\\b.jpg"),
        *("b.jpg", "photos/b.jpg", "../elsewhere/deep/b.jpg", "C:\\data\\b.jpg", "/data/b.jpg", "B.JPG"),
        *("b", "photos/b", "b.png"),
    ],
)
def test_a_row_finds_its_image(images, tmp_path, name):
    path = boxes_file(tmp_path, name.format(here=tmp_path))
    matched, notes = match_boxes(path, read_boxes(path), images, [Path("in")])
    assert {image: [row.box.tolist() for row in rows] for image, rows in matched.items()} == {images[1]: [[0, 0, 9, 9]]}
    assert "2 x image without a row" in notes[-1]


def test_a_row_beside_the_csv_a_row_with_an_escaped_name_and_the_same_name_in_two_folders(images, tmp_path):
    (tmp_path / "lists").mkdir()
    path = boxes_file(tmp_path / "lists", "x.jpg", "caf\\udce9.jpg", "train/y.jpg", "test/y.jpg", "e\u0301.jpg")
    given = [Path(name) for name in ("lists/x.jpg", "caf\udce9.jpg", "old/test/y.jpg", "old/train/y.jpg", "\u00e9.jpg")]
    matched, _ = match_boxes(path, read_boxes(path), given, [])
    assert [matched[image][0].line for image in given] == [2, 3, 5, 4, 6]


def test_the_path_goes_before_the_name_and_what_is_left_over_is_told(images, tmp_path):
    path = boxes_file(tmp_path, "in/a.jpg", "other/a.jpg", "c", "in/a.jpg")
    matched, notes = match_boxes(path, [*read_boxes(path), *read_boxes(path)[:1]], images, [Path("in")])
    assert {image: [row.line for row in rows] for image, rows in matched.items()} == {images[0]: [2, 5], images[2]: [4]}
    assert len(notes) == 4
    for note, words in zip(notes, ("c is in/deep/c.JPG", "line 3, other/a.jpg", "line 2, in/a.jpg", "in/deep/b.jpg")):
        assert note.startswith(f"{path}: 1 x ")
        assert words in note


@pytest.mark.parametrize(
    ("names", "images", "words"),
    [
        (["x.jpg"], ["a/x.jpg", "b/x.jpg"], "line 2: x.jpg may be a/x.jpg or b/x.jpg"),
        (["x"], ["x.jpg", "x.png"], "line 2: x may be"),
        (["a/x.jpg", "b/x.jpg"], ["x.jpg"], "line 3: a/x.jpg and b/x.jpg may be x.jpg"),
        (["y.jpg", ""], ["x.jpg"], "no row is of an image"),
    ],
)
def test_rows_that_may_be_of_several_images_or_are_of_none_are_refused(tmp_path, monkeypatch, names, images, words):
    monkeypatch.chdir(tmp_path)
    path = boxes_file(tmp_path, *names)
    with pytest.raises(InputError, match=words):
        match_boxes(path, read_boxes(path), [Path(name) for name in images], [])


@pytest.mark.parametrize("box", ["300,0,340,40", "-30,0,10,40", "0,0,1000,1000", "-500,-500,500,500"])
def test_a_box_outside_its_image_is_refused_by_line(tmp_path, box):
    path = tmp_path / "boxes.csv"
    path.write_text(f"image,x_min,y_min,x_max,y_max\na.jpg,280,0,320,40\na.jpg,{box}\n")
    with pytest.raises(InputError, match=r"boxes\.csv, line 3: .*outside a\.jpg, 300 x 200"):
        boxes_inside(path, read_boxes(path), Path("a.jpg"), (300, 200))
    assert boxes_inside(path, read_boxes(path)[:1], Path("a.jpg"), (300, 200)).tolist() == [[280, 0, 320, 40]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,x,y,w,h\na.jpg,1,2,3,4\n", "columns image, x, y, w, h, expected image, x_min, y_min, x_max, y_max"),
        ("", "columns none"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,3,4\nb.jpg,9,2,3,4\n", "line 3: .*expected x_min < x_max"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,three,4\n", "line 2: .*not all numbers; expected image, x_min"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2\n", "line 2"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,nan,4\n", "line 2"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,1e999,4\n", "line 2"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,3,2\n", "line 2"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,0.3,0.1,0.7,0.5\n", "line 2: .*in pixels, not in shares"),
        ("image,x_min,y_min,x_max,y_max,angle\na.jpg,1,2,3,4,361\n", "line 2: angle 361, expected -360 to 360"),
        ("image,x_min,y_min,x_max,y_max,angle\na.jpg,1,2,3,4,left\n", "line 2: .*not all numbers"),
        ("image,x_min,y_min,x_max,y_max,angle\na.jpg,1,2,3,4,nan\n", "line 2: .*not finite"),
    ],
)
def test_a_boxes_file_that_cannot_be_used_is_named(tmp_path, text, words):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"boxes\.csv.*{words}"):
        read_boxes(path)
