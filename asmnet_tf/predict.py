"""Finds the landmarks and head pose of every face in photographs, folders, videos or from a camera.

    python -m asmnet_tf.predict                                 # the photograph that matplotlib ships
    python -m asmnet_tf.predict photo.jpg holiday/              # images; folders with all that is below them
    python -m asmnet_tf.predict clip.mp4 --smooth               # a video: followed from frame to frame
    python -m asmnet_tf.predict --camera 0                      # until Ctrl-C, or --frames N
    python -m asmnet_tf.predict photo.jpg --boxes boxes.csv --format pts --no-draw --model runs/mine/best.keras

Writes to --output: NAME_overlay.jpg or .mp4 (points, contours, head axes), predictions.json and predictions.csv
(pixels from 0, degrees), and with --format pts one NAME_K.pts per face (pixels from 1, as in 300W). `face` numbers the
faces of an image; in a video a number is one face for as long as it is followed (tracking.py says when it is lost).

What is done is written when Ctrl-C, SIGTERM, a full disk or a closed pipe ends it. `failed` in predictions.json names
every input of which something is missing, and why; the exit code then is 2, or 128 + the signal. Overlays of earlier
runs are never read. The rows of --boxes find their image by path, else by a file name that is unique; an image without
a row gets no face.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL, DETECTOR_SIZE, FACE_FORMATS, PHOTO_ENDINGS, VIDEO_ENDINGS
from asmnet_tf.files import InputError, owned, printable

if TYPE_CHECKING:
    from asmnet_tf.aligner import Face, FaceAligner
    from asmnet_tf.face_files import BoxRow, Result
    from asmnet_tf.video import Frame, Video

LINES = 10  # up to so many inputs are told one by one
OTHER_ENDINGS = (  # of pictures and videos that are not read: to be told, not passed over
    *(".heic", ".heif", ".hif", ".avif", ".gif", ".svg", ".psd", ".jxl", ".ico", ".eps", ".tga", ".xcf"),
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3gp", ".flv", ".mts", ".m2ts", ".ogv", ".vob"),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", type=Path, help="images, folders, videos")
    parser.add_argument(
        "--camera", type=cli.within(0, 9999, whole=True), metavar="N", help="number of a camera, from 0"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|PATH", help="shipped name, .keras, .h5, .tflite"
    )
    parser.add_argument("--boxes", type=Path, metavar="CSV", help="own boxes: image, x_min, y_min, x_max, y_max")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    parser.add_argument("--no-draw", action="store_true", help="no overlay images or videos")
    parser.add_argument("--format", nargs="+", choices=FACE_FORMATS, default=["json", "csv"], help="default: json csv")
    detector = parser.add_argument_group("detector")
    detector.add_argument("--min-score", type=cli.fraction, default=0.5, help="of a face (default: 0.5)")
    detector.add_argument(
        "--detector-size",
        type=cli.positive_int,
        default=DETECTOR_SIZE,
        metavar="PX",
        help=f"longest side it sees; larger finds smaller faces, 256 is quick (default: {DETECTOR_SIZE})",
    )
    video = parser.add_argument_group("video")
    video.add_argument("--detect-every", type=cli.positive_int, default=10, metavar="N", help="frames (default: 10)")
    video.add_argument("--smooth", action="store_true", help="One-Euro filter on landmarks and angles")
    video.add_argument("--frames", type=cli.positive_int, metavar="N", help="stop after N frames")
    args = parser.parse_args(argv)
    if args.camera is not None and (args.inputs or args.boxes):
        parser.error("--camera: no INPUT and no --boxes with it")
    return args


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend."""
    # OpenCV's own words about a damaged file would stand around the one line that names it
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with owned(args.output):
        predict(args)


def predict(args: argparse.Namespace) -> None:
    """`main` in an output folder that is this process's own."""
    from asmnet_tf.face_files import match_boxes, read_boxes, write_results
    from asmnet_tf.video import Video

    # 1. What there is to do, and all that can be wrong with it before the network is read.
    failed = Failures()
    images, videos = find_inputs(args.inputs, args.camera, args.output, failed)
    boxes = None
    if args.boxes is not None:
        if videos:
            raise InputError(f"{videos[0][0]}: --boxes is for images; faces of videos are detected.")
        folders = [path for path in args.inputs if os.path.isdir(path)]
        boxes, notes = match_boxes(args.boxes, read_boxes(args.boxes), [path for path, _ in images], folders)
        for note in notes:
            say(note, sys.stderr)
    opened = []
    for source, stem in videos:
        try:
            opened.append((Video(source), stem))
        except InputError as error:
            failed.add(source, error)
    if not images and not opened:
        sys.exit(cli.EXIT_BAD_INPUT)

    # 2. The network on every face.
    cli.start_tensorflow()
    from asmnet_tf.aligner import FaceAligner

    with cli.without_notes():
        aligner = FaceAligner(args.model, args.min_score, args.detector_size)
    results: list[Result] = []
    try:
        with cli.StopSignals() as signals:
            predict_images(images, aligner, boxes, args, results, failed, signals)
            for video, stem in opened:
                predict_video(video, stem, aligner, args, results, failed, signals)
    finally:
        # 3. The files, also of what was done before something ended it.
        told = {result.image for result in results} | {failure["image"] for failure in failed}
        missed = [str(source) for source, _ in images + videos if args.camera is None and str(source) not in told]
        failed += [{"image": name, "reason": "not reached"} for name in missed]
        while True:
            try:
                written = write_results(args.output, results, args.format, str(args.model), aligner.spec, failed)
                break
            except InputError as error:
                if not failed.drawn or not is_full(error):
                    raise
                path, image = failed.drawn.pop()
                path.unlink()
                failed.add(image, InputError(f"{path}: removed, for the disk is full and the landmarks need space."))
    say(", ".join(map(str, written)))
    if failed and signals.received:
        done = f"{len(images) + len(opened) - len(missed)} of {len(images) + len(opened)} inputs done"
        raise cli.Stopped(f"stopped; {done}, written to {args.output}", 128 + signals.received)
    if failed:
        sys.exit(cli.EXIT_BAD_INPUT)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, default to stdout, at once; what the stream's encoding or a terminal cannot take is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def is_full(error: InputError) -> bool:
    """Returns whether a file could not be written because the disk is full."""
    return getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


class Failures(list):
    """The inputs of which something is missing, and why, as predictions.json has them.

    full: the disk is. drawn: overlays of this run and what they are of, for then they may have to go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.full, self.drawn = False, []

    def add(self, source: Path | str | int, error: InputError) -> None:
        """Notes an input and tells its error."""
        from tqdm import tqdm

        self.append({"image": str(source), "reason": str(error)})
        self.full |= is_full(error)
        with tqdm.external_write_mode(sys.stderr):
            say(f"error: {error}", sys.stderr)


def find_inputs(
    inputs: list[Path], camera: int | None, output: Path, failed: Failures
) -> tuple[list[tuple[Path, str]], list[tuple[Path | int, str]]]:
    """Returns (path, stem of its output files) of images and of videos; without any the photograph of matplotlib.

    What a folder holds beside them, pictures of other kinds and what `predict` drew, is counted on stderr. A path that
    is not there or not read and a folder without images and videos go to `failed`.

    Raises: InputError if nothing but what `predict` wrote is there.
    """
    if camera is not None:
        return [], [(camera, f"camera_{camera}")]
    from asmnet_tf.overlay import is_overlay

    if not inputs:
        from matplotlib.cbook import get_sample_data

        inputs = [Path(get_sample_data("grace_hopper.jpg", asfileobj=False))]
    found: dict[str, tuple[Path, Path]] = {}  # absolute path -> path, and what of it names the output
    skipped: Counter[str] = Counter()
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
        for other in (stem, *(f"{stem}-{i}" for i in range(2, len(found) + 100))):
            overlays = [output / f"{other}_overlay{ending}" for ending in (".jpg", ".mp4")]
            if other not in taken and all(is_overlay(p) or not os.path.lexists(p) for p in overlays):
                stem = other
                break
        taken.add(stem)
        (videos if path.suffix.lower() in VIDEO_ENDINGS else images).append((path, stem))
    return images, videos


def predict_images(
    images: list[tuple[Path, str]],
    aligner: FaceAligner,
    boxes: dict[Path, list[BoxRow]] | None,
    args: argparse.Namespace,
    results: list[Result],
    failed: Failures,
    signals: cli.StopSignals,
) -> None:
    """Appends the faces of every image; one that cannot be used goes to `failed` and the others go on."""
    from tqdm import tqdm

    from asmnet_tf.face_files import Result, boxes_inside
    from asmnet_tf.geometry import read_image
    from asmnet_tf.overlay import write_overlay

    for path, stem in tqdm(images, "images", unit="image", disable=None if len(images) > 1 else True, leave=False):
        if signals.received or failed.full:
            break
        try:
            image = read_image(path)
            size = (image.shape[1], image.shape[0])
            given = None if boxes is None else boxes_inside(args.boxes, boxes.get(path, []), path, size)
            faces = aligner.detect(image, given)
            results.append(Result(str(path), stem, size, list(enumerate(faces, 1))))
            told = f"no row in {args.boxes}" if boxes is not None and path not in boxes else in_words(faces)
            if not args.no_draw:
                overlay = args.output / f"{stem}_overlay.jpg"
                write_overlay(overlay, image, faces, aligner.spec)
                failed.drawn.append((overlay, path))
                told += f"; {overlay}"
        except InputError as error:
            failed.add(path, error)
            continue
        if len(images) <= LINES:
            say(f"{path}: {told}")
    if len(images) > LINES:
        without = sum(not result.faces for result in results)
        say(f"{len(results)} images, {sum(len(r.faces) for r in results)} faces, {without} images without a face")


def in_words(faces: list[Face]) -> str:
    """Returns how many faces there are, and the angles of the first."""
    if not faces:
        return "no face found"
    first = faces[0]
    angles = f"yaw {first.yaw:.1f}, pitch {first.pitch:.1f}, roll {first.roll:.1f} degrees"
    return f"1 face, {angles}" if len(faces) == 1 else f"{len(faces)} faces, of the first {angles}"


def predict_video(
    video: Video,
    stem: str,
    aligner: FaceAligner,
    args: argparse.Namespace,
    results: list[Result],
    failed: Failures,
    signals: cli.StopSignals,
) -> None:
    """Follows the faces of an open video; appends one result a frame."""
    from asmnet_tf.face_files import Result
    from asmnet_tf.tracking import FaceTracker
    from asmnet_tf.video import follow_video

    if signals.received or failed.full:
        return
    name = f"camera {video.source}" if video.is_camera else str(video.source)
    overlay = None if args.no_draw else args.output / f"{stem}_overlay.mp4"
    numbers: set[int] = set()

    def take(frame: Frame, faces: list[tuple[int, Face]]) -> bool:
        size = (frame.pixels.shape[1], frame.pixels.shape[0])
        results.append(Result(name, stem, size, faces, frame.number))
        numbers.update(number for number, _ in faces)
        return signals.received is not None

    tracker = FaceTracker(aligner, args.detect_every, args.smooth)
    try:
        frames, speed = follow_video(video, tracker, take, overlay, args.frames)
        if overlay:
            failed.drawn.append((overlay, name))
        if signals.received and not video.is_camera:
            raise InputError(f"{name}: stopped after {frames} frames.")
    except InputError as error:
        failed.add(name, error)
        return
    told = f"{len(numbers)} face{'' if len(numbers) == 1 else 's'}" if numbers else "no face found"
    say(f"{name}: {frames} frames, {told}, {speed:.1f} frames/s" + (f"; {overlay}" if overlay else ""))


if __name__ == "__main__":
    cli.run(main, parse_args)
