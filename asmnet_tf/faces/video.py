"""Reads the frames of videos and cameras, writes videos, shows frames in a window (NumPy and OpenCV)."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from asmnet_tf.faces.overlay import MARK
from asmnet_tf.files import InputError, utf8

CODEC = "mp4v"
FULL_BYTES = 1 << 20  # a disk with less left is full: what failed to be written was longer


def video_name(source: Path | int | str) -> str:
    """Returns what to call a video file, a camera by its number, or an address, without the password in it."""
    return f"camera {source}" if isinstance(source, int) else re.sub("(?<=://)[^/]*@", "", str(source))


def check_window() -> None:
    """Raises: InputError if OpenCV cannot open a window: without a display, that may end the process."""
    command = [sys.executable, "-c", "import cv2; cv2.namedWindow('x')"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        reason = "OpenCV opens no window here. Is there a display, and is it opencv-python, not opencv-python-headless?"
        raise InputError(f"--show: {reason}")


class Video:
    """A video file, a camera by its number, or an address, a text: yields its frames, each once.

    A frame is its pixels, RGB uint8 (H, W, 3), and the seconds since the frame before. name: what to call it. fps,
    frames: as the file tells, 30 and 0 where it does not. is_camera: or an address that has no number of frames.
    Raises: InputError if it cannot be opened.
    """

    def __init__(self, source: Path | int | str) -> None:
        self.name = video_name(source)
        _check_name(source)
        self._source = _for_ffmpeg(source) if isinstance(source, Path) else source
        self._capture = cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            reason = "not a video that OpenCV opens; it may be cut short. Give a whole file."
            if not isinstance(source, Path):
                reason = "cannot be opened. Is it there, and does no other program use it?"
            raise InputError(f"{self.name}: {reason}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 30.0
        self.frames = 0 if isinstance(source, int) else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.is_camera = not self.frames and not isinstance(source, Path)
        if isinstance(source, Path):
            self._capture.release()  # a folder may hold more videos than a process may have files open

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        if not self._capture.isOpened():
            self._capture.open(self._source)
        before = time.perf_counter()
        while (read := self._capture.read())[0]:
            now = time.perf_counter()
            dt = max(now - before, 1e-3) if self.is_camera else 1 / self.fps
            yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), dt
            before = now

    def close(self) -> None:
        """Gives the file or camera back."""
        self._capture.release()


class VideoFile:
    """Writes RGB frames of one size as a video without sound; the file is made when the first one comes."""

    def __init__(self, path: Path, fps: float) -> None:
        _check_name(path)
        self.path, self.fps, self.frames = path, fps, 0
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame (H, W, 3). Raises: OSError if OpenCV cannot write such a video."""
        if self._writer is None:
            codec = cv2.VideoWriter_fourcc(*CODEC)
            fps = round(self.fps, 3 if self.fps < 65 else 2 if self.fps < 655 else 1)  # MPEG-4 counts to 65,535
            self._writer = cv2.VideoWriter(_for_ffmpeg(self.path), codec, fps, frame.shape[1::-1])
        if not self._writer.isOpened():
            raise self._error()
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Ends the file. Raises: OSError if not all frames are in it: OpenCV does not tell when a write fails."""
        if self._writer is None or not self._writer.isOpened():
            return
        self._writer.release()
        if int(cv2.VideoCapture(_for_ffmpeg(self.path)).get(cv2.CAP_PROP_FRAME_COUNT)) != self.frames:
            raise self._error()
        with open(self.path, "ab") as file:
            file.write(MARK)

    def _error(self) -> OSError:
        if shutil.disk_usage(self.path.parent).free < FULL_BYTES:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return OSError(f"OpenCV cannot write {CODEC} video here; --no-draw does without")


def show_frame(name: str, image: np.ndarray, speed: float) -> bool:
    """Shows an RGB frame in a window, with frames/s. Returns whether neither q nor closing it has ended the video."""
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cv2.putText(image, f"{speed:.1f} frames/s", (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (120, 240, 70), 2, cv2.LINE_AA)
    cv2.imshow(name, image)
    return cv2.waitKey(1) & 255 != ord("q") and cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) >= 1


def _for_ffmpeg(path: Path) -> str:
    return os.path.join(os.curdir, path)  # `10:30.mp4` would be an address of the protocol `10`


def _check_name(path: Path | int | str) -> None:
    """Raises: InputError for a name at which OpenCV's video functions end the process."""
    if utf8(path) != str(path):
        raise InputError(f"{path}: OpenCV cannot open a video whose name is not UTF-8. Rename it.")
