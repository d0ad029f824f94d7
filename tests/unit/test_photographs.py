"""Photographs as cameras and editors write them: EXIF orientation, alpha, grey, 16 bits."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from asmnet_tf.files import InputError
from asmnet_tf.geometry import image_size, read_image

# 24 x 16, four quarters: red, green / blue, white
PICTURE = np.zeros((16, 24, 3), np.uint8)
PICTURE[:8, :12], PICTURE[:8, 12:], PICTURE[8:, :12], PICTURE[8:, 12:] = (
    (200, 0, 0),
    (0, 200, 0),
    (0, 0, 200),
    (255,) * 3,
)


def with_orientation(orientation, kind="JPEG"):
    """An image file of that kind with an EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(file, kind, exif=exif, **({"quality": 100} if kind != "TIFF" else {}))
    return file.getvalue()


# what a viewer has to do with the stored pixels (EXIF 2.3, tag Orientation)
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(tmp_path, orientation, turned, kind):
    path = tmp_path / "photo.jpg"
    path.write_bytes(with_orientation(orientation, kind))
    upright = read_image(path).astype(int)
    assert upright.shape == turned.shape
    height, width = turned.shape[:2]
    for y in (2, height - 3):
        for x in (2, width - 3):
            assert np.abs(upright[y, x] - turned[y, x]).max() < 25
    assert image_size(path) == (width, height, orientation > 1)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".bmp", ".webp", ".tif", ".ppm"])
def test_an_image_is_refused_for_its_size_before_it_is_decoded(tmp_path, ending, monkeypatch):
    path = tmp_path / f"large{ending}"
    cv2.imwrite(str(path), np.zeros((30, 50, 3), np.uint8))
    assert image_size(path) == (50, 30, False)
    assert read_image(path, max_pixels=1500).shape == (30, 50, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match=rf"large\{ending}: 50 x 30 .*more than 0 million"):
        read_image(path, max_pixels=1499)


def test_the_size_of_what_is_no_image_is_unknown(tmp_path):
    for content in (b"", b"text", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM1", b"P6 x", b"II*\0"):
        (tmp_path / "a.jpg").write_bytes(content)
        assert image_size(tmp_path / "a.jpg") is None
    assert image_size(tmp_path) is image_size(tmp_path / "absent") is None


def test_alpha_grey_and_16_bits(tmp_path):
    cases = {
        "alpha": np.dstack([PICTURE[..., ::-1], np.full((16, 24), 128, np.uint8)]),
        "deep": PICTURE[..., ::-1].astype(np.uint16) * 257,
    }
    for name, pixels in cases.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), PICTURE), name
    grey = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    cv2.imwrite(str(tmp_path / "grey.png"), grey.astype(np.uint8))
    cv2.imwrite(str(tmp_path / "grey16.tif"), (grey % 256) * 257)
    for name in ("grey.png", "grey16.tif"):
        assert np.array_equal(read_image(tmp_path / name), np.dstack([grey.astype(np.uint8)] * 3)), name
