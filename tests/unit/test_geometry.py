"""Crops and coordinates, against numbers worked out by hand."""

import cv2
import numpy as np
import pytest

from asmnet_tf.data import geometry
from asmnet_tf.files import InputError


def test_square_crop_frame_is_centred_on_the_box_and_scaled_from_its_longer_side():
    frame = geometry.crop_frame(np.array([10.0, 20.0, 50.0, 120.0]), "square")
    assert frame == pytest.approx([30.0, 70.0, 120.0, 120.0])


def test_tight_crop_frame_is_the_box():
    assert geometry.crop_frame(np.array([10.0, 20.0, 50.0, 120.0]), "tight") == pytest.approx([30.0, 70.0, 40.0, 100.0])


def test_unknown_crop_is_refused():
    with pytest.raises(ValueError, match="'round'"):
        geometry.crop_frame(np.zeros(4), "round")


def test_normalised_corners_of_the_crop_are_half():
    frame = np.array([30.0, 70.0, 40.0, 100.0])
    corners = np.array([[10.0, 20.0], [50.0, 120.0], [30.0, 70.0]])
    assert geometry.normalise(corners, frame) == pytest.approx([-0.5, -0.5, 0.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("crop", ["square", "tight"])
def test_normalise_and_denormalise_are_inverse(crop):
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 300, (5, 68, 2))
    frames = geometry.crop_frame(geometry.landmark_box(landmarks), crop)
    assert geometry.denormalise(geometry.normalise(landmarks, frames), frames) == pytest.approx(landmarks)


def test_the_box_of_a_turned_face_is_the_upright_one_turned_about_its_centre():
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 300, (5, 68, 2)) * [1, 0.6]
    upright = geometry.landmark_box(landmarks)
    for angle in (-135.0, 30.0, 45.0, 180.0):
        turn, about = geometry.rotation(angle), np.array([7.0, -20.0])
        boxes = geometry.landmark_box((landmarks - about) @ turn.T + about, angle)
        assert boxes[:, 2:] - boxes[:, :2] == pytest.approx(upright[:, 2:] - upright[:, :2])
        centres = (upright[:, :2] + upright[:, 2:]) / 2
        assert (boxes[:, :2] + boxes[:, 2:]) / 2 == pytest.approx((centres - about) @ turn.T + about)


def test_network_units_of_a_crop_pixel():
    """(q - (S - 1) / 2) / S: the pixel of the crop and the image point it came from agree in network units."""
    frame, size = np.array([40.0, 60.0, 80.0, 50.0]), 112
    q = np.array([[-0.5, -0.5], [111.5, 111.5], [55.5, 55.5], [3.0, 100.0]])
    in_image = geometry.transform(geometry.crop_to_image(frame, size), q)
    assert geometry.normalise(in_image, frame).reshape(-1, 2) == pytest.approx((q - 55.5) / 112)


def test_affine_maps_compose_and_invert():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 2, 3))
    points = rng.normal(size=(7, 2))
    assert geometry.transform(geometry.compose(a, b), points) == pytest.approx(
        geometry.transform(a, geometry.transform(b, points))
    )
    assert geometry.transform(geometry.invert(a), geometry.transform(a, points)) == pytest.approx(points)


def test_mirror_image_is_exactly_minus_x():
    """The crop of a mirrored image is the mirrored crop, pixel by pixel, and its shape is x -> -x."""
    rng = np.random.default_rng(2)
    image = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 2)
    frame = np.array([50.0, 40.0, 56.0, 56.0])
    mirrored_frame = np.array([119.0 - 50.0, 40.0, 56.0, 56.0])
    crop = geometry.crop_image(image, frame, 56)
    mirrored = geometry.crop_image(np.ascontiguousarray(image[:, ::-1]), mirrored_frame, 56)
    assert np.array_equal(crop[:, ::-1], mirrored)

    landmarks = rng.uniform(20, 80, (4, 2))
    order = [1, 0, 2, 3]
    there = geometry.normalise((landmarks * [-1, 1] + [119, 0])[order], mirrored_frame)
    assert geometry.flip_landmarks(geometry.normalise(landmarks, frame), order) == pytest.approx(there)


def test_crop_shows_the_point_where_the_formula_says():
    """A single bright pixel lands where `crop_to_image` maps it back from, at the same scale and when shrinking."""
    for step in (1, 4):
        image = np.zeros((400, 400, 3), np.uint8)
        image[200 - step : 200 + step, 120 - step : 120 + step] = 255  # centre of mass (119.5, 199.5)
        frame = np.array([160.0, 180.0, 100.0 * step, 100.0 * step])
        crop = geometry.crop_image(image, frame, 100)[..., 0].astype(float)
        y, x = np.mgrid[:100, :100]
        centre = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
        expected = geometry.transform(geometry.invert(geometry.crop_to_image(frame, 100)), np.array([119.5, 199.5]))
        assert centre == pytest.approx(expected, abs=0.1)


def test_shrinking_averages_instead_of_aliasing():
    """Stripes one pixel wide, shrunk by 4: grey everywhere, where plain bilinear sampling would keep stripes."""
    image = np.zeros((400, 400, 3), np.uint8)
    image[:, ::2] = 255
    crop = geometry.crop_image(image, np.array([199.5, 199.5, 300.0, 300.0]), 75)
    assert crop.min() > 100
    assert crop.max() < 155


def test_crop_beyond_the_image_is_black_there():
    crop = geometry.crop_image(np.full((50, 50, 3), 200, np.uint8), np.array([0.0, 25.0, 40.0, 40.0]), 40)
    assert (crop[:, :18] == 0).all()
    assert (crop[:, 22:] == 200).all()


def test_an_unreadable_image_is_named(tmp_path):
    path = tmp_path / "face.jpg"
    path.write_text("no image")
    with pytest.raises(InputError, match=r"face\.jpg: 8 bytes that do not decode"):
        geometry.read_image(path)
    with pytest.raises(InputError, match=r"none\.jpg: image cannot be read"):
        geometry.read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("side", [338, 1100], ids=["in float32", "in uint8"])
def test_shrinking_is_area_averaging(side):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    expected = cv2.resize(image, (280, 281), interpolation=cv2.INTER_AREA)
    assert np.abs(geometry.shrink(image, 280, 281).astype(int) - expected).max() <= 1  # rounding differs
