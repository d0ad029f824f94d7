"""FaceAligner on the photograph that matplotlib ships: its docstring, threads, boxes, kinds of arrays, batches."""

import doctest
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import PIL.Image
import pytest
from benchmarks.rotated_faces import turn
from matplotlib.cbook import get_sample_data

import asmnet_tf
from asmnet_tf.data.annotations import Sample
from asmnet_tf.data.geometry import landmark_box, read_image, transform
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.pose import signed
from asmnet_tf.data.sidecars import pretrained_path
from asmnet_tf.evaluation.scoring import predict_faces
from asmnet_tf.faces import aligner as module
from asmnet_tf.files import InputError
from asmnet_tf.formats import runners


@pytest.fixture(scope="module")
def photograph():
    return read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(scope="module")
def aligner():
    return asmnet_tf.FaceAligner()


@pytest.fixture(scope="module")
def face(aligner, photograph):
    (face,) = aligner.detect(photograph)
    return face


def test_the_docstring_runs():
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted >= 6


def test_landmarks_are_where_the_face_is(face):
    """Read off the photograph by eye: pupils about (225, 190) and (305, 187), mouth (268, 277), chin (255, 330)."""
    points = face.landmarks
    assert points[36:42].mean(axis=0) == pytest.approx([225, 190], abs=10)
    assert points[42:48].mean(axis=0) == pytest.approx([305, 187], abs=10)
    assert points[48:60].mean(axis=0) == pytest.approx([268, 277], abs=12)
    assert points[8] == pytest.approx([260, 331], abs=15)
    assert np.abs(face.angles).max() < 20
    assert face.landmark_box == pytest.approx(landmark_box(points))


@pytest.mark.parametrize("angle", [90, 137, 180])
def test_a_face_that_lies_or_stands_on_its_head(aligner, photograph, face, angle):
    """Found, or in a box that says no angle: the same landmarks, and the angle in its roll."""
    turned, matrix = turn(photograph, angle)
    expected = transform(matrix, face.landmarks)
    eyes = np.linalg.norm(face.landmarks[45] - face.landmarks[36])
    for faces in (aligner.detect(turned), aligner.detect(turned, landmark_box(expected)[None])):
        assert np.linalg.norm(faces[0].landmarks - expected, axis=1).mean() < 0.04 * eyes
        assert -180 < faces[0].roll <= 180
        assert abs(signed(faces[0].roll - face.roll - angle)) < 4
        assert faces[0].yaw == pytest.approx(face.yaw, abs=4)


def test_boxes_with_an_angle_and_without(aligner, photograph, face):
    """A given angle is taken as it is: the crop is the upright one's; where it is NaN the detector looks."""
    turned, matrix = turn(photograph, 180)
    centre, half = transform(matrix, (face.box[:2] + face.box[2:]) / 2), (face.box[2:] - face.box[:2]) / 2
    boxes = np.tile(np.concatenate([centre - half, centre + half]), (3, 1))
    given, told, wrong = aligner.detect(turned, boxes, angles=np.array([180.0, np.nan, 0.0]))
    expected, eyes = transform(matrix, face.landmarks), np.linalg.norm(face.landmarks[45] - face.landmarks[36])
    off = [np.linalg.norm(found.landmarks - expected, axis=1).mean() / eyes for found in (given, told, wrong)]
    assert off[0] < 0.005
    assert off[1] < 0.04
    assert off[2] > 0.2
    assert abs(signed(given.roll - face.roll - 180)) < 0.5
    with pytest.raises(ValueError, match=r"angles of shape \(2,\), expected \(3,\)"):
        aligner.detect(turned, boxes, angles=np.zeros(2))
    with pytest.raises(ValueError, match="in degrees"):
        aligner.detect(turned, boxes, angles=np.array([0.0, np.inf, 0.0]))


def test_a_given_box_is_cropped_as_evaluate_crops_it(aligner, photograph, face):
    path = get_sample_data("grace_hopper.jpg", asfileobj=False)
    sample = Sample("face", path, np.zeros((68, 2), np.float32), face.box.astype(np.float32), frozenset())
    patches = FacePatches([sample], aligner.crop, aligner.crop_scale, aligner.model.input_size, margin=1.0)
    landmarks, pose = predict_faces(aligner.model.infer, patches)
    (again,) = aligner.detect(photograph, sample.bbox[None])
    assert again.landmarks == pytest.approx(landmarks[0], abs=1e-3)
    assert again.angles == pytest.approx(pose[0], abs=1e-3)
    assert again.score == 1


def test_many_faces_in_batches_equal_one_by_one(aligner, photograph, face, monkeypatch):
    boxes = face.box + np.arange(5)[:, None]
    one_by_one = [aligner.detect(photograph, box[None])[0] for box in boxes]
    monkeypatch.setattr(module, "MAX_BATCH", 2)
    for single, batched in zip(one_by_one, aligner.detect(photograph, boxes)):
        assert batched.landmarks == pytest.approx(single.landmarks, abs=0.01)


def test_threads_get_what_one_gets(aligner, photograph, face):
    images = [np.roll(photograph, 8 * i, axis=1) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(aligner.detect, images))
    for image, (found,) in zip(images, together):
        (alone,) = aligner.detect(image)
        assert found.landmarks == pytest.approx(alone.landmarks, abs=1e-3)


def test_kinds_of_arrays(aligner, photograph, face):
    bgr = photograph[..., ::-1]
    same = {
        "bgr": aligner.detect(bgr, face.box[None], bgr=True),
        "alpha": aligner.detect(np.dstack([photograph, photograph[..., 0]]), face.box[None]),
        "bgra": aligner.detect(np.dstack([bgr, photograph[..., 0]]), face.box[None], bgr=True),
        "16 bits": aligner.detect(photograph.astype(np.uint16) * 257, face.box[None]),
    }
    for kind, (found,) in same.items():
        assert found.landmarks == pytest.approx(face.landmarks, abs=1e-3), kind
    grey = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)
    for image in (grey, grey[..., None]):
        assert np.abs(aligner.detect(image)[0].landmarks - face.landmarks).mean() < 5


def test_paths_and_pil_images_are_upright_and_no_view_matters(aligner, photograph, face, tmp_path):
    path, sideways = tmp_path / "grace.png", tmp_path / "sideways.png"
    PIL.Image.fromarray(photograph).save(path)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    PIL.Image.fromarray(np.rot90(photograph)).save(sideways, exif=exif)
    rgb = PIL.Image.fromarray(photograph)
    deep = PIL.Image.fromarray(cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257)
    images = [path, str(path), sideways, rgb, PIL.Image.open(sideways), rgb.convert("RGBA"), rgb.convert("L"), deep]
    images += [photograph[::-1][::-1], np.asfortranarray(photograph), np.dstack([photograph[..., 1]] * 2)[..., 1]]
    for image in images:
        for bgr in (False, True) if not isinstance(image, np.ndarray) else (False,):
            (found,) = aligner.detect(image, face.box[None], bgr)
            assert np.abs(found.landmarks - face.landmarks).mean() < 5


def in_a_fork(check):
    """Runs a function in a fork of this process; what hangs there ends with a signal."""
    process = os.fork()
    if not process:
        code = 9
        try:
            signal.alarm(20)
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_forks_run_litert_and_are_told_that_tensorflow_does_not(aligner, photograph, face, monkeypatch):
    """Of TensorFlow, the bare network and opening another model hung for ever."""
    monkeypatch.setattr(runners, "_process", None)  # what other tests have opened
    images = np.zeros((4, 224, 224, 3), np.uint8)

    def same():
        assert np.array_equal(aligner.detect(photograph)[0].landmarks, face.landmarks)
        assert np.array_equal(asmnet_tf.FaceAligner().align(photograph, face.box[None])[0][0], face.landmarks)
        assert np.isfinite(aligner.model.infer(images)[0]).all()

    def refused():
        for call in (
            lambda: by_keras.infer(images),
            lambda: runners.open_model(path),
            lambda: aligner.detect(photograph),
        ):
            with pytest.raises(RuntimeError, match=r"is a fork of process .*spawn"):
                call()

    in_a_fork(same)
    path = pretrained_path("asmnet_300w")
    by_keras = runners.open_model(path)
    in_a_fork(refused)


def test_no_face_and_no_box(aligner):
    blank = np.zeros((40, 60, 3), np.uint8)
    assert aligner.detect(blank) == []
    assert aligner.detect(blank, np.empty((0, 4))) == []
    (outside,) = aligner.detect(blank, np.array([[-500, -500, -400, -400]]))  # black there; no crash
    assert np.isfinite(outside.landmarks).all()


@pytest.mark.parametrize(
    ("image", "boxes", "words"),
    [
        (np.zeros((5, 5, 2), np.uint8), None, "shape"),
        (np.zeros((0, 5, 3), np.uint8), None, "shape"),
        (np.zeros((5, 5, 3)), None, "float64, expected uint8 or uint16.*astype"),
        (np.zeros((5, 5, 3), bool), None, "bool, expected uint8"),
        (np.zeros((2, 5, 5, 3), np.uint8), None, "channels last"),
        (None, None, "NoneType.*cv2.imread"),
        (b"\xff\xd8", None, "bytes.*an array, a path or a PIL image"),
        ([[1, 2], [3, 4]], None, "list"),
        (PIL.Image.new("F", (5, 5)), None, "float32"),
        ("no_such.jpg", None, "no_such.jpg: image cannot be read"),
        (np.zeros((5, 5, 3), np.uint8), [[1, 2, 3]], "boxes of shape"),
        (np.zeros((5, 5, 3), np.uint8), [[3, 2, 1, 4]], "x_min < x_max"),
        (np.zeros((5, 5, 3), np.uint8), [[0, 0, np.nan, 4]], "x_min < x_max"),
    ],
)
def test_what_is_no_image_or_box_is_refused(aligner, image, boxes, words):
    with pytest.raises(ValueError, match=words):
        aligner.detect(image, boxes)


def test_an_unknown_model_lists_those_there_are():
    with pytest.raises(InputError, match="asmnet_300w_112_60"):
        asmnet_tf.FaceAligner("no_such_model")


def test_overlays_are_thin_and_leave_the_image_alone(photograph, face):
    from asmnet_tf.faces.overlay import draw_faces

    before = photograph.copy()
    drawn = draw_faces(photograph, [face], DATASETS["300w"])
    assert np.array_equal(photograph, before)
    changed = (drawn != photograph).any(axis=-1)
    box = face.landmark_box.astype(int)
    inside = changed[box[1] : box[3], box[0] : box[2]]
    assert 0.02 < inside.mean() < 0.16  # seen, and the face still visible
    assert changed.sum() < 1.2 * inside.sum()
    assert np.array_equal(draw_faces(photograph, [], DATASETS["300w"]), photograph)
