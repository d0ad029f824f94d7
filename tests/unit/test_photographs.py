"""Photographs as cameras and editors write them: EXIF orientation, alpha, grey, 16 bits."""

import struct

import cv2
import numpy as np
import pytest

from asmnet_tf.geometry import read_image

# 24 x 16, four quarters: red, green / blue, white
PICTURE = np.zeros((16, 24, 3), np.uint8)
PICTURE[:8, :12], PICTURE[:8, 12:], PICTURE[8:, :12], PICTURE[8:, 12:] = (
    (200, 0, 0),
    (0, 200, 0),
    (0, 0, 200),
    (255,) * 3,
)


def jpeg_with_orientation(orientation):
    """A JPEG file with an EXIF segment of one entry: tag 0x0112, SHORT."""
    data = cv2.imencode(".jpg", PICTURE[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


# what a viewer has to do with the stored pixels (EXIF 2.3, tag Orientation)
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE)),
    ],
)
def test_exif_orientation(tmp_path, orientation, turned):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg_with_orientation(orientation))
    upright = read_image(path, upright=True).astype(int)
    assert upright.shape == turned.shape
    height, width = turned.shape[:2]
    for y in (2, height - 3):
        for x in (2, width - 3):
            assert np.abs(upright[y, x] - turned[y, x]).max() < 25
    assert read_image(path).shape == PICTURE.shape  # annotations refer to stored pixels


def test_alpha_grey_and_16_bits(tmp_path):
    cases = {
        "alpha": np.dstack([PICTURE[..., ::-1], np.full((16, 24), 128, np.uint8)]),
        "deep": PICTURE[..., ::-1].astype(np.uint16) * 257,
    }
    for name, pixels in cases.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        assert np.array_equal(read_image(tmp_path / f"{name}.png", upright=True), PICTURE), name
    grey = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    cv2.imwrite(str(tmp_path / "grey.png"), grey.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "grey16.tif"), (grey % 256) * 257)
    for name in ("grey.png", "grey16.tif"):
        assert np.array_equal(read_image(tmp_path / name, upright=True), np.dstack([grey.astype(np.uint8)] * 3)), name
