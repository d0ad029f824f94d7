"""Draws faces into an image: points, contours, the head's axes; thin enough to see the face (NumPy and OpenCV)."""

import contextlib
from pathlib import Path

import cv2
import numpy as np

from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.pose import angles_to_matrix
from asmnet_tf.faces.aligner import Face
from asmnet_tf.files import InputError, replacing

CONTOUR, POINT = (255, 210, 60), (70, 240, 120)  # RGB
# ends every picture and video we draw, so that it is not taken for a photograph: to an mp4 a box without meaning, to a
# JPEG bytes after its end
MARK = (32).to_bytes(4, "big") + b"free" + b"drawn by asmnet_tf".ljust(24)
_SUBPIXEL = 4  # bits: OpenCV draws at 1/16 pixel


def draw_faces(image: np.ndarray, faces: list[Face], spec: DatasetSpec) -> np.ndarray:
    """Returns a copy of an RGB uint8 image (H, W, 3) with `faces` drawn; line widths follow the size of each face."""
    image = image.copy()
    nose = {theirs: ours for ours, theirs in spec.rigid_points}.get(30)  # of the 68: its tip
    for face in faces:
        side = float(np.ptp(face.landmark_box.reshape(2, 2), axis=0).max())
        points = np.round(face.landmarks * 2**_SUBPIXEL).astype(np.int32)
        thickness = max(1, round(side / 300))
        for indices, closed in spec.contours:
            cv2.polylines(image, [points[list(indices)]], closed, CONTOUR, thickness, cv2.LINE_AA, _SUBPIXEL)
        if side >= 60:  # on a smaller face the contours alone already cover it
            radius = max(1.0, side / 160)
            for point in points.tolist():
                cv2.circle(image, point, round(radius * 2**_SUBPIXEL), POINT, -1, cv2.LINE_AA, _SUBPIXEL)
        if np.isfinite(face.angles).all():
            centre = face.landmarks.mean(axis=0) if nose is None else face.landmarks[nose]
            draw_axes(image, face.angles, centre, 0.45 * side)
    return image


def draw_axes(image: np.ndarray, angles_deg: np.ndarray, centre: np.ndarray, length: float) -> None:
    """Draws the head's axes on an RGB uint8 image, in place: red to its left ear, green down, blue out of the face.

    Args: angles_deg: (3,) yaw, pitch, roll. centre: (2,) image pixels. length: of each axis, pixels.
    """
    tips = angles_to_matrix(angles_deg)[:2] * [1.0, 1.0, -1.0] * length  # columns: right, down, towards the camera
    start, *ends = np.round([centre, *(centre + tips.T)]).astype(int).tolist()
    thickness = max(1, round(length**0.5 / 3))  # seen on a small face, not a bar on a large one
    for end, colour in zip(ends, ((230, 60, 50), (60, 180, 75), (40, 90, 230))):
        cv2.line(image, start, end, colour, thickness, cv2.LINE_AA)


def is_overlay(path: Path) -> bool:
    """Returns whether a file is a picture or video that `predict` drew, whatever it is called now."""
    with contextlib.suppress(OSError), open(path, "rb") as file:  # shorter, or not to be read: its next user says why
        file.seek(-len(MARK), 2)
        return file.read() == MARK
    return False


def write_overlay(path: Path, image: np.ndarray, faces: list[Face], spec: DatasetSpec) -> None:
    """Writes the image with its faces drawn as JPEG; see `draw_faces`. Raises: InputError."""
    drawn = cv2.cvtColor(draw_faces(image, faces, spec), cv2.COLOR_RGB2BGR)
    whole, encoded = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not whole:
        raise InputError(f"{path}: a JPEG cannot have {drawn.shape[1]} x {drawn.shape[0]} pixels. Use --no-draw.")
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes() + MARK)
