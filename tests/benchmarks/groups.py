"""The error of a model by groups of faces, and how steady it is on faces of all ages and skin colours.

    python tests/benchmarks/groups.py asmnet_300w --data-dir data

300W test: NME by source, by the size of the true yaw (PnP), and of the faces of which a hand, hair, dark glasses or a
thing covers landmarks (sorted by eye: covered_300w.txt); ground-truth boxes, 95 % bootstrap interval over faces.
Unlabelled: of <data-dir>/unlabelled (UTKFace: the file name begins with age_gender_race) the HELD_OUT faces that no
training sees. There is no truth, so no accuracy: printed are the share of images in which the detector finds a face,
and the mean distance, over the inter-ocular one, between the landmarks of the image and of its mirror image in the
mirrored box, but for what all faces have alike: a model may have learned to be right of what it marks (offsets.py).
"""

import argparse
from pathlib import Path

import numpy as np

from asmnet_tf import FaceAligner
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.geometry import read_image
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.scoring import score_model

SPEC = DATASETS["300w"]
HELD_OUT = 400
COVERED = Path(__file__).with_name("covered_300w.txt").read_text(encoding="utf-8").split()
YAWS = ((0, 10), (10, 20), (20, 30), (30, 90))
AGES = ((0, 3), (4, 12), (13, 19), (20, 39), (40, 59), (60, 120))
RACES = ("white", "black", "asian", "indian", "other")  # UTKFace's words, in the order of its numbers


def unlabelled(folder: Path) -> list[Path]:
    """Returns the images that are kept out of every training: seeded, so the same everywhere."""
    paths = sorted(folder.glob("*.jpg"))
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:HELD_OUT]]


def labelled_rows(model: Path, folder: Path) -> None:
    """Prints the groups of the 300W test faces."""
    samples = read_samples(SPEC, folder, "test", quiet=True)
    truth = np.stack([sample.landmarks for sample in samples])
    found = score_model("groups", model, samples, SPEC, None)
    errors = 100 * metrics.nme(found.landmarks, truth, metrics.normaliser(truth, SPEC))
    sources = np.array([sample.name.split("/")[0] for sample in samples])
    yaw = np.abs(estimate_pose(truth, SPEC)[:, 0])
    groups = {source: sources == source for source in np.unique(sources)}
    groups |= {f"yaw {low} to {high}": (yaw >= low) & (yaw < high) for low, high in YAWS}
    covered = np.isin([sample.name for sample in samples], COVERED)
    groups |= {"covered in part": covered, "not covered": ~covered}
    print("| 300W test | faces | NME % | 95 % |\n|---|---|---|---|")
    for name, chosen in groups.items():
        if chosen.any():
            low, high = metrics.bootstrap_interval(errors[chosen])
            print(f"| {name} | {chosen.sum()} | {errors[chosen].mean():.2f} | {low:.2f} to {high:.2f} |")


def unlabelled_rows(model: Path, folder: Path) -> None:
    """Prints the groups of the unlabelled faces."""
    aligner = FaceAligner(model)
    paths = unlabelled(folder)
    told = np.array([path.name.split("_")[:3] for path in paths], int)
    pairs = np.full((len(paths), 2, SPEC.num_landmarks, 2), np.nan)  # NaN: no face found
    for i, path in enumerate(paths):
        image = read_image(path)
        faces = aligner.detect(image)
        if not faces:
            continue
        face = max(faces, key=lambda one: one.score)
        mirrored = np.ascontiguousarray(image[:, ::-1])
        x0, y0, x1, y1 = face.box
        last = image.shape[1] - 1
        (other,) = aligner.detect(mirrored, np.array([[last - x1, y0, last - x0, y1]]), angles=np.array([-face.turned]))
        back = np.stack([last - other.landmarks[:, 0], other.landmarks[:, 1]], 1)[list(SPEC.flip_map)]
        pairs[i] = back, face.landmarks
    lengths = metrics.normaliser(pairs[:, 1], SPEC)
    pairs[:, 0, :, 0] += np.nanmean((pairs[:, 1] - pairs[:, 0])[..., 0] / lengths[:, None]) * lengths[:, None]
    apart = 100 * metrics.nme(pairs[:, 0], pairs[:, 1], lengths)  # % of the inter-ocular distance
    groups = {"all": np.ones(len(paths), bool)}
    groups |= {f"age {a} to {b}": (told[:, 0] >= a) & (told[:, 0] <= b) for a, b in AGES}
    groups |= {f"labelled {race}": told[:, 2] == k for k, race in enumerate(RACES)}
    print("| unlabelled | images | face found % | image and mirror image apart, median % | 95th percentile |")
    print("|---|---|---|---|---|")
    for name, chosen in groups.items():
        found = np.isfinite(apart[chosen])
        middle, far = np.percentile(apart[chosen][found], (50, 95))
        print(f"| {name} | {chosen.sum()} | {100 * found.mean():.1f} | {middle:.2f} | {far:.2f} |")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    labelled_rows(args.model, args.data_dir / "300w")
    unlabelled_rows(args.model, args.data_dir / "unlabelled")


if __name__ == "__main__":
    main()
