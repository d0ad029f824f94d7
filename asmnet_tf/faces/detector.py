"""Finds faces in an image: CenterFace (Xu et al. 2019, arXiv:1911.03599) through OpenCV, offline (NumPy and OpenCV).

The detector's box reaches over the forehead; landmark networks were trained on crops made from landmark boxes. One
fixed map, fitted on training faces, brings a box to where the landmark box would be.
"""

from __future__ import annotations

import functools
import lzma
import threading
from pathlib import Path

import cv2
import numpy as np

from asmnet_tf.config import DETECTOR_SCALE, DETECTOR_SHIFT, DETECTOR_SIZE
from asmnet_tf.files import InputError, first_line

DETECTOR_FILE = Path(__file__).parents[1] / "assets" / "centerface.onnx.xz"
MIN_SCORE = 0.5
COARSE_SIZE = 256  # longest side of the first pass; it sees large faces best
FINE_MIN_SIZE = 384  # a second pass at less would see little that the first did not
FINE_MAX_FACE = 160  # pixels: the second pass is for smaller faces and is not asked about larger ones
MAX_OVERLAP = 0.3  # IoU of two boxes that are still two faces
_STRIDE = 4  # input pixels per cell of the output maps
_PADDING = 32  # both sides of the input are multiples of it
_OUTPUTS = ("537", "538", "539", "540")  # heat map of face centres, log of sides, offsets of centres, five landmarks
_running = threading.Lock()  # a cv2.dnn network holds its input and must not be run by two threads


def detect_faces(
    image: np.ndarray, min_score: float = MIN_SCORE, size: int = DETECTOR_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Finds all faces of an image; what it returns stands where the bounding box of the landmarks would.

    The image is seen at 256 px and, where it has 384 px or more, again at up to `size`: faces down to about 10 px of
    that second view are found.

    Args:    image: RGB uint8 (H, W, 3), any size. size: longest side of the detector's larger view; 256: one view.
    Returns: boxes float64 (N, 4), x_min, y_min, x_max, y_max, squares, image pixels, they may reach out of the image;
             scores float64 (N,) in [0, 1]; best first.
    Raises:  InputError if the detector's file is absent or damaged.
    """
    boxes, scores = find_boxes(image, min_score, size)
    return to_landmark_boxes(boxes), scores


def find_boxes(
    image: np.ndarray, min_score: float = MIN_SCORE, size: int = DETECTOR_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """`detect_faces` with the detector's own boxes, forehead to chin."""
    boxes, scores = _pass(image, COARSE_SIZE, min_score)
    longest = max(image.shape[:2])
    size = min(size, longest)
    if size >= FINE_MIN_SIZE:
        fine, fine_scores = _pass(image, size, min_score)
        small = (fine[:, 2:] - fine[:, :2]).max(axis=1) * size / longest <= FINE_MAX_FACE
        boxes, scores = np.concatenate([boxes, fine[small]]), np.concatenate([scores, fine_scores[small]])
    if not len(boxes):
        return boxes, scores
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    keep = np.asarray(cv2.dnn.NMSBoxes(corner_and_size.tolist(), scores.tolist(), min_score, MAX_OVERLAP), int)
    return boxes[keep], scores[keep]


def to_landmark_boxes(
    boxes: np.ndarray, scale: float = DETECTOR_SCALE, shift: tuple[float, float] = DETECTOR_SHIFT
) -> np.ndarray:
    """Moves and shrinks the detector's boxes (N, 4) to squares whose side is the longer one of the landmark box.

    With side d = sqrt(width height): the square has the side `scale` d and its centre moves by `shift` d.
    """
    extent = boxes[:, 2:] - boxes[:, :2]
    side = np.sqrt(extent.prod(axis=1, keepdims=True))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + np.asarray(shift) * side
    half = scale * side / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the IoU, intersection over union, of every box (N, 4) with every other one (M, 4), as (N, M)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas, other_areas = (np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=-1) for b in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas[None] - shared, 1e-12)


@functools.cache
def _network() -> cv2.dnn.Net:
    try:
        return cv2.dnn.readNetFromONNX(np.frombuffer(lzma.decompress(DETECTOR_FILE.read_bytes()), np.uint8))
    except (OSError, lzma.LZMAError, EOFError, cv2.error) as error:
        advice = "Install the package again, or give boxes of your own."
        raise InputError(f"{DETECTOR_FILE}: no readable face detector ({first_line(error)}). {advice}") from error


def _pass(image: np.ndarray, size: int, min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Runs the network on the image at longest side `size`. Returns boxes (n, 4), image pixels, and scores (n,)."""
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    small = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    pixels = cv2.resize(image, small, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    right, bottom = (-side % _PADDING for side in small)
    pixels = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    with _running:
        network = _network()
        network.setInput(cv2.dnn.blobFromImage(pixels))
        heat, log_side, offset, _ = network.forward(_OUTPUTS)
    rows, columns = np.nonzero(heat[0, 0] >= min_score)
    cells = np.stack([rows, columns]) + offset[0][:, rows, columns] + 0.5
    centre = _STRIDE * cells[::-1].T  # both maps have y first
    half = _STRIDE / 2 * np.exp(log_side[0][:, rows, columns])[::-1].T
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float64)
    to_image = [width / small[0], height / small[1]] * 2
    return boxes * to_image - 0.5, heat[0, 0][rows, columns].astype(np.float64)  # pixel centres are integers
