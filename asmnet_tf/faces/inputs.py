"""The images and videos that a user gives: which there are, the faces of each, what is missing and why."""

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from tqdm import tqdm

from asmnet_tf.config import FACE_FORMATS, PHOTO_ENDINGS, VIDEO_ENDINGS
from asmnet_tf.data.geometry import read_image
from asmnet_tf.faces.aligner import FaceAligner
from asmnet_tf.faces.face_files import BoxRow, ResultFiles, boxes_inside
from asmnet_tf.faces.overlay import draw_faces, is_overlay, write_overlay
from asmnet_tf.faces.tracking import FaceTracker
from asmnet_tf.faces.video import Video, VideoFile, show_frame, video_name
from asmnet_tf.files import InputError, StopSignals, numbered, printable, replacing, utf8

LINES = 10  # up to so many images are told one by one
OTHER_ENDINGS = (  # of pictures and videos that are not read: to be told, not passed over
    *(".jp2", ".heic", ".heif", ".hif", ".avif", ".gif", ".svg", ".psd", ".jxl", ".ico", ".eps", ".tga", ".xcf"),
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3gp", ".flv", ".mts", ".m2ts", ".ogv", ".vob"),
)
Task = tuple[Path, str, list[BoxRow] | None]  # an image, the stem of its output files, its own boxes
Found = tuple[tuple | None, InputError | None]  # what `ResultFiles.add` takes, and what could not be done


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
        self.disk_full |= error.disk_full
        with tqdm.external_write_mode(sys.stderr):
            say(f"error: {error}", sys.stderr)

    @contextlib.contextmanager
    def catch(self, source: Path | int | str) -> Iterator[None]:
        """Notes an input if an InputError ends what is done with it."""
        try:
            yield
        except InputError as error:
            self.add(source, error)


def find_inputs(
    inputs: list[Path | str | int], output: Path, failed: Failures
) -> tuple[list[tuple[Path, str]], list[tuple[Path | str | int, str]]]:
    """Returns (path, stem of its output files) of all images and of all videos; folders with all that is below them.

    A text is the address of a video, a number a camera; without any input, the photograph that Matplotlib ships. Other
    pictures in a folder and overlays of earlier runs are counted on stderr. A path that does not exist or is not read,
    and a folder without images and videos, go to `failed`. Raises: InputError if only what `predict` wrote is there.
    """
    found: dict[object, tuple[Path | str | int, str]] = {}  # absolute path -> path, and what of it names the output
    skipped: Counter[str] = Counter()
    if not inputs:
        package = importlib.util.find_spec("matplotlib")  # not imported: that takes as long as finding the face
        if package is None:
            raise InputError("no INPUT: give a photograph, for the one that Matplotlib ships is not installed.")
        inputs = [Path(package.submodule_search_locations[0], "mpl-data/sample_data/grace_hopper.jpg")]
    for path in inputs:
        if not isinstance(path, Path):
            address = video_name(path).split("://", 1)[-1].partition("?")[0]
            found.setdefault(path, (path, "_".join(re.findall(r"\w+", address))[:100] or "stream"))
            continue
        in_folder, usable, before = os.path.isdir(path), False, len(failed)
        for file in sorted(_below(path, failed, skipped)) if in_folder else [path]:
            ending = file.suffix.lower()
            if in_folder and ending not in PHOTO_ENDINGS + VIDEO_ENDINGS + OTHER_ENDINGS:
                continue
            hidden = in_folder and file.name.startswith(".")
            if (reason := _unreachable(file)) and not hidden:
                failed.add(file, InputError(f"{file}: {reason}."))
            elif in_folder and not os.path.isfile(file):  # a pipe or device
                continue
            elif ending in OTHER_ENDINGS and not in_folder:
                failed.add(path, InputError(f"{path}: {ending} is not read. Save it as .jpg, .png or .mp4."))
            elif ending in OTHER_ENDINGS or ending[1:] in FACE_FORMATS:
                skipped[ending] += 1
            elif is_overlay(file):
                skipped["drawn by predict"] += 1
                usable = True
            elif hidden:  # of macOS, of a run that was killed
                skipped["hidden"] += 1
            else:
                name = file.relative_to(path if in_folder else path.parent).with_suffix("").as_posix()
                found.setdefault(os.path.abspath(file), (file, name))
                usable = True
        if in_folder and not usable and len(failed) == before:
            failed.add(path, InputError(f"{path}: no image or video in this folder ({', '.join(PHOTO_ENDINGS)}, ...)."))
    if skipped := +skipped:
        say(f"skipped {', '.join(f'{count} {kind}' for kind, count in skipped.items())}", sys.stderr)
    if not found and not failed:
        raise InputError(f"{inputs[0]}: not a photograph or video but what predict wrote. Give what it was made from.")
    taken, frames, images, videos = set(), set(), [], []

    def is_video(path: Path | str | int) -> bool:
        return not isinstance(path, Path) or path.suffix.lower() in VIDEO_ENDINGS

    for path, name in sorted(found.values(), key=lambda one: is_video(one[0])):
        # a.jpg and a.png, or one name in two folders; and a picture of the user's may be called as the overlay would
        for free in numbered(name):
            overlays = [output / f"{free}_overlay{ending}" for ending in (".jpg", ".mp4")]
            clash = free in taken or (is_video(path) and free in frames)
            if not clash and all(is_overlay(drawn) or not os.path.lexists(drawn) for drawn in overlays):
                break
        taken.add(free)
        frames.add(re.sub(r"_\d{6,}$", "", free))  # CLIP_000007.jpg: its .pts would be those of frame 7 of CLIP.mp4
        (videos if is_video(path) else images).append((path, free))
    return images, videos


def _unreachable(path: Path) -> str:
    """Returns why a path cannot be used, "" where it is there."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        gone = isinstance(error, ValueError | FileNotFoundError)
        linked = " (a link to what is not there)" * os.path.islink(path)
        return f"no such file or folder{linked}" if gone else f"cannot be read ({error.strerror})"
    return ""


def _below(folder: Path, failed: Failures, skipped: Counter[str]) -> Iterator[Path]:
    """Yields what is no folder below a folder. Folders that cannot be read go to `failed`; linked ones are counted."""

    def unreadable(error: OSError) -> None:
        told = f"{error.filename}: this folder cannot be read ({error.strerror})."
        failed.add(error.filename, InputError(told))

    for root, folders, names in os.walk(folder, onerror=unreadable):
        skipped["linked folder"] += sum(os.path.islink(os.path.join(root, name)) for name in folders)
        yield from (Path(root, name) for name in names)


def _find(csv: Path | None, folder: Path | None, min_quality: float, aligner: FaceAligner | None, task: Task) -> Found:
    """Returns the faces of an image, drawn in `folder`, and what could not be done. aligner: None in a worker."""
    result, aligner, (path, stem, rows) = None, aligner or _aligner, task
    try:
        image = read_image(path)
        size = image.shape[1::-1]
        boxes = None if rows is None else boxes_inside(csv, rows, path, size)
        faces = aligner.detect(image, boxes, angles=None if rows is None else np.array([row.angle for row in rows]))
        faces = [face for face in faces if face.is_good(min_quality)]
        result = str(path), stem, size, list(enumerate(faces, 1))
        if folder:
            write_overlay(folder / f"{stem}_overlay.jpg", image, faces, aligner.spec)
        return result, None
    except InputError as error:
        return result, error


def _start_worker(open_aligner: Callable[..., FaceAligner]) -> None:
    def end_with_parent() -> None:  # else workers of a process that is killed wait for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    global _aligner
    threading.Thread(target=end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)  # the cores are for other images; a GPU has no room for so many processes
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", CUDA_VISIBLE_DEVICES="-1")
    _aligner = open_aligner(threads=1)


@dataclass(eq=False)
class FaceRun:
    """Finds the faces of images and videos, and says so; an input that cannot be used does not stop the others.

    results, failed: what is done and what is not, whatever ends the run. signals: one ends it after the image or frame.
    open_aligner: opens one more, with `threads` of its own, in each worker. min_quality: faces of less are left out.
    """

    aligner: FaceAligner
    results: ResultFiles
    draw: bool
    failed: Failures
    signals: StopSignals
    open_aligner: Callable[..., FaceAligner]
    min_quality: float = 0.0
    _drawn: deque = field(default_factory=lambda: deque(maxlen=10_000))  # overlays of this run and what they are of

    def images(self, tasks: list[Task], csv: Path | None, workers: int) -> None:
        """Adds a result per image, in order. csv: the file that the tasks' own boxes are of."""
        todo = [task for task in tasks if utf8(task[0]) not in self.results.done]
        wanted = itertools.takewhile(lambda _: not (self.signals.received or self.failed.disk_full), todo)
        find = partial(_find, csv, self.results.folder if self.draw else None, self.min_quality)
        one_by_one = ((task, find(self.aligner, task)) for task in wanted)
        found = one_by_one if workers == 1 else self._in_workers(find, wanted, workers)
        counts, done, hidden = np.zeros(3, int), len(tasks) - len(todo), len(todo) < 2 or None
        with tqdm(found, "images", len(tasks), False, initial=done, unit="image", disable=hidden) as bar:
            for (path, stem, rows), (result, error) in bar:
                with self.failed.catch(path):
                    if result:
                        self.with_room(self.results.add, *result)
                        faces = result[-1]
                        counts += [1, len(faces), not faces]
                    if error:
                        raise error
                    told = f"no row in {csv}" if rows == [] else _counted(len(faces), self.min_quality)
                    if faces and np.isfinite(angles := faces[0][1].angles).all():  # NaN: a layout without pose
                        first = "of the first " * (len(faces) > 1)
                        told += ", {}yaw {:.1f}, pitch {:.1f}, roll {:.1f} degrees".format(first, *angles)
                    if self.draw:
                        overlay = self.results.folder / f"{stem}_overlay.jpg"
                        self._drawn.append((overlay, str(path)))
                        told += f"; {overlay}"
                    if len(tasks) <= LINES:
                        say(f"{path}: {told}")
        if len(tasks) > LINES:
            before = f"; {done} were done before" * (done > 0)
            say("{} images, {} faces, {} images without a face".format(*counts) + before)

    def _in_workers(self, find: Callable, tasks: Iterator[Task], workers: int) -> Iterator[tuple[Task, Found]]:
        """Yields every task and what `find` returns for it, in order; few are under way at a time."""
        pending: deque = deque()
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, _start_worker, (self.open_aligner,)) as pool:
            try:
                for task in itertools.chain(tasks, itertools.repeat(None, 4 * workers)):
                    if task:
                        with contextlib.ExitStack() as stack:
                            if hasattr(signal, "pthread_sigmask"):
                                # processes started meanwhile never get signals, though sent to the whole group
                                before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
                                stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
                            pending.append((task, pool.submit(find, None, task)))
                    if pending and (not task or len(pending) == 4 * workers):
                        task, found = pending.popleft()
                        yield task, found.result()
            except BrokenProcessPool as error:
                for worker in multiprocessing.active_children():  # the pool waits for them, but SIGTERM they do not get
                    worker.kill()
                reason = "a process that worked on it or one of the next images was killed. Give fewer --workers?"
                raise InputError(f"{task[0]}: {reason} --resume goes on.") from error

    def video(self, video: Video, stem: str, detect_every: int, smooth: bool, limit: int | None, show: bool) -> None:
        """Follows the faces of an open video, `limit` frames at most; adds one result a frame. See `FaceTracker`."""
        if self.signals.received or self.failed.disk_full:
            return
        tracker = FaceTracker(self.aligner, detect_every, smooth)
        overlay = self.results.folder / f"{stem}_overlay.mp4" if self.draw else None
        total = min(filter(None, (video.frames, limit)), default=None)
        numbers, count, start, wanted = set(), 0, time.perf_counter(), True
        with self.failed.catch(video.name), contextlib.closing(video):
            with contextlib.ExitStack() as stack:
                bar = stack.enter_context(tqdm(video, printable(video.name), total, False, unit="frame", disable=None))
                if overlay:
                    writer = VideoFile(stack.enter_context(replacing(overlay)), video.fps)
                    stack.callback(writer.close)
                if show:
                    stack.callback(cv2.destroyAllWindows)
                for count, (pixels, dt) in enumerate(bar, 1):
                    faces = [one for one in tracker.update(pixels, dt) if one[1].is_good(self.min_quality)]
                    self.with_room(self.results.add, video.name, stem, pixels.shape[1::-1], faces, count - 1)
                    numbers.update(number for number, _ in faces)
                    if overlay or show:
                        drawn = draw_faces(pixels, [face for _, face in faces], self.aligner.spec)
                    if overlay:
                        writer.write(drawn)
                    if show:
                        wanted = show_frame(video.name, drawn, count / (time.perf_counter() - start))
                    if self.signals.received or not wanted or count == limit:
                        break
                if not count:
                    raise InputError(f"{video.name}: no frame can be read. Is the video whole?")
            if overlay:
                self._drawn.append((overlay, video.name))
            if self.signals.received and not video.is_camera:
                raise InputError(f"{video.name}: stopped after {count} frames.")
            if wanted and video.frames and count < 0.95 * total - 2:  # the header's number is an estimate
                raise InputError(f"{video.name}: ends after {count} of {video.frames} frames. Is the video whole?")
            told = f"{count} frames, {_counted(len(numbers), self.min_quality)}"
            told += f", {count / (time.perf_counter() - start):.1f} frames/s" + f"; {overlay}" * bool(overlay)
            say(f"{video.name}: {told}")

    def with_room(self, write: Callable, *args: object) -> list[Path] | None:
        """Returns what `write` does; on a full disk the overlays of this run give way."""
        while True:
            try:
                return write(*args)
            except InputError as error:
                if not self._drawn or not error.disk_full:
                    raise
                path, source = self._drawn.pop()
                path.unlink()
                self.failed.add(source, InputError(f"{path}: removed, for the disk is full, the landmarks need space."))


def _counted(faces: int, min_quality: float) -> str:
    none = f"no face of quality {min_quality:g} or more" if min_quality else "no face found"
    return f"{faces} face{'s' * (faces > 1)}" if faces else none
