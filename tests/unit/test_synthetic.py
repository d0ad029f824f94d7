"""Synthetic faces: same seed same faces, exact landmarks and pose, the files of the real layouts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from asmnet_tf.data.annotations import pts_text, read_samples
from asmnet_tf.data.geometry import read_image
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose, mean_face, read_pose_labels
from asmnet_tf.files import InputError
from asmnet_tf.synthetic import dataset, renderer

SPEC_68, SPEC_98 = DATASETS["synthetic"], DATASETS["synthetic_wflw"]
TINY = (3, 1, 1, 1, 1, 1)


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def faces():
    return [renderer.render_face(7, i) for i in range(24)] + [renderer.render_face(7, i, "hard") for i in range(12)]


def test_same_seed_same_face_and_other_seed_other_face():
    first, again, other = (renderer.render_face(seed, 3) for seed in (1, 1, 2))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.landmarks_98, again.landmarks_98)
    assert not np.array_equal(first.landmarks_68, other.landmarks_68)
    assert first.image.dtype == np.uint8
    assert 256 <= min(first.image.shape[:2]) <= max(first.image.shape[:2]) <= 320


def test_size_and_difficulty_are_checked():
    assert renderer.render_face(0, 0, size=200).image.shape == (200, 200, 3)
    with pytest.raises(ValueError, match="difficulty"):
        renderer.render_face(0, 0, "easy")


def test_base_shapes_mirror_exactly_and_start_from_the_mean_face():
    face, more = renderer.base_landmarks()
    assert np.array_equal(face, mean_face())
    for points, spec in ((face, SPEC_68), (more, SPEC_98)):
        assert np.array_equal(points[spec.flip_map] * [-1, 1, 1], points)
    assert more[62, 1] < more[66, 1]
    assert more[35, 1] < more[40, 1]
    assert more[79, 1] < more[85, 1]


def test_68_and_98_points_agree(faces):
    ours, theirs = map(list, zip(*SPEC_98.rigid_points))
    for face in faces:
        assert np.abs(face.landmarks_98[ours] - face.landmarks_68[theirs]).max() < 1e-3


def test_landmarks_lie_in_a_face_sized_box(faces):
    for face in faces:
        height, width = face.image.shape[:2]
        assert np.isfinite(face.landmarks_98).all()
        assert face.landmarks_68.dtype == np.float32
        extent = np.ptp(face.landmarks_68, axis=0)
        assert 90 < extent.max() < 190
        assert (np.abs(face.landmarks_68.mean(axis=0) - [width / 2, height / 2]) < [width / 2, height / 2]).all()


def test_eyes_are_where_the_image_has_contrast(faces):
    """The drawing and the landmarks are the same place: pupils are darker than the eye corners around them."""
    darker = []
    for face in faces[:24]:
        if np.abs(face.pose).max() < 25 and not face.attributes["occlusion"] and not face.attributes["blur"]:
            height, width = face.image.shape[:2]
            pupil, inner = np.rint(face.landmarks_98[[97, 68]]).astype(int)
            if (np.minimum(pupil, inner) >= 0).all() and (np.maximum(pupil, inner) < [width, height]).all():
                darker.append(float(face.image[pupil[1], pupil[0]].mean()) < face.image[..., 0].mean())
    assert np.mean(darker) > 0.8


def test_exact_pose_agrees_with_pnp_on_exact_landmarks():
    faces = [renderer.render_face(5, i, size=64) for i in range(100)]
    pose = np.array([face.pose for face in faces])
    for name, spec in (("landmarks_68", SPEC_68), ("landmarks_98", SPEC_98)):
        error = np.abs(estimate_pose(np.array([getattr(face, name) for face in faces]), spec) - pose).mean(axis=0)
        print(f"{spec.name}: mean absolute difference, yaw, pitch, roll: {error.round(2)} degrees")
        assert (error < 3.0).all()
    assert np.abs(pose).max(axis=0)[0] > 40
    assert (np.abs(pose) <= [60, 30, 30]).all()


def test_300w_layout_does_not_depend_on_workers(tmp_path):
    one = dataset.write_dataset(tmp_path / "one", counts=(41, 1, 1, 1, 1, 1), workers=1)
    two = dataset.write_dataset(tmp_path / "two", counts=(41, 1, 1, 1, 1, 1), workers=2)
    more = dataset.write_dataset(tmp_path / "more", counts=(2, 1, 1, 1, 1, 1), workers=1)
    files = _files(one)
    assert files == _files(two)
    small = _files(more)
    assert all(small[name] == files[name] for name in small if name.endswith((".jpg", ".pts")))
    assert len(small) == 7 * 2 + 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["more", "one", "two"]  # nothing temporary is left


def test_pts_files_are_one_based(tmp_path):
    folder = dataset.write_dataset(tmp_path / "d", counts=TINY, seed=4)
    face = renderer.render_face(4, 2, split=0)
    lines = (folder / "helen/trainset/face_000002.pts").read_text().splitlines()
    assert lines[:3] == ["version: 1", "n_points:  68", "{"]
    assert lines[-1] == "}"
    points = np.array([line.split() for line in lines[3:-1]], float)
    assert np.abs(points - 1 - face.landmarks_68).max() < 1e-4
    image = read_image(folder / "helen/trainset/face_000002.jpg")
    assert image.shape == face.image.shape
    assert np.abs(image.astype(int) - face.image).mean() < 6
    labels = read_pose_labels(folder / "pose.csv")
    assert len(labels) == sum(TINY)
    assert np.abs(labels["helen/trainset/face_000002"] - face.pose).max() < 1e-3
    about = json.loads((folder / "synthetic.json").read_text())
    assert about["seed"] == 4
    assert about["counts"] == list(TINY)
    assert about["layout"] == "300w"
    hard = renderer.render_face(4, 0, "hard", split=5)
    assert np.abs(labels["ibug/face_000000"] - hard.pose).max() < 1e-3


def test_pts_text_by_hand():
    text = pts_text(np.array([[0.0, 0.0], [9.5, 19.25]], np.float32))
    assert text == "version: 1\nn_points:  2\n{\n1.0000 1.0000\n10.5000 20.2500\n}\n"


def test_wflw_list_has_207_columns(tmp_path):
    folder = dataset.write_dataset(tmp_path / "w", SPEC_98, counts=(3, 2))
    lists = folder / "WFLW_annotations/list_98pt_rect_attr_train_test"
    labels = read_pose_labels(folder / "pose.csv")
    for name, split, count in (("train", 0, 3), ("test", 1, 2)):
        rows = [line.split() for line in (lists / f"list_98pt_rect_attr_{name}.txt").read_text().splitlines()]
        assert len(rows) == count
        for i, row in enumerate(rows):
            assert len(row) == 207
            face = renderer.render_face(0, i, split=split)
            points = np.array(row[:196], float).reshape(98, 2)
            assert np.abs(points - face.landmarks_98).max() < 1e-3
            x_min, y_min, x_max, y_max = map(int, row[196:200])
            assert x_min <= points[:, 0].min()
            assert x_max >= points[:, 0].max()
            assert y_min < y_max
            assert [bool(int(flag)) for flag in row[200:206]] == [face.attributes[a] for a in renderer.ATTRIBUTES]
            assert (folder / "WFLW_images" / row[206]).is_file()
            assert np.abs(labels[f"{row[206].removesuffix('.jpg')}#0"] - face.pose).max() < 1e-3


@pytest.mark.parametrize(("spec", "counts", "columns"), [(SPEC_68, TINY, 68), (SPEC_98, (3, 2), 98)])
def test_the_reader_of_real_datasets_reads_it(tmp_path, spec, counts, columns):
    folder = dataset.write_dataset(tmp_path / "d", spec, counts=counts)
    labels = read_pose_labels(folder / "pose.csv")
    samples = [sample for split in ("train", "test") for sample in read_samples(spec, folder, split, quiet=True)]
    assert {sample.name for sample in samples} == set(labels)
    face = renderer.render_face(0, 0)
    ours = face.landmarks_68 if columns == 68 else face.landmarks_98
    assert np.abs(samples[0].landmarks - ours).max() < 1e-3
    assert samples[0].read_image().shape == face.image.shape


def test_complete_folder_stays_and_foreign_folder_is_refused(tmp_path):
    folder = dataset.write_dataset(tmp_path / "d", counts=(1, 0, 0, 0, 0, 0))
    before = _files(folder)
    dataset.write_dataset(folder, counts=TINY, seed=9)
    assert _files(folder) == before
    with pytest.raises(InputError, match="layout"):
        dataset.write_dataset(folder, SPEC_98, counts=(1, 1))
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="photos") as caught:
        dataset.write_dataset(foreign, counts=TINY)
    assert "\n" not in str(caught.value)
    assert _files(foreign) == {"mine.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "photos"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("stop")

    monkeypatch.setattr(dataset, "render_face", fail)
    with pytest.raises(RuntimeError):
        dataset.write_dataset(tmp_path / "d", counts=(1, 0, 0, 0, 0, 0))
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    write = dataset._fill

    def overtaken(root, *rest):
        write(root, *rest)
        monkeypatch.setattr(dataset, "_fill", write)
        dataset.write_dataset(tmp_path / "d", counts=TINY, seed=1)  # the other one is done first

    monkeypatch.setattr(dataset, "_fill", overtaken)
    folder = dataset.write_dataset(tmp_path / "d", counts=TINY, seed=2)
    assert json.loads((folder / "synthetic.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_default_faces_are_announced(tmp_path, capsys):
    few = {split: (replace(source, expected=count),) for count, (split, (source,)) in enumerate(SPEC_98.splits.items())}
    spec = replace(SPEC_98, splits=few)
    dataset.write_dataset(tmp_path / "w", spec)
    assert "rendering 1 synthetic faces" in capsys.readouterr().err
    dataset.write_dataset(tmp_path / "w", spec)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="no synthetic"):
        dataset.write_dataset(tmp_path / "x", DATASETS["300w"])
