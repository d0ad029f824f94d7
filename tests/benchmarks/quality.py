"""Calibrates `Face.quality` of a model and plots what it is worth: on faces it has not learned from, distorted.

    python tests/benchmarks/quality.py --data-dir data            # figures and the plot, assets/quality.png
    python tests/benchmarks/quality.py --data-dir data --fit      # and the calibration into the model's side-car
    python tests/benchmarks/quality.py --data-dir data --model sibling.keras --fit asmnet_300w

The last is for a model that learned from all faces: a sibling that held some out stands in for it.

Faces: of the 300W training faces those of the photographs that the model held out; each as it is, turned, cut off,
covered, blurred, dark and noisy, small, in the detector's boxes and in the true box moved and scaled by up to 10 and
15 %, and boxes where no face is, which count as wrong. The detector's nearest face counts; faces it misses have no
quality. Photographs are split into halves; each half is judged by the fit to the other, the side-car gets that to both.

max_yaw: the 99.5th percentile of the size of the yaw by PnP on what the model finds in all training faces. AFLW2000-3D
(<data-dir>/aflw2000) shows what becomes of profiles. Time: a face with and without it, in turns, in a given box.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import harness
import matplotlib.pyplot as plt
import numpy as np
from rotated_faces import turn
from scipy.io import loadmat
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from asmnet_tf import FaceAligner
from asmnet_tf.config import DEFAULT_MODEL, VAL_FRACTION
from asmnet_tf.data.annotations import Sample, hold_out, photograph, read_samples, training_faces
from asmnet_tf.data.geometry import landmark_box, read_image, transform
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import angles_of_300w_lp
from asmnet_tf.data.sidecars import find_model, read_sidecar, sidecar_path
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.truth import held_out_fraction
from asmnet_tf.faces.detector import overlaps
from asmnet_tf.faces.quality import FEATURES, GOOD_NME, Judge
from asmnet_tf.files import write_text
from asmnet_tf.shape.shape_model import ShapeModel

SPEC = DATASETS["300w"]
SHAPE_MODEL = "300w_pca97"  # of those that ship, the one that tells most
KINDS = ("as it is", "turned", "cut off", "covered", "blurred", "dark, noisy", "small")
NO_FACE = "not a face"
PLOT = harness.ROOT / "asmnet_tf/assets/quality.png"
BINS, MAX_YAW_PERCENTILE = 10, 99.5


class Recorder(Judge):
    """Keeps the numbers of the faces of the last call."""

    def __call__(self, crops: np.ndarray, landmarks_norm: np.ndarray, angles: np.ndarray) -> np.ndarray:
        vars(self)["seen"] = self.features(crops, landmarks_norm, angles)
        return np.zeros(len(crops))


def held_out(model: str, data: Path) -> list[Sample]:
    """Returns the training faces that a model has not seen, nor another face of their photograph.

    The models of the first round, whose side-car tells no rule, held out a tenth of each source by a permutation.
    """
    path = find_model(model)
    if "hold_out" in read_sidecar(path):
        return training_faces(SPEC, data, held_out_fraction([path], SPEC))[1]
    samples = read_samples(SPEC, data, "train")
    sources: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        sources.setdefault(sample.name.split("/")[0], []).append(i)
    rng, held = np.random.default_rng(0), set()
    for indices in sources.values():
        held |= set(rng.permutation(indices)[: round(VAL_FRACTION * len(indices))].tolist())
    learned = {photograph(sample.name) for i, sample in enumerate(samples) if i not in held}
    return [samples[i] for i in sorted(held) if photograph(samples[i].name) not in learned]


def distort(
    kind: str, image: np.ndarray, box: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns an image (H, W, 3), the map (2, 3) of the old pixels to it, and its turn, degrees clockwise."""
    side, centre, same = float((box[2:] - box[:2]).max()), (box[:2] + box[2:]) / 2, np.eye(2, 3)
    height, width = image.shape[:2]
    if kind == "turned":
        angle = rng.uniform(-180, 180)
        return (*turn(image, angle), angle)
    if kind == "cut off":
        inwards = rng.uniform(0.1, 0.6) * side
        edges = np.array([0, 0, width, height])
        edge = rng.integers(4)
        moved = round(box[edge] + (inwards if edge < 2 else -inwards))
        edges[edge] = np.clip(moved, 1, edges[2 + edge % 2] - 1)
        same[:, 2] = -edges[:2]
        return np.ascontiguousarray(image[edges[1] : edges[3], edges[0] : edges[2]]), same, 0.0
    if kind == "covered":
        extent = rng.uniform(0.2, 0.8, 2) * side
        middle = centre + rng.uniform(-0.4, 0.4, 2) * side
        low, high = (np.clip(np.round(middle + part * extent), 0, None).astype(int) for part in (-0.5, 0.5))
        image = image.copy()
        hidden = image[low[1] : high[1], low[0] : high[0]]
        hidden[:] = rng.integers(0, 256, 3 if rng.random() < 0.5 else hidden.shape)
    elif kind == "blurred":
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.01, 0.12) * side)
    elif kind == "dark, noisy":
        noise = rng.normal(0, rng.uniform(0, 12), image.shape)
        image = np.clip(np.round(image * np.exp(rng.uniform(-3.5, -0.7)) + noise), 0, 255).astype(np.uint8)
    elif kind == "small":
        ratio = min(1.0, np.exp(rng.uniform(np.log(10), np.log(60))) / side)
        shape = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        scale = np.array([shape[0] / width, shape[1] / height])
        return image, np.column_stack([np.diag(scale), scale / 2 - 0.5]), 0.0
    return image, same, 0.0


def nme_of(landmarks: np.ndarray, truth: np.ndarray) -> float:
    """Returns the inter-ocular NME of landmarks (68, 2)."""
    return float(metrics.nme(landmarks[None], truth[None], metrics.normaliser(truth[None], SPEC))[0])


def observe(aligner: FaceAligner, samples: list[Sample]) -> Iterator[tuple[int, str, np.ndarray, float]]:
    """Yields face, kind, the judge's numbers (4,) and NME (inf: no face) of everything that was aligned."""
    judge: Recorder = aligner.judge
    for i, sample in enumerate(samples):
        rng, image = np.random.default_rng(i), sample.read_image()
        landmarks = sample.landmarks.astype(np.float64)
        own = landmark_box(landmarks)
        for kind in KINDS:
            seen, matrix, _ = distort(kind, image, own, rng)
            truth = transform(matrix, landmarks)
            errors = [nme_of(face.landmarks, truth) for face in aligner.detect(seen)]
            if errors:
                best = int(np.argmin(errors))
                yield i, kind, judge.seen[0][best], errors[best]
            seen, matrix, angle = distort(kind, image, own, rng)
            truth = transform(matrix, landmarks)
            box = landmark_box(truth)
            half = (box[2:] - box[:2]).max() / 2
            centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.2, 0.2, 2) * half
            half *= rng.uniform(0.85, 1.15)
            angle += rng.uniform(-15, 15) if angle else 0.0
            (face,) = aligner.detect(seen, np.append(centre - half, centre + half)[None], angles=np.array([angle]))
            yield i, kind, judge.seen[0][0], nme_of(face.landmarks, truth)
        side = (own[2:] - own[:2]).max()
        for _ in range(2):
            for _ in range(50):
                half, centre = side / 2 * rng.uniform(0.3, 0.8), rng.uniform([0, 0], image.shape[1::-1])
                box = np.append(centre - half, centre + half)
                if overlaps(box[None], own[None])[0, 0] < 0.05:
                    aligner.detect(image, box[None], angles=np.zeros(1))
                    yield i, NO_FACE, judge.seen[0][0], np.inf
                    break


def fit(features: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns coefficients (4,) and intercept."""
    found = LogisticRegression(C=1e3).fit(features, good)
    return found.coef_[0], float(found.intercept_[0])


def reliability(quality: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns rows of mean quality, share of good faces, faces, one for each tenth; the expected calibration error."""
    tenth = np.minimum((quality * BINS).astype(int), BINS - 1)
    rows = np.array(
        [(quality[tenth == i].mean(), good[tenth == i].mean(), (tenth == i).sum()) for i in np.unique(tenth)]
    )
    return rows, float((np.abs(rows[:, 0] - rows[:, 1]) * rows[:, 2]).sum() / len(quality))


def plot(path: Path, model: str, quality: np.ndarray, nme: np.ndarray, kinds: np.ndarray) -> None:
    """Draws reliability, and quality against true NME with the medians of each tenth."""
    rows, error = reliability(quality, nme < GOOD_NME)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    left.plot([0, 1], [0, 1], "k:", lw=1)
    left.plot(rows[:, 0], rows[:, 1], "o-")
    for x, y, count in rows:
        left.annotate(f"{count:.0f}", (x, y), (5, -12), textcoords="offset points", fontsize=8)
    title = f"{model}: expected calibration error {error:.3f}, ROC AUC {roc_auc_score(nme < GOOD_NME, quality):.3f}"
    left.set(xlabel="quality", ylabel=f"share of faces with NME < {100 * GOOD_NME:g} %", title=title)
    for kind in (*KINDS, NO_FACE):
        rows = kinds == kind
        right.plot(quality[rows], 100 * np.minimum(nme[rows], 1), ".", ms=3, alpha=0.6, label=kind)
    right.axhline(100 * GOOD_NME, color="k", ls=":", lw=1)
    right.set(xlabel="quality", ylabel="true NME, % (100: more, or no face)", yscale="log", title="each aligned face")
    right.legend(fontsize=8, markerscale=3, loc="lower left")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    figure.savefig(path, dpi=110)


def main(args: argparse.Namespace) -> None:
    """Prints the figures, draws the plot and writes the calibration."""
    data, aligner = args.data_dir / "300w", FaceAligner(args.model)
    shipped = aligner.judge
    shapes = ShapeModel.load(SHAPE_MODEL)
    aligner.judge = Recorder(shapes, aligner.spec, aligner.crop_scale, np.zeros(4), 0.0, np.inf)
    samples = held_out(args.model, data)
    first = {sample.name for sample in hold_out(samples, 0.5, salt="quality")[1]}
    rows = list(observe(aligner, samples))
    faces, kinds, features, nme = (np.array(column) for column in zip(*rows))
    good, half = nme < GOOD_NME, np.array([samples[i].name in first for i in faces])
    quality = np.empty(len(rows))
    for rest in (half, ~half):
        coefficients, intercept = fit(features[~rest], good[~rest])
        quality[rest] = 1 / (1 + np.exp(-(features[rest] @ coefficients + intercept)))
    print(f"{len(samples)} faces, {len(rows)} aligned; each half judged by the fit to the other")
    print("| | aligned | NME < 8 % | mean quality | ROC AUC | expected calibration error |")
    print("|---" * 6 + "|")
    groups = {"all": quality >= 0, "half 1": half, "half 2": ~half, "without boxes of no face": kinds != NO_FACE}
    for name, chosen in (groups | {kind: kinds == kind for kind in (*KINDS, NO_FACE)}).items():
        both = 0 < good[chosen].mean() < 1
        area = f"{roc_auc_score(good[chosen], quality[chosen]):.3f}" if both else ""
        cells = (f"{good[chosen].mean():.3f}", f"{quality[chosen].mean():.3f}", area)
        print(
            f"| {name} | {chosen.sum()} | {' | '.join(cells)} | {reliability(quality[chosen], good[chosen])[1]:.3f} |"
        )
    for name, column in zip(FEATURES, features.T):
        area = roc_auc_score(good, column)
        print(f"{name} alone: ROC AUC {max(area, 1 - area):.3f}")
    plot(args.output, args.model, quality, nme, kinds)
    print(args.output)

    yaws = []
    for sample in read_samples(SPEC, data, "train", quiet=True):
        aligner.align(sample.read_image(), sample.bbox[None].astype(np.float64))
        yaws.append(aligner.judge.seen[1][0])
    max_yaw = float(np.percentile(yaws, MAX_YAW_PERCENTILE))
    coefficients, intercept = fit(features, good)
    calibration = {
        "shape_model": SHAPE_MODEL,
        "coefficients": {name: round(float(value), 4) for name, value in zip(FEATURES, coefficients)},
        "intercept": round(intercept, 4),
        "max_yaw": round(max_yaw, 2),
    }
    print(json.dumps(calibration))
    if args.fit:
        path = sidecar_path(find_model(args.fit))
        sidecar = read_sidecar(path) | {"quality": calibration}
        write_text(path, json.dumps(sidecar, indent=2) + "\n")
        print(path)
        shipped = Judge.of(path, sidecar, aligner.spec)

    if shipped is None:
        return
    aligner.judge = shipped
    for path in sorted((args.data_dir / "aflw2000").glob("*.mat")):
        content, image = loadmat(path), read_image(path.with_suffix(".jpg"))
        box = landmark_box(content["pt3d_68"][:2].T.astype(np.float64))
        (face,) = aligner.detect(image, box[None], angles=np.zeros(1))
        true = angles_of_300w_lp(content["Pose_Para"][0, :3])[0]
        print(f"{path.stem}: yaw {true:.1f}, O_P {face.yaw:.1f}, quality {face.quality:.2f}")
    image, box = samples[0].read_image(), samples[0].bbox[None].astype(np.float64)
    without = FaceAligner(args.model)
    without.judge = None
    ways = {"with": lambda: aligner.detect(image), "without": lambda: without.detect(image)}
    ways |= {"box with": lambda: aligner.align(image, box), "box without": lambda: without.align(image, box)}
    times = {name: 1e3 * np.median(values) for name, values in harness.interleave(ways, 200, 5).items()}
    print(", ".join(f"{name} {value:.2f} ms" for name, value in times.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--output", type=Path, default=PLOT)
    parser.add_argument("--fit", metavar="MODEL", nargs="?", const=True, help="default: that of --model")
    args = parser.parse_args()
    args.fit = args.model if args.fit is True else args.fit
    main(args)
