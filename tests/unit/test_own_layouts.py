"""Datasets that a user describes: the description, its errors, the annotation files that people have."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from asmnet_tf.config import AUGMENTATIONS
from asmnet_tf.data.annotations import (
    BadSamples,
    _share,
    hold_out,
    photograph,
    pose_of,
    pts_text,
    read_folder,
    read_samples,
    training_faces,
)
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DATASETS, FOLDER, find_spec, spec_of
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.pose import angles_to_matrix, estimate_pose, mean_face
from asmnet_tf.data.readers import new_sample
from asmnet_tf.evaluation import metrics
from asmnet_tf.files import InputError

TOML = """
name = "mine"
points = ["eye_a", "eye_b", "nose", "mouth_a", "mouth_b"]
flip = [[0, 1], ["mouth_a", "mouth_b"]]
normaliser = ["eye_a", 1]
contours = [[0, 2, 1], ["3-4"], ["0-2", 0]]
[splits]
train = "train"
test = ["test", "more/test.csv"]
"""
FACE = np.array([[20, 30], [60, 32], [40, 50], [25, 70], [56, 71.5]])


def describe(tmp_path, text=TOML):
    path = tmp_path / "faces.toml"
    path.write_text(text)
    return find_spec(str(path))


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((90, 80, 3), 90, np.uint8))
    return path


def write_faces(folder, count, move=0.0):
    for k in range(count):
        image = write_image(folder / f"face_{k:03d}x.jpg")
        image.with_suffix(".pts").write_text(pts_text(FACE + move * k))


def test_a_description_says_what_the_built_in_specs_say(tmp_path):
    spec = describe(tmp_path)
    assert (spec.num_landmarks, spec.flip_map, spec.outer_eye_corners) == (5, [1, 0, 2, 4, 3], (0, 1))
    assert spec.contours == (((0, 2, 1), False), ((3, 4), False), ((0, 1, 2), True))
    assert [source.path for source in spec.splits["test"]] == ["test", "more/test.csv"]
    assert spec.default_data_dir == str(tmp_path)
    assert not spec.has_pose
    assert np.isnan(estimate_pose(FACE, spec)).all()
    lengths = metrics.normaliser(FACE[None], spec)
    assert lengths == pytest.approx(np.hypot(40, 2))
    assert metrics.normaliser(FACE[None], spec, "inter-pupil") == pytest.approx(lengths)


def test_what_a_model_takes_along_is_the_same_description(tmp_path):
    spec = describe(tmp_path)
    again = spec_of({"description": json.loads(json.dumps(spec.description))}, 5, tmp_path / "best.keras")
    assert replace(again, default_data_dir=spec.default_data_dir) == spec
    with pytest.raises(InputError, match=r"best\.keras"):
        spec_of({}, 5, tmp_path / "best.keras")
    assert spec_of({}, 68, tmp_path / "best.keras").name == "300w"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_description_that_ships_is_whole(name):
    spec = DATASETS[name]
    flip = np.array(spec.flip_map)
    assert (flip[flip] == np.arange(spec.num_landmarks)).all()
    if spec.outer_eye_corners:
        assert flip[spec.outer_eye_corners[0]] == spec.outer_eye_corners[1]
    mirrored = {frozenset(flip[list(indices)].tolist()) for indices, _ in spec.contours}
    assert mirrored == {frozenset(indices) for indices, _ in spec.contours}
    theirs = dict(spec.rigid_points)
    for ours, place in theirs.items():  # where a point and its mirror image both have a place, so have the places
        if flip[ours] in theirs:
            assert theirs[flip[ours]] == DATASETS["300w"].flip_map[place]


def test_points_may_be_taken_from_a_dataset_that_ships(tmp_path):
    spec = describe(tmp_path, 'name = "mine"\nbased_on = "300w"\nsplits = {train = "a"}\n')
    assert (spec.flip_map, spec.contours) == (DATASETS["300w"].flip_map, DATASETS["300w"].contours)
    assert spec.has_pose
    assert not spec.published
    assert not spec.subset_counts


def test_a_pose_from_places_of_ones_own_is_that_of_the_mean_face(tmp_path):
    chosen = [8, 27, 30, 36, 39, 42, 45, 48, 54]
    seen = 200 * (mean_face()[chosen] @ angles_to_matrix(np.array([20.0, -8.0, 12.0])).T)[:, :2]
    angles = []
    for places in (
        [[k, i] for k, i in enumerate(chosen)],
        [[k, *(2.5 * mean_face()[i])] for k, i in enumerate(chosen)],
    ):
        pose = [[item[0], *map(float if len(item) > 2 else int, item[1:])] for item in places]
        text = f'name = "nine"\npoints = 9\nflip = [[3, 6], [4, 5], [7, 8]]\nnormaliser = [3, 6]\npose = {pose}\n'
        angles.append(estimate_pose(seen, describe(tmp_path, text)))
    assert angles[0] == pytest.approx([20.0, -8.0, 12.0], abs=5.0)  # seen without perspective
    assert angles[1] == pytest.approx(angles[0], abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        ("[[0, 1], [", "[[0, 5], ["),  # out of range
        ("[[0, 1], [", "[[0, 1], [1, 2], ["),  # a point in two pairs
        ("[[0, 1], [", "[[2, 2], ["),
        ('normaliser = ["eye_a", 1]', ""),
        ('["eye_a", 1]', '["eye_a", "eye_a"]'),
        ('["eye_a", 1]', '["eye_c", 1]'),
        ("name", "nmae"),
        ('"mine"', '"300w"'),
        ('"mine"', '"../mine"'),
        ('"eye_b"', '"eye_a"'),
        ('"train"', '"../train"'),
        ('"train"', '"/train"'),
        ('"train"', "1.5"),
        ('train = "train"', "val = 0.2"),
        ("contours = [", "contours = [[], "),
        ("contours = [", 'contours = [["4-9"], '),
        ("contours", "pose = [[0, 99]]\ncontours"),
        ("contours", "pose = [0, 0]\ncontours"),
        ("contours", 'based_on = "none"\ncontours'),
        ("contours", "colour = 1\ncontours"),
        ("contours", "detector_box = [0.5, 0.0]\ncontours"),
        ("contours", "detector_box = [0.0, 0.0, 0.0]\ncontours"),
        ("contours", "detector_box = [0.5, nan, '0']\ncontours"),
        ("contours", "right_px = 1e9\ncontours"),
        ("contours", "right_px = nan\ncontours"),
        ('["eye_a", "eye_b", "nose", "mouth_a", "mouth_b"]', "0"),
        ('["eye_a", "eye_b", "nose", "mouth_a", "mouth_b"]', "5.0"),
        ('"nose"', '"1-2"'),
        ("[[0, 1], [", "[[nan, 1], ["),
        ("contours", "pupils = [[0], [9]]\ncontours"),
        ("contours", "thresholds = []\ncontours"),
        ("contours", "thresholds = [0.035, 0.04]\ncontours"),
        ("contours", "thresholds = [0.08, 0.08]\ncontours"),
        ("contours", "pupils = []\ncontours"),
        ("[splits]", "[splits]\nvalidation = 0.2"),
        ("contours", "counts = {test = 1.5}\ncontours"),
        ("contours", 'title = "of\\ntwo lines"\ncontours'),
        ('"train"', "[]"),
        ('"train"', '{path = "train", faces = -1}'),
        ('"train"', '"train'),
        ("[splits]", "[splits"),
        (TOML, ""),
    ],
)
def test_a_bad_description_is_one_line_that_names_the_file(tmp_path, change):
    assert change[0] in TOML
    with pytest.raises(InputError, match=r"faces\.toml") as caught:
        describe(tmp_path, TOML.replace(*change, 1))
    assert "\n" not in str(caught.value)


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "score", *(f"{axis}{i}" for i in range(5) for axis in "xy")])
        writer.writerows(rows)


def write_dlib(path, faces):
    images = "".join(
        f"<image file='{name}'><box top='1' left='1' width='9' height='9'>"
        + "".join(f"<part name='{k:02d}' x='{x}' y='{y}'/>" for k, (x, y) in reversed(list(enumerate(points))))
        + "</box></image>"
        for name, points in faces
    )
    path.write_text(f"<?xml version='1.0' encoding='ISO-8859-1'?><dataset><images>{images}</images></dataset>")


def write_coco(path, faces, visible=2):
    content = {
        "images": [{"id": 7 + k, "file_name": name} for k, (name, _) in enumerate(faces)],
        "annotations": [
            {"id": k, "image_id": 7 + k, "keypoints": [v for x, y in points for v in (x, y, visible)]}
            for k, (_, points) in enumerate(faces)
        ],
    }
    path.write_text(json.dumps(content))


def test_coco_points_are_taken_by_the_names_of_their_category(tmp_path):
    spec, path = annotated(tmp_path, ".json")
    content, order = json.loads(path.read_text()), [2, 0, 1, 4, 3]
    content["categories"] = [{"id": 3, "keypoints": [spec.point_names[i] for i in order]}]
    content["annotations"][1] |= {
        "category_id": 3,
        "keypoints": [v for x, y in (FACE + 1)[order] for v in (x, y, 2)],
    }
    path.write_text(json.dumps(content))
    for k, sample in enumerate(read_samples(spec, tmp_path, "test")):
        np.testing.assert_allclose(sample.landmarks, FACE + k, atol=1e-4)


def annotated(tmp_path, ending):
    spec = describe(tmp_path, TOML.replace('["test", "more/test.csv"]', f'"labels/test{ending}"'))
    write_image(tmp_path / "labels/a/one.jpg")
    write_image(tmp_path / "two.png")  # from the data folder
    faces = [("a/one.jpg", FACE), ("two.png", FACE + 1)]
    path = tmp_path / f"labels/test{ending}"
    if ending == ".csv":
        write_csv(path, [[name, 0.5, *points.reshape(-1)] for name, points in faces])
    elif ending == ".txt":
        (tmp_path / "labels/a/one.pts").write_text(pts_text(FACE))
        (tmp_path / "two.pts").write_text(pts_text(FACE + 1))
        path.write_text("a/one.jpg\n\ntwo.png\n")
    else:
        (write_dlib if ending == ".xml" else write_coco)(path, faces)
    return spec, path


@pytest.mark.parametrize("ending", [".csv", ".xml", ".json", ".txt"])
def test_annotations_are_read_as_people_have_them(tmp_path, ending):
    spec, _ = annotated(tmp_path, ending)
    samples = read_samples(spec, tmp_path, "test")
    assert [sample.name for sample in samples] == ["labels/a/one", "two"]
    for k, sample in enumerate(samples):
        np.testing.assert_allclose(sample.landmarks, FACE + k, atol=1e-4)
        assert sample.read_image().shape == (90, 80, 3)


@pytest.mark.parametrize("ending", [".csv", ".xml", ".json", ".txt"])
def test_a_bad_face_is_skipped_or_ends_the_run_by_its_name(tmp_path, ending):
    spec, path = annotated(tmp_path, ending)
    text = path.read_text()
    for broken in (text.replace("two.png", "none.png"), text.replace("two.png", "../../two.png")):
        path.write_text(broken)
        with pytest.raises(InputError, match=path.name):
            read_samples(spec, tmp_path, "test")
        bad = BadSamples(skip=True)
        assert [sample.name for sample in read_samples(spec, tmp_path, "test", bad=bad)] == ["labels/a/one"]
        assert len(bad.reasons) == 1


def test_points_that_are_missing_or_of_another_number_are_refused(tmp_path):
    spec, path = annotated(tmp_path, ".json")
    write_coco(path, [("a/one.jpg", FACE)], visible=0)
    with pytest.raises(InputError, match="annotation 0"):
        read_samples(spec, tmp_path, "test")
    write_coco(path, [("a/one.jpg", FACE[:4])])
    with pytest.raises(InputError, match="4 points"):
        read_samples(spec, tmp_path, "test")
    spec, path = annotated(tmp_path, ".csv")
    write_csv(path, [["a/one.jpg", 1, *FACE.reshape(-1)], ["two.png", 1, *FACE.reshape(-1)[:-1], ""]])
    bad = BadSamples(skip=True)
    assert len(read_samples(spec, tmp_path, "test", bad=bad)) == 1
    assert len(bad.reasons) == 1


@pytest.mark.parametrize(
    ("ending", "change", "told"),
    [
        (".csv", ("y4", "y4,x5,y5"), "column x5"),  # of another layout, of which the first points would be taken
        (".csv", ("x4,y4", "more"), r"expected image, x0, .*, y4"),
        (".xml", ("name='03'", "name='mouth'"), "neither all numbers"),
        (".xml", ("name='03'", "name='02'"), "4 points"),
        (".xml", ("file='two.png'", ""), "no name"),
        (".json", ('"image_id": 8', '"image_id": 5'), "not listed"),
        (".json", ('"id": 8', '"id": 7'), "same id"),
        (".json", ('"keypoints"', '"points"'), "no 'keypoints'"),
        (".txt", ("two.png", "labels"), "no image"),
    ],
)
def test_a_bad_annotation_file_is_one_line_that_says_what_is_wrong(tmp_path, ending, change, told):
    spec, path = annotated(tmp_path, ending)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match=told) as caught:
        read_samples(spec, tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_faces_of_one_image_have_a_number_each(tmp_path):
    spec, path = annotated(tmp_path, ".csv")
    write_csv(path, [["a/one.jpg", 1, *(FACE + k).reshape(-1)] for k in range(3)])
    names = [sample.name for sample in read_samples(spec, tmp_path, "test")]
    assert names == ["labels/a/one#0", "labels/a/one#1", "labels/a/one#2"]
    assert {photograph(name) for name in names} == {"labels/a/one"}


def test_the_points_that_predict_wrote_beside_a_photograph_are_read(tmp_path):
    for k in (1, 2):
        (write_image(tmp_path / "train/group.jpg").parent / f"group_{k}.pts").write_text(pts_text(FACE + k))
    samples = read_samples(describe(tmp_path), tmp_path, "train")
    assert [sample.name for sample in samples] == ["train/group_1", "train/group_2"]
    assert len({sample.image_path for sample in samples}) == 1


def test_splits_by_share_part_the_photographs_once_and_for_all(tmp_path):
    write_faces(tmp_path / "train", 60, move=0.05)
    text = TOML.replace('test = ["test", "more/test.csv"]', "test = 0.25\nval = 0.25")
    spec = describe(tmp_path, text)
    parts = {split: {s.name for s in read_samples(spec, tmp_path, split)} for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 60
    assert all(5 <= len(parts[split]) <= 27 for split in ("val", "test"))
    train, validation = training_faces(spec, tmp_path, 0.1)
    assert {s.name for s in train} == parts["train"]
    assert {s.name for s in validation} == parts["val"]


def test_faces_of_one_photograph_stand_on_one_side(tmp_path):
    group = write_image(tmp_path / "train/group.jpg")
    for k in range(1, 13):  # as predict writes them
        (group.parent / f"group_{k}.pts").write_text(pts_text(FACE + k / 9))
    write_faces(tmp_path / "train", 4)
    samples = read_samples(describe(tmp_path), tmp_path, "train")
    samples += [new_sample(f"LP/AFW_{n}_1_{k}", Path("no.jpg"), FACE, set()) for n in range(99) for k in range(4)]
    for fraction in (0.2, 0.5, 0.8):
        sides = [{s.name.rpartition("_")[0] for s in side if "_" in s.name} for side in hold_out(samples, fraction)]
        assert not {name for name in sides[0] & sides[1] if not name.endswith("face")}


def test_landmarks_all_in_one_point_are_a_bad_sample(tmp_path):
    write_faces(tmp_path / "train", 3)
    (tmp_path / "train/face_001x.pts").write_text(pts_text(np.zeros((5, 2))))
    with pytest.raises(InputError, match="face_001x are in one point"):
        read_samples(describe(tmp_path), tmp_path, "train")
    bad = BadSamples(skip=True)
    assert len(read_samples(describe(tmp_path), tmp_path, "train", bad=bad)) == 2
    assert list(bad.reasons) == ["train/face_001x"]


def test_the_number_of_faces_is_told_of_each_source(tmp_path, capsys):
    write_faces(tmp_path / "train", 6)
    write_faces(tmp_path / "train2/train", 4)
    sources = '[{path = "train", faces = 9}, {path = "train2/train", tag = "train", faces = 4}]'
    read_samples(describe(tmp_path, TOML.replace('"train"', sources)), tmp_path, "train")
    assert "10 of 13 faces (TRAIN 6/9, TRAIN 4/4)" in capsys.readouterr().err
    shared = TOML.replace('"train"', '{path = "train", faces = 6}').replace('["test", "more/test.csv"]', "0.5")
    read_samples(describe(tmp_path, shared), tmp_path, "train")
    assert not capsys.readouterr().err


def test_each_share_is_of_all_photographs():
    samples = [new_sample(f"train/face_{k}x", Path("no.jpg"), FACE, set()) for k in range(4000)]
    parts = {split: _share(samples, {"val": 0.3, "test": 0.3}, split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len({s.name for part in parts.values() for s in part}) == 4000
    for split, share in (("train", 0.4), ("val", 0.3), ("test", 0.3)):
        assert abs(len(parts[split]) / 4000 - share) < 0.03  # four standard deviations


def test_a_source_that_is_missing_or_listed_twice_is_told(tmp_path):
    write_faces(tmp_path / "test", 2)
    with pytest.raises(InputError, match=r"more/test\.csv"):
        read_samples(describe(tmp_path), tmp_path, "test")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/test.mat").touch()
    with pytest.raises(InputError, match=r"more/test\.mat: neither a folder nor one of \.txt, \.csv, \.xml, \.json\."):
        read_samples(describe(tmp_path, TOML.replace("more/test.csv", "more/test.mat")), tmp_path, "test")
    with pytest.raises(InputError, match="twice"):
        read_samples(describe(tmp_path, TOML.replace("more/test.csv", "test")), tmp_path, "test")


def test_extra_faces_come_as_often_as_their_weight_says(tmp_path):
    write_faces(tmp_path / "train", 12)
    write_faces(tmp_path / "extra", 4)
    spec = describe(tmp_path)
    samples = read_samples(spec, tmp_path, "train")
    more = read_folder(tmp_path / "extra", spec)
    patches = FacePatches([*samples, *more], "square", 1.2, 32, cache="none")
    for weight, times in ((0.5, 2), (1.0, 4), (2.5, 10)):
        batches = TrainingBatches(patches, AUGMENTATIONS["none"], 1, 0, extra=len(more), extra_weight=weight)
        assert batches.steps_per_epoch == 12 + times
        counts = np.bincount(batches._order(3), minlength=16)
        assert (counts[:12] == 1).all()
        assert counts[12:].sum() == times
        assert np.ptp(counts[12:]) <= 1
        of_a_worker = TrainingBatches(patches, AUGMENTATIONS["tuned"], 4, 0, lambda n: slice(1), len(more), weight)
        whole = of_a_worker.whole(AUGMENTATIONS["none"])
        assert whole.steps_per_epoch == -(-(12 + times) // 4)
        parts = [whole.batch(3, step) for step in range(whole.steps_per_epoch)]
        alone = [batches.batch(3, step) for step in range(12 + times)]
        for got, of_each in zip(zip(*parts), zip(*alone)):  # no face is left out
            np.testing.assert_array_equal(np.concatenate(got), np.concatenate(of_each))
        assert len(of_a_worker.batch(3, 1)[0]) == 1
    moved = TrainingBatches(patches, AUGMENTATIONS["tuned"], 12 + 20, 0, extra=len(more), extra_weight=5.0).batch(0, 0)[
        2
    ]
    assert len(np.unique(moved.reshape(32, 6), axis=0)) == 32  # none comes twice as it was
    assert TrainingBatches(patches, AUGMENTATIONS["none"], 1, 0, extra=4, extra_weight=0.1).steps_per_epoch == 13
    alone = TrainingBatches(patches, AUGMENTATIONS["none"], 1, 5)
    np.testing.assert_array_equal(alone._order(2), np.random.default_rng([5, 2]).permutation(16))


# --- head-pose data ---------------------------------------------------------------------------------------------------


def write_mat(path, pitch_yaw_roll, points, key="pt3d_68"):
    write_image(path.with_suffix(".jpg"))
    pose = np.zeros((1, 7))
    pose[0, :3] = np.radians(pitch_yaw_roll)
    savemat(path, {"Pose_Para": pose, key: points.T + 1.0})


def test_aflw2000_gives_the_angles_of_its_rotation(tmp_path):
    spec = DATASETS["aflw2000"]
    points = np.column_stack([40 + 30 * mean_face()[:, 0], 45 + 30 * mean_face()[:, 1]])
    write_mat(tmp_path / "a.mat", (0, 30, 0), points)
    write_mat(tmp_path / "sub/b.mat", (-12, 0, 0), points, key="pt2d")
    write_mat(tmp_path / "c.mat", (0, 0, 25), points)
    write_mat(tmp_path / "d.mat", (0, 110, 0), points)  # beyond 99 degrees
    for other in ("landmarks/AFW/a_pts.mat", "Code/Model_Shape.mat"):  # what the downloads bring, too
        (tmp_path / other).parent.mkdir(parents=True)
        savemat(tmp_path / other, {"pts_2d": points})
    samples = read_samples(spec, tmp_path, "test")
    assert [sample.name for sample in samples] == ["a", "c", "sub/b"]
    np.testing.assert_allclose(samples[0].landmarks, points, atol=1e-4)
    pose, told = pose_of(samples, spec, tmp_path, None)
    # a single angle is the same in either order; roll counts the other way round where y points up
    np.testing.assert_allclose(np.abs(pose), [[30, 0, 0], [0, 0, 25], [0, 12, 0]], atol=1e-4)
    assert pose[0, 0] > 0
    assert pose[2, 1] < 0
    assert "AFLW2000" in told
    (tmp_path / "e.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut short")
    (tmp_path / "e.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"e\.mat"):
        read_samples(spec, tmp_path, "test")


def test_biwi_gives_the_rotation_and_a_box_where_the_head_is(tmp_path):
    folder = tmp_path / "01"
    write_image(folder / "frame_00003_rgb.png")
    rotation = angles_to_matrix(np.array([-20.0, 10.0, 5.0]))
    calibration = [[60, 0, 40], [0, 60, 45], [0, 0, 1]]
    numbers = [*np.ravel(calibration), 0, 0, 0, 0, *np.eye(3).ravel(), 0, 0, 0, 80, 90]
    (folder / "rgb.cal").write_text(" ".join(map(str, numbers)))
    rows = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rotation)
    (folder / "frame_00003_pose.txt").write_text(f"{rows}\n\n0 0 300\n")
    (sample,) = read_samples(DATASETS["biwi"], tmp_path, "test")
    pose, _ = pose_of([sample], DATASETS["biwi"], tmp_path, None)
    np.testing.assert_allclose(pose, [[-20.0, 10.0, 5.0]], atol=1e-3)
    assert (np.abs((sample.bbox[:2] + sample.bbox[2:]) / 2 - [40, 45]) < 12).all()
    assert 10 < np.ptp(sample.landmarks, axis=0).max() < 60
    (folder / "frame_00003_pose.txt").write_text("1 2 3")
    with pytest.raises(InputError, match="frame_00003_pose"):
        read_samples(DATASETS["biwi"], tmp_path, "test")
