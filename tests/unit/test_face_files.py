"""What predict writes reads back: .pts by the dataset reader, json and csv by the standard library; boxes files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from asmnet_tf.data.annotations import read_pts
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.faces.aligner import Face
from asmnet_tf.faces.face_files import Result, boxes_of, read_boxes, write_results
from asmnet_tf.files import InputError

SPEC = DATASETS["300w"]
FACE = Face(
    np.array([1.0, 2, 31, 42]), 0.75, np.random.default_rng(0).uniform(-5, 300, (68, 2)).round(4), 10.0, -5.5, 2.25
)


@pytest.fixture
def folder(tmp_path):
    other = replace(FACE, landmarks=FACE.landmarks + 1)
    results = [
        Result("in/a.jpg", "sub/a", (300, 200), [(1, FACE), (2, other)]),
        Result("clip.mp4", "clip", (64, 48), [(3, FACE)], frame=7),
        Result("empty.png", "empty", (5, 6), []),
    ]
    assert len(write_results(tmp_path, results, ("pts", "csv", "json"), "net", SPEC)) == 3
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


@pytest.mark.parametrize("form", ["{}", "{};", " {} "])
def test_a_boxes_file_of_a_spreadsheet(tmp_path, form):
    table = [["Image", "X_min", "Y_min", "X_max", "Y_max"], ["é 1.jpg", "1,5", "2", "3,5", "4"]]
    (tmp_path / "boxes.csv").write_text("\r\n".join(form.format(";".join(row)) for row in table), encoding="utf-16")
    assert read_boxes(tmp_path / "boxes.csv")["é 1.jpg"].tolist() == [[1.5, 2, 3.5, 4]]


def test_boxes_are_found_by_path_or_by_name(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("image,x_min,y_min,x_max,y_max,score\na.jpg,1,2,3.5,4,1\nb/c.png,0,0,9,9,1\na.jpg,5,6,7,8,1\n")
    boxes = read_boxes(path)
    assert boxes_of(boxes, tmp_path / "a.jpg").tolist() == [[1, 2, 3.5, 4], [5, 6, 7, 8]]
    assert boxes_of(boxes, tmp_path / "c.png").shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,x,y,w,h\na.jpg,1,2,3,4\n", "columns image, x, y, w, h, expected image, x_min, y_min, x_max, y_max"),
        ("", "columns none"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,3,4\nb.jpg,9,2,3,4\n", "line 3: .*expected x_min < x_max"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,three,4\n", "line 2: .*not all numbers; expected image, x_min"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2\n", "line 2"),
        ("image,x_min,y_min,x_max,y_max\na.jpg,1,2,nan,4\n", "line 2"),
    ],
)
def test_a_boxes_file_that_cannot_be_used_is_named(tmp_path, text, words):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"boxes\.csv.*{words}"):
        read_boxes(path)
