"""The images and videos that a user gives: which there are, the faces of each, what is missing and why."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from tqdm import tqdm

from asmnet_tf.config import FACE_FORMATS, PHOTO_ENDINGS, VIDEO_ENDINGS
from asmnet_tf.data.geometry import read_image
from asmnet_tf.faces.face_files import BoxRow, Result, boxes_inside, write_results
from asmnet_tf.faces.overlay import is_overlay, write_overlay
from asmnet_tf.faces.tracking import FaceTracker
from asmnet_tf.faces.video import Frame, Video, follow_video
from asmnet_tf.files import InputError, printable

if TYPE_CHECKING:
    from asmnet_tf.faces.aligner import Face, FaceAligner

LINES = 10  # up to so many images are told one by one
OTHER_ENDINGS = (  # of pictures and videos that are not read: to be told, not passed over
    *(".heic", ".heif", ".hif", ".avif", ".gif", ".svg", ".psd", ".jxl", ".ico", ".eps", ".tga", ".xcf"),
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3gp", ".flv", ".mts", ".m2ts", ".ogv", ".vob"),
)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, default to stdout, at once; what the stream's encoding or a terminal cannot take is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class Failures(list):
    """The inputs of which something is missing, and why, as predictions.json has them. disk_full: nothing more fits."""

    disk_full = False

    def add(self, source: Path | int | str, error: InputError) -> None:
        """Notes an input and prints its error."""
        self.append({"image": str(source), "reason": str(error)})
        self.disk_full |= _is_full(error)
        with tqdm.external_write_mode(sys.stderr):
            say(f"error: {error}", sys.stderr)

    def add_missing(self, names: list[str], results: list[Result]) -> int:
        """Notes those of `names` of which there is neither a result nor a failure; returns how many."""
        told = {result.image for result in results} | {failure["image"] for failure in self}
        missing = [{"image": name, "reason": "not reached"} for name in names if name not in told]
        self.extend(missing)
        return len(missing)


def _is_full(error: InputError) -> bool:
    return getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def find_inputs(
    inputs: list[Path], output: Path, failed: Failures
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Returns (path, stem of its output files) of all images and of all videos; folders with all that is below them.

    Without any input it is the photograph that Matplotlib ships. What a folder holds beside them,
    pictures of other kinds and overlays of earlier runs, is counted on stderr. A path that does not exist or is not
    read, and a folder without images and videos, go to `failed`.

    Raises: InputError if nothing but what `predict` wrote is there.
    """
    found: dict[str, tuple[Path, Path]] = {}  # absolute path -> path, and what of it names the output
    skipped: Counter[str] = Counter()
    if not inputs:
        package = importlib.util.find_spec("matplotlib")  # not imported: that takes as long as finding the face
        if package is None:
            raise InputError("no INPUT: give a photograph, for the one that Matplotlib ships is not installed.")
        inputs = [Path(package.submodule_search_locations[0], "mpl-data/sample_data/grace_hopper.jpg")]
    for path in inputs:
        in_folder = os.path.isdir(path)
        if not in_folder and not os.path.exists(path):
            failed.add(path, InputError(f"{path}: no such file or folder."))
            continue
        usable = False
        for file in sorted(path.rglob("*")) if in_folder else [path]:
            ending = file.suffix.lower()
            if in_folder and not (file.is_file() and ending in PHOTO_ENDINGS + VIDEO_ENDINGS + OTHER_ENDINGS):
                continue
            if ending in OTHER_ENDINGS and not in_folder:
                failed.add(path, InputError(f"{path}: {ending} is not read. Save it as .jpg, .png or .mp4."))
            elif ending in OTHER_ENDINGS or ending[1:] in FACE_FORMATS:
                skipped[ending] += 1
            elif is_overlay(file):
                skipped["drawn by predict"] += 1
                usable = True
            elif in_folder and file.name.startswith("."):  # of macOS, of a run that was killed
                skipped["hidden"] += 1
            else:
                found.setdefault(os.path.abspath(file), (file, file.relative_to(path if in_folder else path.parent)))
                usable = True
        if in_folder and not usable:
            failed.add(path, InputError(f"{path}: no image or video in this folder ({', '.join(PHOTO_ENDINGS)}, ...)."))
    if skipped:
        say(f"skipped {', '.join(f'{count} {kind}' for kind, count in skipped.items())}", sys.stderr)
    if not found and not failed:
        raise InputError(f"{inputs[0]}: not a photograph or video but what predict wrote. Give what it was made from.")
    taken: set[str] = set()
    images, videos = [], []
    for path, name in found.values():
        stem = name.with_suffix("").as_posix()
        # a.jpg and a.png, or one name in two folders; and a picture of the user's may be called as the overlay would
        names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        stem = next(other for other in names if other not in taken and _is_free(output, other))
        taken.add(stem)
        (videos if path.suffix.lower() in VIDEO_ENDINGS else images).append((path, stem))
    return images, videos


def _is_free(output: Path, stem: str) -> bool:
    overlays = [output / f"{stem}_overlay{ending}" for ending in (".jpg", ".mp4")]
    return all(is_overlay(path) or not os.path.lexists(path) for path in overlays)


def open_videos(videos: list[tuple[Path | int, str]], failed: Failures) -> list[tuple[Video, str]]:
    """Returns the videos that open, with the stems of their files; the others go to `failed`."""
    opened = []
    for source, stem in videos:
        try:
            opened.append((Video(source), stem))
        except InputError as error:
            failed.add(source, error)
    return opened


class FaceRun:
    """Finds the faces of images and videos, and says so; an input that cannot be used does not stop the others.

    results, failed: what is done and what is not, whatever ends the run. `stopped` is asked before every image and
    after every frame.
    """

    def __init__(
        self, aligner: FaceAligner, output: Path, draw: bool, failed: Failures, stopped: Callable[[], bool]
    ) -> None:
        self.aligner, self.output, self.draw, self.failed, self.stopped = aligner, output, draw, failed, stopped
        self.results: list[Result] = []
        self._drawn: list[tuple[Path, str]] = []  # overlays of this run and what they are of

    def images(self, images: list[tuple[Path, str]], boxes: dict[Path, list[BoxRow]] | None, csv: Path | None) -> None:
        """Appends a result per image. boxes: of each image, as the file `csv` has them; None: the detector's."""
        for path, stem in tqdm(images, "images", unit="image", disable=None if len(images) > 1 else True, leave=False):
            if self.stopped() or self.failed.disk_full:
                break
            try:
                image = read_image(path)
                size = (image.shape[1], image.shape[0])
                given = None if boxes is None else boxes_inside(csv, boxes.get(path, []), path, size)
                faces = self.aligner.detect(image, given)
                self.results.append(Result(str(path), stem, size, list(enumerate(faces, 1))))
                told = f"no row in {csv}" if boxes is not None and path not in boxes else _in_words(faces)
                if self.draw:
                    overlay = self.output / f"{stem}_overlay.jpg"
                    write_overlay(overlay, image, faces, self.aligner.spec)
                    self._drawn.append((overlay, str(path)))
                    told += f"; {overlay}"
                if len(images) <= LINES:
                    say(f"{path}: {told}")
            except InputError as error:
                self.failed.add(path, error)
        if len(images) > LINES:
            counts = [len(result.faces) for result in self.results]
            say(f"{len(counts)} images, {sum(counts)} faces, {counts.count(0)} images without a face")

    def video(self, video: Video, stem: str, detect_every: int, smooth: bool, limit: int | None) -> None:
        """Follows the faces of an open video; appends one result a frame. limit: stop after so many frames."""
        if self.stopped() or self.failed.disk_full:
            return
        overlay = self.output / f"{stem}_overlay.mp4" if self.draw else None
        numbers: set[int] = set()

        def take(frame: Frame, faces: list[tuple[int, Face]]) -> bool:
            size = (frame.pixels.shape[1], frame.pixels.shape[0])
            self.results.append(Result(video.name, stem, size, faces, frame.number))
            numbers.update(number for number, _ in faces)
            return self.stopped()

        try:
            tracker = FaceTracker(self.aligner, detect_every, smooth)
            frames, speed = follow_video(video, tracker, take, overlay, limit)
            if overlay:
                self._drawn.append((overlay, video.name))
            if self.stopped() and not video.is_camera:
                raise InputError(f"{video.name}: stopped after {frames} frames.")
        except InputError as error:
            self.failed.add(video.name, error)
            return
        told = f"{len(numbers)} face{'' if len(numbers) == 1 else 's'}" if numbers else "no face found"
        say(f"{video.name}: {frames} frames, {told}, {speed:.1f} frames/s" + (f"; {overlay}" if overlay else ""))

    def write(self, formats: list[str], model: str) -> list[Path]:
        """Writes the results, see `write_results`; on a full disk the overlays of this run give way to them."""
        while True:
            try:
                return write_results(self.output, self.results, formats, model, self.aligner.spec, self.failed)
            except InputError as error:
                if not self._drawn or not _is_full(error):
                    raise
                path, source = self._drawn.pop()
                path.unlink()
                reason = f"{path}: removed, for the disk is full and the landmarks need space."
                self.failed.add(source, InputError(reason))


def _in_words(faces: list[Face]) -> str:
    if not faces:
        return "no face found"
    first = faces[0]
    if not np.isfinite(first.angles).all():
        return f"{len(faces)} face{'' if len(faces) == 1 else 's'}"
    angles = f"yaw {first.yaw:.1f}, pitch {first.pitch:.1f}, roll {first.roll:.1f} degrees"
    return f"1 face, {angles}" if len(faces) == 1 else f"{len(faces)} faces, of the first {angles}"
