"""Boxes by hand; the real detector on the photograph that matplotlib ships, moved, shrunk, put into a large image."""

import lzma

import cv2
import numpy as np
import pytest
from benchmarks.rotated_faces import turn
from conftest import REPO
from matplotlib.cbook import get_sample_data

from asmnet_tf.data.geometry import read_image, rotation, transform
from asmnet_tf.data.layouts import read_spec
from asmnet_tf.data.pose import signed
from asmnet_tf.data.readers import Sample
from asmnet_tf.faces import detector
from asmnet_tf.files import InputError


@pytest.fixture(scope="module")
def photograph():
    return read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))


@pytest.fixture(scope="module")
def box(photograph):
    boxes, scores, angles = detector.detect_faces(photograph)
    assert angles.tolist() == [0.0]
    assert boxes.shape == (1, 4)
    assert 0.8 < scores[0] <= 1
    return boxes[0]


def test_the_corrected_box_by_hand():
    """10 x 40: d = 20, centre (5, 20) moves by (2, -4), the square has the side 10."""
    corrected = detector.to_landmark_boxes(np.array([[0.0, 0.0, 10.0, 40.0]]), 0.5, (0.1, -0.2))
    assert corrected[0] == pytest.approx([2, 11, 12, 21])


def test_the_fit_finds_the_correction_that_was_applied(monkeypatch):
    monkeypatch.syspath_prepend(REPO / "tests/benchmarks")
    from face_detection import fit_correction

    rng = np.random.default_rng(0)
    low = rng.uniform(0, 100, (9, 2))
    boxes = np.concatenate([low, low + rng.uniform(20, 60, (9, 2))], axis=1)
    scale, shift = fit_correction(boxes, detector.to_landmark_boxes(boxes, 0.9, (0.03, 0.15)))
    assert (scale, *shift) == pytest.approx((0.9, 0.03, 0.15))


def test_the_box_of_another_layout_by_hand():
    """Half the side, a tenth of it lower; on a face that lies on its left side "lower" is further left."""
    boxes = np.array([[0.0, 0, 20, 20]] * 2)
    placed = detector.place_boxes(boxes, np.array([0.0, 90.0]), (0.5, 0.0, 0.1))
    assert placed == pytest.approx(np.array([[5.0, 7, 15, 17], [3, 5, 13, 15]]))
    assert detector.place_boxes(boxes, np.zeros(2), None) is boxes


def test_the_box_of_another_layout_is_measured(photograph, box, tmp_path):
    """From a face whose landmarks fill the lower left quarter of the detector's box; too few faces tell nothing."""
    middle = (box[:2] + box[2:]) / 2
    corners = np.array([[box[0], middle[1]], [middle[0], box[3]]])
    faces = {"seen": photograph, "blank": np.zeros_like(photograph)}
    for name, image in faces.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1])
        faces[name] = Sample(name, tmp_path / f"{name}.png", corners, corners.ravel(), frozenset())
    seen, blank = faces.values()
    spec = read_spec(
        {"name": "mine", "points": 2, "flip": [], "normaliser": [0, 1], "splits": {"train": "."}}, "mine.toml"
    )
    place = detector.with_detector_box(spec, [seen] * 5 + [blank] * 5).detector_box
    assert place == pytest.approx((0.5, -0.25, 0.25), abs=2e-3)
    assert detector.with_detector_box(spec, [seen] * 4 + [blank] * 9) is spec


def test_overlaps_by_hand():
    table = detector.overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2]]))
    assert table[0] == pytest.approx([1, 1 / 7, 0])


def test_the_box_is_where_the_face_is(box):
    """Brows, chin and ears of the photograph, read off by eye: 165..360, 160..335."""
    assert box == pytest.approx([168, 150, 360, 342], abs=20)
    assert box[2] - box[0] == pytest.approx(box[3] - box[1])


def test_the_box_moves_with_the_image(photograph, box):
    moved = cv2.copyMakeBorder(photograph, 40, 0, 90, 0, cv2.BORDER_REPLICATE)
    found = detector.detect_faces(moved)[0][0]
    assert np.abs(found - (box + np.array([90, 40, 90, 40]))).max() < 0.1 * (box[2] - box[0])


def test_a_large_and_a_small_copy_give_the_same_box(photograph, box):
    for factor in (0.25, 4):
        resized = cv2.resize(photograph, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        found = (detector.detect_faces(resized)[0][0] + 0.5) / factor - 0.5
        assert np.abs(found - box).max() < 0.1 * (box[2] - box[0])


def test_small_faces_need_the_second_view(photograph):
    face = cv2.resize(photograph, (77, 90), interpolation=cv2.INTER_AREA)  # the face itself: 28 px
    crowd = np.full((1200, 1200, 3), 128, np.uint8)
    corners = [(100, 100), (1000, 300), (500, 900)]
    for x, y in corners:
        crowd[y : y + 90, x : x + 77] = face
    boxes = detector.detect_faces(crowd)[0]
    centres = {tuple(np.round((box[:2] + box[2:]) / 2 / 100).astype(int)) for box in boxes}
    assert centres == {(1, 1), (10, 3), (5, 9)}
    assert len(detector.detect_faces(crowd, size=256)[0]) < 3


@pytest.mark.parametrize("angle", [50, 90, 137, 180, 251])
def test_a_turned_face_is_found_with_its_angle(photograph, box, angle):
    turned, matrix = turn(photograph, angle)
    boxes, scores, angles = detector.detect_faces(turned)
    assert abs(signed(angles[0] - angle)) < 12
    centre = transform(matrix, (box[:2] + box[2:]) / 2)
    assert np.abs((boxes[0, :2] + boxes[0, 2:]) / 2 - centre).max() < 0.15 * (box[2] - box[0])
    assert scores[0] >= detector.MIN_SCORE


def test_five_points_tell_their_angle_whatever_their_size():
    turned = detector.FIVE_POINTS @ rotation(-130.0).T * 40 + 7
    angles, misfits = detector.five_point_angles(np.stack([turned, detector.FIVE_POINTS[[2, 1, 0, 3, 4]]]))
    assert angles[0] == pytest.approx(-130.0)
    assert misfits[0] == pytest.approx(0, abs=1e-9)
    assert misfits[1] > detector.MAX_MISFIT  # an eye in the place of the nose


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2), (31, 33)])
def test_odd_images_hold_no_face(shape):
    boxes, scores, angles = detector.detect_faces(np.full((*shape, 3), 90, np.uint8))
    assert angles.shape == (0,)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


@pytest.mark.parametrize("content", [None, b"not xz", lzma.compress(b"not ONNX")])
def test_an_absent_or_damaged_detector_is_said(tmp_path, monkeypatch, content):
    path = tmp_path / "detector.xz"
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(detector, "DETECTOR_FILE", path)
    detector._network.cache_clear()
    with pytest.raises(InputError, match=r"detector\.xz: .*Install the package again"):
        detector.detect_faces(np.zeros((64, 64, 3), np.uint8))
    detector._network.cache_clear()
