"""Finds faces in an image: CenterFace (Xu et al. 2019, arXiv:1911.03599) through OpenCV, offline (NumPy and OpenCV).

The detector's box reaches over the forehead; landmark networks were trained on crops made from landmark boxes. One
fixed map, fitted on training faces, brings a box to where the landmark box would be.

Turned faces. The five points that come with a box (eyes, nose, mouth corners) give the angle of an upright face to 2
degrees, but often fit no face where it lies or stands on its head. Then, or where the score is low, the face is looked
at again in eight turns, each 45 degrees further, and the view counts in which score and points are best.
"""

import functools
import lzma
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from asmnet_tf.config import DETECTOR_SCALE, DETECTOR_SHIFT, DETECTOR_SIZE
from asmnet_tf.data.geometry import crop_image, crop_to_image, rotation, transform
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.pose import signed
from asmnet_tf.data.readers import Sample
from asmnet_tf.files import refusing

DETECTOR_FILE = Path(__file__).parents[1] / "assets" / "centerface.onnx.xz"
MIN_SCORE = 0.5
COARSE_SIZE = 256  # longest side of the first pass; it sees large faces best
FINE_MIN_SIZE = 384  # a second pass at less would see little that the first did not
FINE_MAX_FACE = 160  # pixels: the second pass is for smaller faces and is not asked about larger ones
MAX_OVERLAP = 0.3  # IoU of two boxes that are still two faces
# chosen on 300W training faces, upright and turned: tests/benchmarks/rotated_faces.py
MIN_HINT = 0.2  # score from which on it is worth to look again: of turned faces one in five has less than 0.5
SURE = 0.75  # upright faces have more
MAX_MISFIT = 0.25  # of the five points of an upright face, see `five_point_angles`
UPRIGHT = 25.0  # degrees to either side that the landmark network is used to
LOOK_SIZE, LOOK_SCALE, LOOK_TURNS = 96, 1.8, range(0, 360, 45)  # pixels, sides of the box, degrees
SURE_LOOK = 0.55  # score less misfit, of a look that is not turned: 68 upright faces have 0.60 or more
LOOK_MIN_SCORE = 0.65  # of a second look, where the first one saw no face
PLACE_FACES, PLACE_LEAST = 60, 5  # training faces that tell where the landmarks of a layout lie
_STRIDE = 4  # input pixels per cell of the output maps
_PADDING = 32  # both sides of the input are multiples of it
_OUTPUTS = ("537", "538", "539", "540")  # heat map of face centres, log of sides, offsets of centres, five landmarks
# eyes, nose, mouth corners as it sees them on the average upright face of 300W
FIVE_POINTS = np.array([[-0.358, -0.368], [0.364, -0.375], [-0.005, 0.036], [-0.302, 0.357], [0.3, 0.349]])
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes, scores, and angles or five points
_running = threading.Lock()  # a cv2.dnn network holds its input and must not be run by two threads


def detect_faces(image: np.ndarray, min_score: float = MIN_SCORE, size: int = DETECTOR_SIZE) -> Found:
    """Finds all faces of an image, turned by any angle; a box stands where that of an upright face's landmarks would.

    The image is seen at 256 px and, where it has 384 px or more, again at up to `size`: faces down to about 10 px of
    that second view are found. Where none is found, once more turned by 90 degrees.

    Args:    image: RGB uint8 (H, W, 3), any size. size: longest side of the detector's larger view; 256: one view.
    Returns: boxes float64 (N, 4), x_min, y_min, x_max, y_max, squares, image pixels, they may reach out of the image;
             scores float64 (N,) in [0, 1]; best first; angles float64 (N,) by which a face is turned, degrees
             clockwise, 0 up to 25 to either side. A turned face is in its box turned about the centre.
    Raises:  InputError if the detector's file is absent or damaged.
    """
    found = _find_turned(image, min_score, size)
    if not len(found[0]):
        boxes, scores, angles = _find_turned(np.rot90(image), min_score, size)
        far = image.shape[1] - 1  # (x, y) of the image is (y, far - x) of the turned one
        boxes = np.stack([far - boxes[:, 3], boxes[:, 0], far - boxes[:, 1], boxes[:, 2]], axis=1)
        found = boxes, scores, signed(angles + 90.0)
    return found


def _find_turned(image: np.ndarray, min_score: float, size: int) -> Found:
    seen, scores, points = find_boxes(image, min(min_score, MIN_HINT), size)
    boxes, (angles, misfits) = to_landmark_boxes(seen), five_point_angles(points)
    doubted = ~((scores >= SURE) & (misfits < MAX_MISFIT) & (np.abs(angles) <= UPRIGHT))
    angles[:] = 0.0
    for i in np.flatnonzero(doubted):
        look = look_again(image, seen[i])
        if look is not None and look[2] and max(scores[i] - min_score, look[1] - LOOK_MIN_SCORE) >= 0:
            boxes[i], scores[i], angles[i] = look
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):  # another look may end at a face that is known
        if scores[i] >= min_score and not (doubted[i] and (overlaps(boxes[[i]], boxes[kept]) > MAX_OVERLAP).any()):
            kept.append(i)
    return boxes[kept], scores[kept], angles[kept]


def look_again(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """Looks for a face of any angle where a box (4,) is. Returns box, score and angle as `detect_faces`, or None."""
    centre, side = (box[:2] + box[2:]) / 2, np.sqrt((box[2:] - box[:2]).prod())
    frame = np.append(centre, np.repeat(LOOK_SCALE * side, 2))
    best, found = -np.inf, None
    for turn in LOOK_TURNS:
        boxes, scores, points = _forward(crop_image(image, frame, LOOK_SIZE, turn), MIN_HINT)
        tilts, misfits = five_point_angles(points)
        away = np.abs(boxes[:, :2] + boxes[:, 2:] - LOOK_SIZE).max(axis=1, initial=0.0) / 2
        ranks = np.where(away < LOOK_SIZE / LOOK_SCALE / 2, scores - misfits, -np.inf)
        if ranks.max(initial=-np.inf) > best:
            i = ranks.argmax()
            best, square = ranks[i], to_landmark_boxes(boxes[i : i + 1])[0] - 0.5
            middle = transform(crop_to_image(frame, LOOK_SIZE, turn), (square[:2] + square[2:]) / 2)
            half = (square[2:] - square[:2]) / 2 * frame[2:] / LOOK_SIZE
            angle = signed(turn + tilts[i])
            found = np.concatenate([middle - half, middle + half]), scores[i], angle if abs(angle) > UPRIGHT else 0.0
            if turn == 0 and best >= SURE_LOOK and not found[2]:
                break
    return found


def five_point_angles(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns by how many degrees clockwise five points (N, 5, 2) are turned, and how badly they fit an upright face.

    By the similarity that brings the mean of upright faces to them; misfit: the share of their extent that it leaves.
    """
    centred = points - points.mean(axis=1, keepdims=True)
    theirs, ours = (p[..., 0] + 1j * p[..., 1] for p in (centred, FIVE_POINTS - FIVE_POINTS.mean(axis=0)))
    factor = theirs @ ours.conj() / np.linalg.norm(ours) ** 2
    left, extent = (np.linalg.norm(p, axis=1) for p in (theirs - factor[:, None] * ours, theirs))
    return np.angle(factor, deg=True), left / np.maximum(extent, 1e-6)


def find_boxes(image: np.ndarray, min_score: float = MIN_SCORE, size: int = DETECTOR_SIZE) -> Found:
    """Returns the detector's own boxes (N, 4), forehead to chin, their scores, and five points of each (N, 5, 2)."""
    found = _pass(image, COARSE_SIZE, min_score)
    longest = max(image.shape[:2])
    size = min(size, longest)
    if size >= FINE_MIN_SIZE:
        fine = _pass(image, size, min_score)
        small = (fine[0][:, 2:] - fine[0][:, :2]).max(axis=1) * size / longest <= FINE_MAX_FACE
        found = tuple(np.concatenate([coarse, more[small]]) for coarse, more in zip(found, fine))
    boxes, scores, _ = found
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    keep = np.asarray(cv2.dnn.NMSBoxes(corner_and_size.tolist(), scores.tolist(), min_score, MAX_OVERLAP), int)
    return tuple(values[keep] for values in found)


def to_landmark_boxes(
    boxes: np.ndarray, scale: float = DETECTOR_SCALE, shift: np.ndarray | tuple[float, float] = DETECTOR_SHIFT
) -> np.ndarray:
    """Moves and shrinks the detector's boxes (N, 4) to squares whose side is the longer one of the landmark box.

    With side d = sqrt(width height): the square has the side `scale` d and its centre moves by `shift` (2,) d.
    """
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1, keepdims=True))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + np.asarray(shift) * side
    half = scale * side / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def place_boxes(boxes: np.ndarray, angles: np.ndarray, place: tuple[float, float, float] | None) -> np.ndarray:
    """Moves boxes (N, 4) of `detect_faces`, turned by angles (N,), to where the `detector_box` of a layout says."""
    return boxes if place is None else to_landmark_boxes(boxes, place[0], rotation(angles) @ place[1:])


def with_detector_box(spec: DatasetSpec, samples: Sequence[Sample]) -> DatasetSpec:
    """Returns a layout of the user's own with its `detector_box`, so that faces are cropped as in training.

    That is measured on the upright faces among up to PLACE_FACES samples, and stays open if too few are seen. The box
    counts that holds the centre of the landmarks' box and lies best about it; the places' median is taken.
    """
    if spec.is_known or spec.detector_box is not None:
        return spec
    places = []
    for sample in samples[:: max(1, len(samples) // PLACE_FACES)][:PLACE_FACES]:
        boxes, _, angles = detect_faces(sample.read_image())
        own = sample.bbox.astype(np.float64)
        side, away = boxes[:, 2] - boxes[:, 0], (own[:2] + own[2:] - boxes[:, :2] - boxes[:, 2:]) / 2
        fits = (np.abs(away) < side[:, None] / 2).all(axis=1) & (angles == 0)
        if fits.any():
            i = np.where(fits, overlaps(own[None], boxes)[0], -1.0).argmax()
            places.append([(own[2:] - own[:2]).max() / side[i], *(away[i] / side[i])])
    if len(places) < PLACE_LEAST:
        print("landmarks in the face detector's box: unknown, it sees too few of these faces")
        return spec
    place = tuple(np.median(places, axis=0).round(3).tolist())
    print("landmarks in the face detector's box:", place)
    return replace(spec, detector_box=place, description=spec.description | {"detector_box": list(place)})


def overlaps(boxes: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the IoU, intersection over union, of each of N boxes (4,) with each of M other ones, as (N, M)."""
    boxes, others = np.reshape(boxes, (-1, 1, 4)), np.reshape(others, (1, -1, 4))
    common = np.concatenate([np.maximum(boxes, others)[..., :2], np.minimum(boxes, others)[..., 2:]], axis=-1)
    own, theirs, shared = (np.clip(b[..., 2:] - b[..., :2], 0, None).prod(axis=-1) for b in (boxes, others, common))
    return shared / np.maximum(own + theirs - shared, 1e-12)


@functools.cache
def _network() -> cv2.dnn.Net:
    broken = (OSError, lzma.LZMAError, EOFError, cv2.error)
    advice = "Install the package again, or give boxes of your own."
    with refusing(f"{DETECTOR_FILE}: no readable face detector", broken, advice):
        return cv2.dnn.readNetFromONNX(np.frombuffer(lzma.decompress(DETECTOR_FILE.read_bytes()), np.uint8))


def _pass(image: np.ndarray, size: int, min_score: float) -> Found:
    """Runs the network on the image at longest side `size`; returns what `_forward` does, in image pixels."""
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    small = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    pixels = cv2.resize(image, small, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR)
    boxes, scores, points = _forward(pixels, min_score)
    to_image = np.array([width / small[0], height / small[1]])
    return boxes * np.tile(to_image, 2) - 0.5, scores, points * to_image - 0.5  # pixel centres are integers


def _forward(pixels: np.ndarray, min_score: float) -> Found:
    """Runs the network. Returns boxes (n, 4), scores (n,), five points of each (n, 5, 2); 0 is the edge of `pixels`."""
    right, bottom = (-side % _PADDING for side in pixels.shape[1::-1])
    pixels = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    with _running:
        network = _network()
        network.setInput(cv2.dnn.blobFromImage(pixels))
        heat, log_side, offset, five = network.forward(_OUTPUTS)
    rows, columns = np.nonzero(heat[0, 0] >= min_score)
    cells = np.stack([rows, columns]) + offset[0][:, rows, columns] + 0.5
    centre = _STRIDE * cells[::-1].T  # all maps have y first
    half = _STRIDE / 2 * np.exp(log_side[0][:, rows, columns])[::-1].T
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float64)
    points = (centre - half)[:, None] + 2 * half[:, None] * five[0][:, rows, columns].T.reshape(-1, 5, 2)[..., ::-1]
    return boxes, heat[0, 0][rows, columns].astype(np.float64), points
