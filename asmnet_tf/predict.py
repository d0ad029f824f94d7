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
import os
import sys
from pathlib import Path

from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL, DETECTOR_SIZE, FACE_FORMATS
from asmnet_tf.data.sidecars import find_runnable
from asmnet_tf.files import EXIT_BAD_INPUT, InputError, Stopped, StopSignals, owned


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", type=Path, help="images, folders, videos")
    parser.add_argument(
        "--camera", type=cli.within(0, 9999, whole=True), metavar="N", help="number of a camera, from 0"
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|PATH", help="shipped name, .tflite, .onnx, .keras, .h5"
    )
    parser.add_argument("--dataset", type=cli.dataset, metavar="NAME|FILE", help="whose points: default its side-car's")
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
    from asmnet_tf.faces.aligner import FaceAligner
    from asmnet_tf.faces.face_files import match_boxes, read_boxes
    from asmnet_tf.faces.inputs import FaceRun, Failures, find_inputs, open_videos, say
    from asmnet_tf.formats.runners import needs_tensorflow

    with owned(args.output):
        # 1. What there is to do, and all that can be wrong with it before the network is read.
        failed = Failures()
        images, videos = [], [(args.camera, f"camera_{args.camera}")]
        if args.camera is None:
            images, videos = find_inputs(args.inputs, args.output, failed)
        boxes = None
        if args.boxes is not None:
            if videos:
                raise InputError(f"{videos[0][0]}: --boxes is for images; faces of videos are detected.")
            folders = [path for path in args.inputs if os.path.isdir(path)]
            boxes, notes = match_boxes(args.boxes, read_boxes(args.boxes), [path for path, _ in images], folders)
            for note in notes:
                say(note, sys.stderr)
        opened = open_videos(videos, failed)
        if not images and not opened:
            sys.exit(EXIT_BAD_INPUT)

        # 2. The network on every face.
        if needs_tensorflow(find_runnable(args.model)):
            cli.start_tensorflow(str(args.model))
        with cli.without_notes():
            aligner = FaceAligner(args.model, args.min_score, args.detector_size, args.dataset)
        signals = StopSignals()
        work = FaceRun(
            aligner, args.output, draw=not args.no_draw, failed=failed, stopped=lambda: signals.received is not None
        )
        try:
            with signals:
                work.images(images, boxes, args.boxes)
                for video, stem in opened:
                    work.video(video, stem, detect_every=args.detect_every, smooth=args.smooth, limit=args.frames)
        finally:
            # 3. The files, also of what was done before something ended it.
            names = [str(path) for path, _ in images] + [video.name for video, _ in opened]
            missed = failed.add_missing(names, work.results)
            written = work.write(args.format, str(args.model))
        say(", ".join(map(str, written)))
    if failed and signals.received:
        done = f"{len(names) - missed} of {len(names)} inputs done"
        raise Stopped(f"stopped; {done}, written to {args.output}", 128 + signals.received)
    if failed:
        sys.exit(EXIT_BAD_INPUT)


def program() -> None:
    """Runs the program: the console command."""
    cli.run(main, parse_args)


if __name__ == "__main__":
    program()
