"""Landmarks and head pose of every face in an image, in one call (NumPy, OpenCV, LiteRT)."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from asmnet_tf.config import DEFAULT_MODEL, DETECTOR_SIZE
from asmnet_tf.data.geometry import crop_frame, crop_image, denormalise, landmark_box, read_image
from asmnet_tf.data.layouts import find_spec, spec_of
from asmnet_tf.data.pose import unit_to_angles
from asmnet_tf.data.sidecars import crop_of, find_runnable
from asmnet_tf.faces import detector
from asmnet_tf.faces.quality import Judge
from asmnet_tf.files import InputError, first_line
from asmnet_tf.formats.runners import check_process, open_model

Image = np.ndarray | str | os.PathLike | PIL.Image.Image
MAX_BATCH = 64  # faces that go through the network at once
# degrees; less than detector.UPRIGHT, for a roll that is known costs no look: NME on 51 held-out faces turned by
# 0, 10, 20, 25 degrees in a crop that is not: 3.81, 3.85, 4.01, 4.20 %
TURN_FROM = 15.0


@dataclass(frozen=True, eq=False)
class Face:
    """One face: pixels of the image it was found in (0-based, centres at integers) and degrees (signs: `pose.py`).

    box: float64 (4,), x_min, y_min, x_max, y_max, where the face was looked for. score: the detector's, 0..1; 1 for a
    box that was given. landmarks: float64 (L, 2). yaw > 0: towards the left edge of the image; pitch > 0: up;
    roll > 0: clockwise. quality: probability that the NME of the landmarks is below 8 %, 0 where the yaw is larger than
    in training; None for a model without a calibration of its own, or without a head pose (quality.py).
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray
    yaw: float
    pitch: float
    roll: float
    quality: float | None = None

    @property
    def angles(self) -> np.ndarray:
        """Yaw, pitch, roll in degrees, float64 (3,)."""
        return np.array([self.yaw, self.pitch, self.roll])

    def is_good(self, min_quality: float) -> bool:
        """Returns whether its quality is at least `min_quality`; one without a quality has 0."""
        return (self.quality or 0.0) >= min_quality

    @property
    def turned(self) -> float:
        """By how many degrees its crop is to be turned: its roll, 0 where the network takes that as it is."""
        return self.roll if abs(self.roll) > TURN_FROM else 0.0  # NaN, of a layout without a head pose: 0

    @property
    def landmark_box(self) -> np.ndarray:
        """Where to look for it in the next frame: the landmarks' box (4,), turned about its centre by `turned`."""
        return landmark_box(self.landmarks, self.turned)


class FaceAligner:
    """Finds the faces of an image and their landmarks and head pose; several threads may use one aligner.

    >>> import matplotlib.cbook
    >>> from asmnet_tf import FaceAligner
    >>> path = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    >>> aligner = FaceAligner()  # reads the network: once for many images
    >>> faces = aligner.detect(path)
    >>> len(faces), faces[0].landmarks.shape
    (1, (68, 2))
    >>> abs(faces[0].roll) < 20
    True

    Args:   model: name of a shipped model (`asmnet_tf.pretrained_names()`), or a `.tflite`, `.onnx`, `.keras`, release
            `.h5` file or SavedModel folder; the last three need TensorFlow. min_score: faces that the detector is less
            sure of are left out. detector_size: longest side, pixels, at which the detector sees the image; larger
            finds smaller faces, 256 is enough for a portrait. dataset: whose points the model finds, a name or a
            description FILE.toml; default: what its side-car says. threads: see `runners.open_model`.
    Raises: InputError for a model that cannot be used.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        min_score: float = detector.MIN_SCORE,
        detector_size: int = DETECTOR_SIZE,
        dataset: str | None = None,
        threads: int | None = None,
    ) -> None:
        path = find_runnable(model)
        self.model = open_model(path, threads)
        self.crop, self.crop_scale = crop_of(path, self.model.sidecar)
        own = "description" in self.model.sidecar or not dataset
        trained = spec_of(self.model.sidecar, self.model.num_landmarks, path) if own else None
        self.spec = find_spec(dataset) if dataset else trained
        self.place = self.spec.detector_box or (trained and trained.detector_box)
        if self.spec.num_landmarks != self.model.num_landmarks:
            told = f"{self.model.num_landmarks} landmarks, {self.spec.title} has {self.spec.num_landmarks}"
            raise InputError(f"{path}: finds {told}. Is --dataset right?")
        self.judge = Judge.of(path, self.model.sidecar, self.spec) if self.model.has_pose else None
        self.min_score, self.detector_size = min_score, detector_size
        self._running = threading.Lock()  # a TFLite interpreter must not be run by two threads

    def detect(
        self, image: Image, boxes: np.ndarray | None = None, bgr: bool = False, angles: np.ndarray | None = None
    ) -> list[Face]:
        """Returns the faces of an image, the surest first; of `boxes`, in their order.

        Args:   image: a path or PIL image, turned as its EXIF orientation says; or an array (H, W) or (H, W, 1, 3, 4),
                uint8 or uint16, RGB; alpha is ignored. boxes: (N, 4) image pixels, x_min, y_min, x_max, y_max, about
                where the landmarks are, brows to chin (`detector.to_landmark_boxes` for boxes from forehead to chin);
                None: the detector's. bgr: an array's channels are in OpenCV's order. angles: (N,) degrees clockwise by
                which the faces of `boxes` are turned, and the boxes with them about their centres; None, or NaN for one
                box: the detector looks there and says it.
        Raises: ValueError for what is no image or boxes of another shape or without extent; RuntimeError in a fork of
                a process that has opened a model of TensorFlow.
        """
        check_process()  # the detector, too, waits for ever
        image = to_rgb(image, bgr)
        if boxes is None:
            boxes, scores, angles = self.find(image)
        else:
            boxes = np.asarray(boxes, np.float64)
            boxes = boxes if boxes.size else boxes.reshape(0, 4)
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"boxes of shape {boxes.shape}, expected (N, 4): x_min, y_min, x_max, y_max")
            if not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
                raise ValueError("boxes need x_min < x_max and y_min < y_max, in pixels")
            scores = np.ones(len(boxes))
        angles = np.full(len(boxes), np.nan) if angles is None else np.asarray(angles, np.float64)
        if angles.shape != (len(boxes),) or np.isinf(angles).any():
            raise ValueError(f"angles of shape {angles.shape}, expected ({len(boxes)},): one for each box, in degrees")
        looked_at, turned = boxes.copy(), np.nan_to_num(angles)
        for i in np.flatnonzero(np.isnan(angles)):
            look = detector.look_again(image, boxes[i])
            if look is not None and look[2]:
                looked_at[i], turned[i] = detector.place_boxes(look[0][None], look[2:], self.place)[0], look[2]
        landmarks, angles, quality = self.align(image, looked_at, turned)
        quality = [None if np.isnan(each) else float(each) for each in quality]
        return list(map(Face, boxes, scores.tolist(), landmarks, *angles.T.tolist(), quality))

    def find(self, image: np.ndarray) -> detector.Found:
        """Returns boxes, scores and angles as `detector.detect_faces`, where the model's landmarks are in the face."""
        boxes, scores, angles = detector.detect_faces(image, self.min_score, self.detector_size)
        return detector.place_boxes(boxes, angles, self.place), scores, angles

    def align(self, image: np.ndarray, boxes: np.ndarray, turned: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Returns landmarks (N, L, 2), image pixels, yaw, pitch, roll (N, 3), degrees, and quality (N,), all float64.

        Args: image: RGB uint8 (H, W, 3). boxes: (N, 4), bounding boxes of landmarks, image pixels, turned about their
            centres by `turned` (N,), degrees clockwise.
        """
        turned = np.zeros(len(boxes)) if turned is None else turned
        landmarks, angles = np.empty((len(boxes), self.spec.num_landmarks, 2)), np.empty((len(boxes), 3))
        quality, size = np.full(len(boxes), np.nan), self.model.input_size
        for first in range(0, len(boxes), MAX_BATCH):
            rows = slice(first, first + MAX_BATCH)
            frames, turns = crop_frame(boxes[rows], self.crop, self.crop_scale), turned[rows]
            crops = np.stack([crop_image(image, frame, size, turn) for frame, turn in zip(frames, turns)])
            check_process()  # before the lock: in a fork, nobody gives it back
            with self._running:
                landmarks_norm, pose = (np.asarray(output, np.float64) for output in self.model.infer(crops))
            if self.judge:
                quality[rows] = self.judge(crops, landmarks_norm, unit_to_angles(pose))
            landmarks[rows], angles[rows] = denormalise(landmarks_norm, frames, turns), unit_to_angles(pose, turns)
        return landmarks, angles if self.model.has_pose else np.full_like(angles, np.nan), quality


def to_rgb(image: Image, bgr: bool = False) -> np.ndarray:
    """Returns an image as RGB uint8 (H, W, 3): see `FaceAligner.detect`."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, PIL.Image.Image):
        bgr = False
        try:
            image = PIL.ImageOps.exif_transpose(image)
            # conversion would clip what has more than 8 bits
            image = np.asarray(image if image.mode.startswith(("I", "F")) else image.convert("RGB"))
        except (OSError, SyntaxError) as error:  # the file is read only now
            raise ValueError(f"PIL image that cannot be read ({first_line(error)})") from error
    if not isinstance(image, np.ndarray):
        reason = "; cv2.imread returns None for a file that it cannot read" if image is None else ""
        raise ValueError(f"image is {type(image).__name__}{reason}; expected an array, a path or a PIL image")
    if image.ndim not in (2, 3) or min(image.shape[:2]) < 1 or image.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"image of shape {image.shape}, expected (H, W) or (H, W, 1 or 3 or 4): channels last")
    if image.dtype.newbyteorder("=") == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        advice = "Scale to 0..255 (whether 1 or 255 is white, only you know) and use .astype(np.uint8)"
        raise ValueError(f"image of {image.dtype}, expected uint8 or uint16. {advice}")
    if image.shape[2:] in ((), (1,)):
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(image[..., 2::-1] if bgr else image[..., :3])
