"""What a model cannot do: large yaw, which is pulled in, and closed eyes, which are drawn open.

    python tests/benchmarks/limits.py asmnet_300w --data-dir data

Yaw: AFLW2000-3D in <data-dir>/aflw2000 (300W-LP's convention, roll innermost), box of its 68 points, `O_P` and PnP on
`O_L`. Eyes: mean aspect ratio (height over width) of both eyes on the common faces of <data-dir>/300w by the true one.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from scipy.io import loadmat

sys.path.insert(0, str(Path(__file__).parents[2]))
from asmnet_tf import pose
from asmnet_tf.config import DATASETS
from asmnet_tf.datasets import Sample, read_samples, select
from asmnet_tf.geometry import landmark_box
from asmnet_tf.prediction import score_model

SPEC = DATASETS["300w"]
YAWS = (0, 15, 30, 45, 60, 90)
RATIOS = (0.0, 0.10, 0.15, 0.20, 0.25, 0.30, 1.0)


def eye_ratio(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (N, 68, 2) -> height over width of an eye, mean of both, (N,)."""

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(landmarks[:, a] - landmarks[:, b], axis=-1)

    eyes = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))
    return np.mean([(distance(b, f) + distance(c, e)) / (2 * distance(a, d)) for a, b, c, d, e, f in eyes], axis=0)


def yaw_300w_lp(angles_deg: np.ndarray) -> np.ndarray:
    """Our yaw, pitch, roll (N, 3) -> yaw in 300W-LP's order of rotations (N,)."""
    return np.degrees(np.arcsin(pose.angles_to_matrix(angles_deg)[:, 0, 2]))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()

    faces, true_yaw = [], []
    for path in sorted((args.data_dir / "aflw2000").glob("*.mat")):
        content = loadmat(path)
        landmarks = content["pt3d_68"][:2].T.astype(np.float32)
        faces.append(Sample(path.stem, path.with_suffix(".jpg"), landmarks, landmark_box(landmarks), frozenset()))
        true_yaw.append(np.degrees(content["Pose_Para"][0, 1]))
    found = score_model("yaw", args.model, faces, SPEC, None)
    true_yaw = np.array(true_yaw)
    network, pnp = (yaw_300w_lp(angles) for angles in (found.pose, found.pose_pnp))
    print("| true yaw, degrees | faces | true, mean of sizes | O_P | PnP on O_L |\n|---|---|---|---|---|")
    for low, high in itertools.pairwise(YAWS):
        rows = (np.abs(true_yaw) >= low) & (np.abs(true_yaw) < high)
        if rows.any():
            towards = np.sign(true_yaw[rows])
            cells = (np.mean(values[rows] * towards) for values in (true_yaw, network, pnp))
            print(f"| {low} to {high} | {rows.sum()} | " + " | ".join(f"{value:.1f}" for value in cells) + " |")
    for face, true, ours, by_pnp in zip(faces, true_yaw, network, pnp):
        print(f"{face.name}: yaw {true:.1f}, O_P {ours:.1f}, PnP {by_pnp:.1f}")

    samples = read_samples(SPEC, args.data_dir / "300w", "test", quiet=True)
    samples = [sample for sample, common in zip(samples, select(samples, SPEC, "common")) if common]
    found = score_model("eyes", args.model, samples, SPEC, None)
    true, ours = eye_ratio(np.stack([sample.landmarks for sample in samples])), eye_ratio(found.landmarks)
    print("| true aspect ratio of the eyes | faces | true, mean | predicted, mean |\n|---|---|---|---|")
    for low, high in itertools.pairwise(RATIOS):
        rows = (true >= low) & (true < high)
        if rows.any():
            print(f"| {low:.2f} to {high:.2f} | {rows.sum()} | {true[rows].mean():.2f} | {ours[rows].mean():.2f} |")


if __name__ == "__main__":
    main()
