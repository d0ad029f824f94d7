"""Finds the landmarks and head pose of every face in photographs, folders, videos or from a camera.

    python -m asmnet_tf.predict                                 # the photograph that matplotlib ships
    python -m asmnet_tf.predict photo.jpg holiday/              # images; folders with all that is below them
    python -m asmnet_tf.predict clip.mp4 --smooth               # a video: followed from frame to frame
    python -m asmnet_tf.predict --camera 0 --show               # in a window; until q, Ctrl-C, or --frames N
    python -m asmnet_tf.predict rtsp://host/stream --frames 99  # a video by its address: rtsp, http, https
    python -m asmnet_tf.predict million/ --no-draw --resume --shard 3/8 --format jsonl    # part 3 of 8: of a job array
    python -m asmnet_tf.predict photo.jpg --boxes boxes.csv --format pts --no-draw --model runs/mine/best.keras

Writes to --output: NAME_overlay.jpg or .mp4 (points, contours, head axes), predictions.json and .csv (pixels from 0,
degrees), with --format jsonl one JSON line an image or frame, as in the `results` of the json, and with pts one
NAME_K.pts per face (pixels from 1, as in 300W). `face` numbers the faces of an image; in a video a number is one face
for as long as it is followed (tracking.py says when it is lost). Any number of images takes the same memory.

Results come first into predictions.partial.jsonl, a line each; json and csv are made of it in the end. After a kill,
--resume goes on from it, or from predictions.jsonl, which it also keeps: images that have a result there are not done
again (give the same model and flags), those that failed and videos are. What is done is written when Ctrl-C, SIGTERM, a
full disk or a closed pipe ends it. `failed` in predictions.json names every input of which something is missing, and
why; the exit code then is 2, or 128 + the signal. Overlays of earlier runs are never read.

The rows of --boxes find their image by path, else by a file name that is unique; an image without a row gets no face. A
box is about where the landmarks are, brows to chin. A column `angle` may say by how many degrees clockwise the face is
turned, and the box with it about its centre: a face on its head has 180. Where it is left out, the detector looks.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import asmnet_tf
from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL, DETECTOR_SIZE, FACE_FORMATS
from asmnet_tf.data.sidecars import find_runnable
from asmnet_tf.files import EXIT_BAD_INPUT, InputError, Stopped, StopSignals, cores, owned, utf8

MANY = 50  # images; with fewer, starting processes takes longer than they save


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", type=path_or_address, help="images, folders, videos, addresses of videos")
    add("--camera", type=cli.within(0, 9999, whole=True), metavar="N", help="number of a camera, from 0")
    add("--model", default=DEFAULT_MODEL, metavar="NAME|PATH", help="shipped name, .tflite, .onnx, .keras, .h5")
    add("--dataset", type=cli.dataset, metavar="NAME|FILE", help="whose points: default its side-car's")
    add("--boxes", type=Path, metavar="CSV", help="own boxes: image, x_min, y_min, x_max, y_max, angle")
    add("--output", type=Path, default=Path("predictions"), help="folder (default: predictions)")
    add("--no-draw", action="store_true", help="no overlay images or videos")
    add("--format", nargs="+", choices=FACE_FORMATS, default=["json", "csv"], help="default: json csv")
    told = "leave out faces of less; 0 to 1, of models that have it (default: 0)"
    add("--min-quality", type=cli.within(0, 1), default=0.0, metavar="Q", help=told)
    add = parser.add_argument_group("many images").add_argument
    told = f"processes (default: the cores for more than {MANY} images, else 1)"
    add("--workers", type=cli.within(1, 1024, whole=True), metavar="N", help=told)
    add("--resume", action="store_true", help="go on where a run into --output was ended")
    told = "every N-th input from the I-th, I from 1; writes predictions-I-of-N.*"
    add("--shard", type=shard, metavar="I/N", default=(1, 1), help=told)
    add = parser.add_argument_group("detector").add_argument
    add("--min-score", type=cli.fraction, default=0.5, help="of a face (default: 0.5)")
    told = f"longest side it sees; larger finds smaller faces, 256 is quick (default: {DETECTOR_SIZE})"
    add("--detector-size", type=cli.positive_int, default=DETECTOR_SIZE, metavar="PX", help=told)
    add = parser.add_argument_group("video").add_argument
    add("--detect-every", type=cli.positive_int, default=10, metavar="N", help="frames (default: 10)")
    add("--smooth", action="store_true", help="One-Euro filter on landmarks and angles")
    add("--show", action="store_true", help="in a window; q or closing it ends the video")
    add("--frames", type=cli.positive_int, metavar="N", help="stop after N frames")
    args = parser.parse_args(argv)
    if args.camera is not None and (args.inputs or args.boxes):
        parser.error("--camera: no INPUT and no --boxes with it")
    return args


def path_or_address(text: str) -> Path | str:
    """argparse type: an address stays a text."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; is a variable of the shell not set?")
    return text if text.lower().startswith(("rtsp://", "http://", "https://")) else Path(text)


def shard(text: str) -> tuple[int, int]:
    """argparse type: I/N, I from 1 to N."""
    part, _, parts = text.partition("/")
    number = cli.positive_int(parts)
    return cli.within(1, number, whole=True)(part), number


def open_aligner(model: str, *settings: object, threads: int | None = None) -> "asmnet_tf.FaceAligner":
    """Opens an aligner quietly, in this process or a worker; see `FaceAligner`."""
    from asmnet_tf.faces.aligner import FaceAligner
    from asmnet_tf.formats.runners import needs_tensorflow

    if needs_tensorflow(find_runnable(model)):
        cli.start_tensorflow(model)
    with cli.without_notes():
        return FaceAligner(model, *settings, threads=threads)


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend."""
    # OpenCV's own words about a damaged file would stand around the one line that names it
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from asmnet_tf.faces.face_files import ResultFiles, match_boxes, read_boxes
    from asmnet_tf.faces.inputs import FaceRun, Failures, find_inputs, say
    from asmnet_tf.faces.video import Video, check_window, video_name

    part, parts = args.shard
    suffix = f"-{part}-of-{parts}" if parts > 1 else ""
    with owned(args.output, part=suffix):
        # 1. What there is to do, and all that can be wrong with it before the network is read.
        failed = Failures()
        inputs = args.inputs if args.camera is None else [args.camera]
        images, videos = find_inputs(inputs, args.output, failed)
        boxes = None
        if args.boxes is not None:
            if videos:
                raise InputError(f"{videos[0][0]}: --boxes is for images; faces of videos are detected.")
            folders = [path for path in args.inputs if os.path.isdir(path)]
            boxes, notes = match_boxes(args.boxes, read_boxes(args.boxes), [path for path, _ in images], folders)
            for note in notes:
                say(note, sys.stderr)
        if args.show:
            if not videos:
                raise InputError("--show: is for videos and --camera, and there are none.")
            check_window()
        images, opened = images[part - 1 :: parts], []
        for source, stem in videos[part - 1 :: parts]:
            with failed.catch(video_name(source)):
                opened.append((Video(source), stem))
        if not images and not opened and (failed or parts == 1):
            sys.exit(EXIT_BAD_INPUT)

        # 2. The network on every face.
        opener = partial(open_aligner, str(args.model), args.min_score, args.detector_size, args.dataset)
        aligner = opener()
        if args.min_quality and not aligner.judge:
            raise InputError(f"--min-quality: {args.model} has no quality of its own. Leave it away.")
        formats = [*args.format, "jsonl"] if args.resume else args.format
        earlier = [path for path, _ in images] if args.resume else None
        again = []  # of which there is a result, but the overlay failed or gave way on a full disk
        if args.resume and not args.no_draw:
            again = [path for path, stem in images if not (args.output / f"{stem}_overlay.jpg").is_file()]
        results = ResultFiles(args.output, formats, aligner.spec, f"predictions{suffix}", earlier, again)
        signals = StopSignals()
        work = FaceRun(aligner, results, not args.no_draw, failed, signals, opener, args.min_quality)
        tasks = [(path, stem, None if boxes is None else boxes.get(path, [])) for path, stem in images]
        workers = args.workers or (cores() if len(images) - len(results.done) > MANY else 1)
        try:
            with signals:
                work.images(tasks, args.boxes, workers)
                for video, stem in opened:
                    work.video(video, stem, args.detect_every, args.smooth, args.frames, args.show)
        finally:
            # 3. The files, also of what was done before something ended it.
            names = [str(path) for path, _ in images] + [video.name for video, _ in opened]
            known = results.done | {utf8(failure["image"]) for failure in failed}
            missed = [name for name in names if utf8(name) not in known]
            failed.extend({"image": name, "reason": "not reached"} for name in missed)
            written = work.with_room(results.write, str(args.model), failed, bool(missed or signals.received))
        say(", ".join(map(str, written)))
    if failed and signals.received:
        lost = {utf8(failure["image"]) for failure in failed}
        done = f"{sum(utf8(name) not in lost for name in names)} of {len(names)} inputs done"
        raise Stopped(f"stopped; {done}, written to {args.output}", 128 + signals.received)
    if failed:
        sys.exit(EXIT_BAD_INPUT)


def program() -> None:
    """Runs the program: the console command."""
    cli.run(main, parse_args)


if __name__ == "__main__":
    program()
