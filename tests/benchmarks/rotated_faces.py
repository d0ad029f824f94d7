"""Faces of 300W turned in the plane: how many are found and aligned, how well, and what it costs.

    python tests/benchmarks/rotated_faces.py --data data/300w                  # held-out training faces: for choosing
    python tests/benchmarks/rotated_faces.py --data data/300w --split test     # once, with all settings fixed
    python tests/benchmarks/rotated_faces.py --data data/300w --cost           # upright: the time of looking for angles

Each image is turned on a canvas grown with black. Of the faces that FaceAligner gives, the one nearest to the truth
counts, if any; NME is inter-ocular, its mean over the faces within 10 %. --cost takes turns on the images as they are,
FaceAligner against the same detector and network where every face is taken as upright.
"""

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from asmnet_tf import FaceAligner
from asmnet_tf.config import DEFAULT_MODEL, VAL_FRACTION
from asmnet_tf.data.annotations import Sample, read_samples, training_faces
from asmnet_tf.data.geometry import transform
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose
from asmnet_tf.evaluation import metrics
from asmnet_tf.faces import detector

SPEC = DATASETS["300w"]
ANGLES = (0, 50, 90, 137, 180, 251)
WITHIN = 0.10  # NME


def turn(image: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image (H, W, 3) turned clockwise on a grown canvas, and the map (2, 3) of its pixels to there."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1.0)
    extent = np.ceil(np.abs(matrix[:, :2]) @ [width, height] - 1e-6).astype(int)
    matrix[:, 2] += (extent - [width, height]) / 2
    return cv2.warpAffine(image, matrix, tuple(map(int, extent)), flags=cv2.INTER_LINEAR), matrix


def spin(image: np.ndarray, landmarks: np.ndarray, frames: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Turns an image once around, clockwise, in the middle of a black square that holds it at every angle.

    Returns: the frames, (T,) angles in degrees from 0, (T, L, 2) where the landmarks (L, 2) of the image are in them.
    """
    side, angles = int(np.ceil(np.hypot(*image.shape[:2]))), 360.0 * np.arange(frames) / frames
    matrices = []
    for angle in angles:
        matrix = cv2.getRotationMatrix2D(((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2), -angle, 1.0)
        matrix[:, 2] += (side - np.array(image.shape[1::-1])) / 2
        matrices.append(matrix)
    turned = [cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR) for matrix in matrices]
    return turned, angles, np.stack([transform(matrix, landmarks.astype(np.float64)) for matrix in matrices])


def cost(aligner: FaceAligner, samples: list[Sample], turns: int = 5) -> None:
    """Prints the time of `aligner` on upright images over the time without any look for an angle."""

    def upright(image: np.ndarray) -> None:
        boxes, _, _ = detector.find_boxes(image, aligner.min_score, aligner.detector_size)
        aligner.align(image, detector.to_landmark_boxes(boxes))

    ways, ratios, seconds = (aligner.detect, upright), [], []
    for sample in tqdm(samples, "time", disable=None, leave=False):
        image, spent = sample.read_image(), np.empty((turns + 1, 2))
        for i, row in enumerate(spent):
            for way in (i % 2, 1 - i % 2):
                start = time.perf_counter()
                ways[way](image)
                row[way] = time.perf_counter() - start
        seconds.append(np.median(spent[1:], axis=0))
        ratios.append(seconds[-1][0] / seconds[-1][1])
    any_angle, plain = 1000 * np.mean(seconds, axis=0)
    print(f"{len(samples)} images, median of {turns} turns: {any_angle:.1f} ms at any angle, {plain:.1f} upright only")
    print(f"ratio of the sums {any_angle / plain:.2f}; of an image: median {np.median(ratios):.2f}, ", end="")
    print(f"{100 * np.mean(np.array(ratios) > 1.3):.0f} % of the images above 1.3, {max(ratios):.1f} at most")


def main() -> None:
    """Prints a line for each angle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/300w"))
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="every face (default), or N from all over")
    parser.add_argument("--angles", type=float, nargs="+", default=ANGLES)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cost", action="store_true", help="time on the upright images only")
    args = parser.parse_args()
    held_out = args.split == "val"
    samples = training_faces(SPEC, args.data, VAL_FRACTION)[1] if held_out else read_samples(SPEC, args.data, "test")
    samples = samples[:: max(1, len(samples) // (args.limit or len(samples)))][: args.limit]
    aligner = FaceAligner(args.model)
    if args.cost:
        cost(aligner, samples)
        return
    print("| angle | faces | found % | within 10 % | NME of these | roll off, median deg | ms a face |")
    print("|---" * 7 + "|")
    for angle in args.angles:
        errors, rolls, start, spent = [], [], 0.0, 0.0
        for sample in samples:
            image, matrix = turn(sample.read_image(), angle)
            truth = transform(matrix, sample.landmarks.astype(np.float64))[None]
            start = time.perf_counter()
            faces = aligner.detect(image)
            spent += time.perf_counter() - start
            lengths = metrics.normaliser(truth, SPEC)
            nme = [metrics.nme(face.landmarks[None], truth, lengths)[0] for face in faces]
            errors.append(min(nme, default=np.inf))
            if errors[-1] <= WITHIN:
                roll = faces[int(np.argmin(nme))].roll - estimate_pose(truth, SPEC)[0, 2]
                rolls.append(abs((roll + 180) % 360 - 180))
        errors = np.array(errors)
        good = errors <= WITHIN
        print(
            f"| {angle:g} | {len(errors)} | {100 * np.mean(errors < 0.5):.1f} | {100 * good.mean():.1f} | "
            f"{100 * errors[good].mean():.2f} | {np.median(rolls):.2f} | {1000 * spent / len(errors):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
