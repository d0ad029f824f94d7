"""Finds the landmarks and head pose of every face in photographs, folders, videos or from a camera.

    python -m asmnet_tf.predict                                 # the photograph that matplotlib ships
    python -m asmnet_tf.predict photo.jpg holiday/              # images; folders with all that is below them
    python -m asmnet_tf.predict clip.mp4 --smooth               # a video: followed from frame to frame
    python -m asmnet_tf.predict --camera 0                      # until Ctrl-C, or --frames N
    python -m asmnet_tf.predict photo.jpg --boxes boxes.csv --format pts --no-draw --model runs/mine/best.keras

Writes to --output: NAME_overlay.jpg or .mp4 (points, contours, head axes), predictions.json and predictions.csv
(pixels from 0, degrees), and with --format pts one NAME_K.pts per face (pixels from 1, as in 300W).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL, DETECTOR_SIZE, FACE_FORMATS, PHOTO_ENDINGS, VIDEO_ENDINGS
from asmnet_tf.files import InputError, make_folder, replacing

if TYPE_CHECKING:
    from asmnet_tf.aligner import Face, FaceAligner
    from asmnet_tf.face_files import Result

LINES = 10  # up to so many inputs are told one by one


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
    from asmnet_tf.face_files import read_boxes, write_results

    # 1. What there is to do, and all that can be wrong with it before the network is read.
    make_folder(args.output)
    boxes = None if args.boxes is None else read_boxes(args.boxes)
    images, videos = find_inputs(args.inputs, args.camera)
    if videos and boxes is not None:
        raise InputError(f"{videos[0][0]}: --boxes is for images; faces of videos are detected.")
    from asmnet_tf.video import Video

    opened = [(Video(source), stem) for source, stem in videos]

    # 2. The network on every face.
    cli.start_tensorflow()
    from asmnet_tf.aligner import FaceAligner

    with cli.without_notes():
        aligner = FaceAligner(args.model, args.min_score, args.detector_size)
    results, errors = [], []
    try:
        results += predict_images(images, aligner, boxes, args, errors)
        for video, stem in opened:
            predict_video(video, stem, aligner, args, results, errors)
    finally:
        # 3. The files, also of what was done before Ctrl-C.
        if results:
            written = write_results(args.output, results, args.format, str(args.model), aligner.spec)
            print(", ".join(map(str, written)))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError(f"{errors[0]} ({len(errors) - 1} more inputs could not be used; the others are done)")


def find_inputs(inputs: list[Path], camera: int | None) -> tuple[list[tuple[Path, str]], list[tuple[Path | int, str]]]:
    """Returns (path, stem of its output files) of images and of videos; without any the photograph of matplotlib.

    Raises: InputError for a path that is not there and for a folder without images and videos.
    """
    if camera is not None:
        return [], [(camera, f"camera_{camera}")]
    if not inputs:
        from matplotlib.cbook import get_sample_data

        inputs = [Path(get_sample_data("grace_hopper.jpg", asfileobj=False))]
    found: list[tuple[Path, Path]] = []  # path, and what of it names the output
    for path in inputs:
        if path.is_dir():
            files = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in PHOTO_ENDINGS + VIDEO_ENDINGS and p.is_file()
            )
            if not files:
                raise InputError(f"{path}: no image or video in this folder ({', '.join(PHOTO_ENDINGS)}, ...).")
            found += [(file, file.relative_to(path)) for file in files]
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder.")
        else:
            found.append((path, Path(path.name)))
    taken: set[str] = set()
    images, videos = [], []
    for path, name in found:
        stem = name.with_suffix("").as_posix()
        if stem in taken:  # a.jpg and a.png, or one name in two folders
            stem = next(s for s in (f"{stem}-{i}" for i in range(2, len(found) + 2)) if s not in taken)
        taken.add(stem)
        (videos if path.suffix.lower() in VIDEO_ENDINGS else images).append((path, stem))
    return images, videos


def predict_images(
    images: list[tuple[Path, str]], aligner: FaceAligner, boxes: dict | None, args: argparse.Namespace, errors: list
) -> list[Result]:
    """Returns the faces of every image; an image that cannot be used goes to `errors` and the others go on."""
    from tqdm import tqdm

    from asmnet_tf.face_files import Result, boxes_of
    from asmnet_tf.geometry import read_image

    results = []
    for path, stem in tqdm(images, "images", unit="image", disable=None if len(images) > 1 else True, leave=False):
        try:
            image = read_image(path)
            faces = aligner.detect(image, None if boxes is None else boxes_of(boxes, path))
        except InputError as error:
            errors.append(error)
            continue
        results.append(Result(str(path), stem, (image.shape[1], image.shape[0]), list(enumerate(faces, 1))))
        overlay = None if args.no_draw else draw(args.output / f"{stem}_overlay.jpg", image, faces, aligner)
        if len(images) <= LINES:
            print(f"{path}: {in_words(faces)}" + (f"; {overlay}" if overlay else ""))
    if len(images) > LINES:
        without = sum(not result.faces for result in results)
        print(f"{len(results)} images, {sum(len(r.faces) for r in results)} faces, {without} images without a face")
    return results


def draw(path: Path, image, faces: list[Face], aligner: FaceAligner) -> Path:
    """Writes the overlay as JPEG. Returns its path. Raises: InputError."""
    import cv2

    from asmnet_tf.overlay import draw_faces

    drawn = cv2.cvtColor(draw_faces(image, faces, aligner.spec), cv2.COLOR_RGB2BGR)
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), drawn, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise InputError(f"{path}: OpenCV cannot write this image. Use --no-draw.")
    return path


def in_words(faces: list[Face]) -> str:
    """Returns how many faces there are, and the angles of the first."""
    if not faces:
        return "no face found"
    first = faces[0]
    angles = f"yaw {first.yaw:.1f}, pitch {first.pitch:.1f}, roll {first.roll:.1f} degrees"
    return f"1 face, {angles}" if len(faces) == 1 else f"{len(faces)} faces, of the first {angles}"


def predict_video(
    video, stem: str, aligner: FaceAligner, args: argparse.Namespace, results: list[Result], errors: list
) -> None:
    """Follows the faces of an open video; appends one result a frame."""
    from asmnet_tf.face_files import Result
    from asmnet_tf.tracking import FaceTracker
    from asmnet_tf.video import follow_video

    name = f"camera {video.source}" if video.is_camera else str(video.source)
    overlay = None if args.no_draw else args.output / f"{stem}_overlay.mp4"
    numbers: set[int] = set()

    def take(frame, faces: list[tuple[int, Face]]) -> None:
        size = (frame.pixels.shape[1], frame.pixels.shape[0])
        results.append(Result(name, stem, size, faces, frame.number))
        numbers.update(number for number, _ in faces)

    tracker = FaceTracker(aligner, args.detect_every, args.smooth)
    try:
        frames, speed = follow_video(video, tracker, take, overlay, args.frames)
    except InputError as error:
        errors.append(error)
        return
    told = f"{len(numbers)} face{'' if len(numbers) == 1 else 's'}" if numbers else "no face found"
    print(f"{name}: {frames} frames, {told}, {speed:.1f} frames/s" + (f"; {overlay}" if overlay else ""))


if __name__ == "__main__":
    cli.run(main, parse_args)
