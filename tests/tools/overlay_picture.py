"""Composes the photograph of `asmnet_tf/assets/overlay.jpg`: prints of faces that lie on a table at all angles.

    python tests/tools/overlay_picture.py faces.png
    python -m asmnet_tf.predict faces.png --output faces        # faces/faces_overlay.jpg is the picture

One print is matplotlib's photograph of Grace Hopper (public domain), the others are rendered faces.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from matplotlib.cbook import get_sample_data

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from asmnet_tf.data.geometry import landmark_box, read_image
from asmnet_tf.files import replacing
from asmnet_tf.synthetic.renderer import render_face

WIDTH, HEIGHT, FINER = 1000, 600, 2  # pixels; the canvas is composed at so many times the resolution
TABLE, PAPER = (52, 60, 70), (246, 244, 238)  # RGB
HOPPER = None  # in place of a person of the renderer
PRINTS = (  # person, centre x and y, side of the picture, pixels; degrees clockwise
    (27, 160, 160, 205, -62),
    (45, 140, 455, 195, 24),
    (64, 898, 468, 150, 75),
    (6, 620, 128, 165, 118),
    (HOPPER, 388, 315, 280, -10),
    (18, 645, 435, 200, 180),
    (31, 835, 285, 155, -130),
    (53, 885, 112, 160, 14),
)


def picture(person: int | None, side: int) -> np.ndarray:
    """Returns a square with one face, RGB uint8 (side, side, 3)."""
    if person is HOPPER:
        square = read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))[:400, 62:462]
    else:
        face = render_face(0, person, size=4 * side)
        low, high = np.split(landmark_box(face.landmarks_68), 2)
        around, centre = int(min(1.75 * (high - low).max(), 4 * side)), (low + high) / 2 - [0, 0.1 * (high - low).max()]
        x, y = np.clip(np.round(centre - around / 2), 0, 4 * side - around).astype(int)
        square = face.image[y : y + around, x : x + around]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def compose() -> np.ndarray:
    """Returns the canvas, RGB uint8 (HEIGHT, WIDTH, 3)."""
    size = (WIDTH * FINER, HEIGHT * FINER)
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    canvas = (1.15 - 0.3 * (x**2 + y**2))[..., None] * np.array(TABLE, np.float64)  # light from above the middle
    for person, *centre, side, angle in PRINTS:
        side, border, below = side * FINER, side * FINER // 18, side * FINER // 6
        paper = np.full((side + border + below, side + 2 * border, 3), PAPER, np.uint8)
        paper[border : border + side, border : border + side] = picture(person, side)
        matrix = cv2.getRotationMatrix2D(((paper.shape[1] - 1) / 2, border + (side - 1) / 2), -angle, 1.0)
        matrix[:, 2] += np.array(centre) * FINER - [(paper.shape[1] - 1) / 2, border + (side - 1) / 2]
        covered = cv2.warpAffine(np.ones(paper.shape[:2], np.float32), matrix, size, flags=cv2.INTER_LINEAR)
        below_right = np.array([[1, 0, 3.0 * FINER], [0, 1, 5.0 * FINER]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(covered, below_right, size), (0, 0), 6.0 * FINER)
        canvas *= 1 - 0.6 * shadow[..., None]
        layer = cv2.warpAffine(paper, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        canvas += covered[..., None] * (layer - canvas)
    fine = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
    return cv2.resize(fine, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)


def main(path: Path) -> None:
    """Writes the canvas as PNG."""
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(compose(), cv2.COLOR_RGB2BGR))[1].tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
