"""Clips for the video benchmarks: a still photograph with camera noise, and a slow pan over it."""

from pathlib import Path

import cv2
import harness  # noqa: F401 - it puts the repository on the path
import numpy as np
from matplotlib.cbook import get_sample_data

from asmnet_tf.data.geometry import read_image
from asmnet_tf.faces.video import VideoFile

FPS = 25.0
NOISE = 6.0  # standard deviation of the camera noise, of 255


def photograph() -> np.ndarray:
    """Returns matplotlib's photograph, RGB uint8 (600, 512, 3)."""
    return read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))


def still(frames: int, noise: float = NOISE, seed: int = 0) -> list[np.ndarray]:
    """Returns frames of the photograph that differ by camera noise alone."""
    rng, image = np.random.default_rng(seed), photograph().astype(np.float32)
    return [np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8) for _ in range(frames)]


def pan(frames: int, step: float) -> list[np.ndarray]:
    """Returns frames of a camera that moves to the right by `step` px a frame, so that the face moves to the left."""
    image = photograph()
    return [
        cv2.warpAffine(
            image, np.array([[1, 0, 60 - step * i], [0, 1, 0.0]]), (512, 600), borderMode=cv2.BORDER_REPLICATE
        )
        for i in range(frames)
    ]


def write(path: Path, frames: list[np.ndarray]) -> Path:
    """Writes a clip. Returns its path."""
    video = VideoFile(path, FPS)
    for frame in frames:
        video.write(frame)
    video.close()
    return path
