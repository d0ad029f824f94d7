"""Random changes of a training face: image, landmarks and pose move together (NumPy and OpenCV only).

Geometry is one affine map in network units of the crop frame, applied to the image by a single warp and, in the loss,
to the landmarks and to their ASM-smoothed version alike (the eigen-shapes describe upright faces, so smoothing comes
first).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from asmnet_tf.config import Augmentation
from asmnet_tf.data.geometry import Patch, compose, crop_to_image, invert, rotation, warp_patch

_NOISE = np.random.default_rng(20210303).standard_normal(1 << 20).astype(np.float32)


@dataclass(frozen=True)
class Motion:
    """One drawn change of geometry: flip first, then rotation, scale, shift and the margins of the tight crop."""

    affine: np.ndarray  # (2, 3), network units of the crop frame -> of the augmented crop; holds the flip's x -> -x
    flip: bool  # whether the face is mirrored, so that landmarks change places
    rotation_deg: float  # clockwise, added to roll

    def move_pose(self, pose_deg: np.ndarray) -> np.ndarray:
        """yaw, pitch, roll (3,) of the moved face: a mirror negates yaw and roll, a turn in the plane adds to roll."""
        yaw, pitch, roll = np.asarray(pose_deg) * ([-1.0, 1.0, -1.0] if self.flip else 1.0)
        return np.array([yaw, pitch, (roll + self.rotation_deg + 180.0) % 360.0 - 180.0])


def motion(
    frame: np.ndarray,
    flip: bool = False,
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    margins_px: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
) -> Motion:
    """Returns the motion of a face in crop frame (4,).

    Rotation happens in image pixels, so a tight crop of a turned face keeps the frame's own aspect ratio.

    Args: scale: the face becomes this much smaller in the crop. shift: of the face, in sides of the crop.
        margins_px: how far the left, top, right and bottom side of the crop move outwards, source pixels.
    """
    extent = frame[2:]
    mirror = np.diag([-1.0 if flip else 1.0, 1.0])
    linear = (rotation(rotation_deg) @ mirror) * extent[None, :] / extent[:, None] / scale
    affine = np.concatenate([linear, np.array(shift, float)[:, None]], axis=1)
    low, high = np.array(margins_px[:2]), np.array(margins_px[2:])
    wider = (extent + low + high) / extent
    widen = np.concatenate([np.diag(1 / wider), ((low - high) / 2 / extent / wider)[:, None]], axis=1)
    return Motion(compose(widen, affine), flip, rotation_deg)


def draw_motion(augmentation: Augmentation, frame: np.ndarray, rng: np.random.Generator) -> Motion:
    """Draws a motion. The number of draws does not depend on the ranges, so recipes stay comparable by seed."""
    u = rng.random(9)
    a = augmentation
    return motion(
        frame,
        flip=bool(u[0] < a.flip),
        rotation_deg=(2 * u[1] - 1) * a.rotation_deg,
        scale=1.0 + (2 * u[2] - 1) * a.scale,
        shift=((2 * u[3] - 1) * a.shift, (2 * u[4] - 1) * a.shift),
        margins_px=tuple(u[5:9] * a.margin_px),
    )


def render(patch: Patch, frame: np.ndarray, moved: Motion, size: int) -> np.ndarray:
    """Returns the network input of one moved face, RGB uint8 (size, size, 3)."""
    to_crop = np.array([[size, 0.0, (size - 1) / 2], [0.0, size, (size - 1) / 2]])
    to_moved = compose(to_crop, compose(invert(moved.affine), invert(to_crop)))
    return warp_patch(patch, compose(crop_to_image(frame, size), to_moved), size)


def change_pixels(image: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Changes contrast, brightness, colour, sharpness, noise and visibility of an RGB uint8 image; returns uint8."""
    a, size = augmentation, image.shape[0]
    u = rng.random(8)
    gain = (1 + (2 * u[0] - 1) * a.contrast) * (1 + (2 * rng.random(3) - 1) * a.colour)
    offset = 127.5 + (2 * u[1] - 1) * a.brightness * 255 - 127.5 * gain
    noise, start = u[2] * a.noise * 255, float(rng.random())
    corner, extent = rng.random(2), 0.1 + 0.3 * rng.random(2)
    if u[3] < a.occlusion:
        low = np.round((corner * (1 + extent) - extent) * size).astype(int)  # may lie partly outside
        high = low + np.round(extent * size).astype(int)
        left, top = np.maximum(low, 0)
        image[top : high[1], left : high[0]] = np.round(255 * u[4:7])
    if u[7] < a.blur:
        image = cv2.blur(image, (3, 3))
    if not (a.contrast or a.brightness or a.colour or noise):
        return image
    levels = np.arange(256, dtype=np.float32)[:, None] * gain + offset
    changed = cv2.LUT(image, levels.astype(np.float32).reshape(256, 1, 3))
    first = int(start * max(0, len(_NOISE) - changed.size))
    values = np.resize(_NOISE[first : first + changed.size], changed.shape)  # repeated for inputs beyond 590 pixels
    return cv2.addWeighted(changed, 1.0, values, noise, 0.0, dtype=cv2.CV_8U)  # rounds and saturates
