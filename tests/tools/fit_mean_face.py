"""Makes the 3D mean face that `pose.py` fits to landmarks, from the 2D landmarks of the 300W training faces.

    python tests/tools/fit_mean_face.py --data-dir data/300w --output asmnet_tf/mean_face_68.csv

The shipped table came from this command (2,014 training faces, no test face). Steps:

1. rigid factorisation (Tomasi and Kanade 1992) of the 18 rigid points of all faces and their mirror images;
2. in turns, until it moves less than 0.0005: the pose of every face by PnP on the rigid points, then all 68 points by
   linear least squares, made symmetric. The second step uses only faces turned by more than 15 degrees: those turned
   less say little of depth, and the noise of their poses flattens it (errors in variables, the bas-relief ambiguity);
3. depth is scaled so that the tip of the nose stands `NOSE_DEPTH` outer-eye distances in front of the outer eye
   corners, what anthropometry has (about 47 of 90 mm), since 2. still leaves it flatter (0.40).
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from asmnet_tf import cli
from asmnet_tf.data import pose
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.files import replacing

NOSE_DEPTH = 0.52
MIN_YAW_DEG = 15.0
TOLERANCE = 5e-4


def fit_mean_face(landmarks: np.ndarray) -> np.ndarray:
    """Fits a symmetric 3D mean face to 68-point landmarks.

    Args:    landmarks: float (N, 68, 2), image pixels.
    Returns: float64 (68, 3), in the axes and units of `pose.mean_face()`.
    """
    spec = DATASETS["300w"]
    flip = np.array(spec.flip_map)
    rigid = np.array([i for i, _ in spec.rigid_points])
    rays = pose.to_rays(np.asarray(landmarks, np.float64))
    mirrored = rays[:, flip] * [-1.0, 1.0]
    both = np.concatenate([rays, mirrored])

    flip_rigid = np.array([list(rigid).index(flip[i]) for i in rigid])
    face = np.zeros((68, 3))
    face[rigid] = _factorise(both[:, rigid], rigid)
    face[rigid] = (face[rigid] + face[rigid][flip_rigid] * [-1.0, 1.0, 1.0]) / 2
    for _ in range(60):
        rotations, shifts = zip(*(pose.solve_pnp(face[rigid], points) for points in rays[:, rigid]))
        rotations, shifts = np.array(rotations), np.array(shifts)
        turned = np.abs(pose.matrix_to_angles(rotations)[:, 0]) > MIN_YAW_DEG
        mirror = np.diag([-1.0, 1.0, 1.0])
        updated = _points_from_poses(
            np.concatenate([rays[turned], mirrored[turned]]),
            np.concatenate([rotations[turned], mirror @ rotations[turned] @ mirror]),
            np.concatenate([shifts[turned], shifts[turned] * [-1.0, 1.0, 1.0]]),
        )
        updated = _canonical((updated + updated[flip] * [-1.0, 1.0, 1.0]) / 2, rigid)
        moved = np.abs(updated - face).max()
        face = updated
        if moved < TOLERANCE:
            break
    depth = face[36, 2] - face[30, 2]
    face = _canonical(face * [1.0, 1.0, NOSE_DEPTH / depth], rigid)
    return face


def _factorise(points: np.ndarray, rigid: np.ndarray) -> np.ndarray:
    """Returns (18, 3): the rank-3 factor of centred points (F, 18, 2), upgraded to a metric one."""
    centred = points - points.mean(axis=1, keepdims=True)
    measurements = centred.transpose(0, 2, 1).reshape(-1, len(rigid))
    u, s, vt = np.linalg.svd(measurements, full_matrices=False)
    motion, shape = u[:, :3] * s[:3], vt[:3]
    x, y = motion[0::2], motion[1::2]

    def quadratic(p: np.ndarray, q: np.ndarray) -> np.ndarray:  # p' Q q as a linear form in the 6 entries of Q
        i, j = np.triu_indices(3)
        return p[:, i] * q[:, j] + np.where(i == j, 0.0, 1.0) * p[:, j] * q[:, i]

    # the two rows of each camera have equal length and are orthogonal under Q
    weight = 1 / (x**2).sum(axis=1, keepdims=True)
    system = np.concatenate([(quadratic(x, x) - quadratic(y, y)) * weight, quadratic(x, y) * weight])
    q = np.zeros((3, 3))
    q[np.triu_indices(3)] = np.linalg.svd(system)[2][-1]
    q = q + np.triu(q, 1).T
    values, vectors = np.linalg.eigh(q * np.sign(np.trace(q)))
    metric = vectors * np.sqrt(np.maximum(values, 1e-6 * values.max()))
    face = np.zeros((68, 3))
    face[rigid] = np.linalg.solve(metric, shape).T

    right = face[45] - face[36]
    down = (face[48] + face[54]) / 2 - (face[36] + face[45]) / 2
    right = right / np.linalg.norm(right)
    down = down - right * (right @ down)
    down = down / np.linalg.norm(down)
    face = face @ np.stack([right, down, np.cross(right, down)]).T
    if face[30, 2] > (face[36, 2] + face[45, 2]) / 2:  # orthographic images leave the sign of depth open: nose in front
        face[:, 2] *= -1
    return _canonical(face, rigid)[rigid]


def _points_from_poses(rays: np.ndarray, rotations: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Returns (68, 3): least squares of  u (r3 X + t3) = r1 X + t1,  v (r3 X + t3) = r2 X + t2  over the faces."""
    weight = 1 / shifts[:, None, 2:]
    rows, right = [], []
    for axis in (0, 1):
        u = rays[:, :, axis : axis + 1]
        rows.append((u * rotations[:, None, 2] - rotations[:, None, axis]) * weight)
        right.append((shifts[:, None, axis : axis + 1] - u * shifts[:, None, 2:]) * weight)
    a, b = np.concatenate(rows), np.concatenate(right)
    return np.stack([np.linalg.lstsq(a[:, i], b[:, i, 0], rcond=None)[0] for i in range(a.shape[1])])


def _canonical(face: np.ndarray, rigid: np.ndarray) -> np.ndarray:
    """Pitch zero: eye and mouth corners equally deep. Origin: mean of the rigid points. Unit: outer-eye distance."""
    eyes, mouth = (face[36] + face[45]) / 2, (face[48] + face[54]) / 2
    tilt = np.arctan2(mouth[2] - eyes[2], mouth[1] - eyes[1])
    turn = cv2.Rodrigues(np.array([-tilt, 0.0, 0.0]))[0]
    face = (face - face[rigid].mean(axis=0)) @ turn.T
    return face / np.linalg.norm(face[45] - face[36])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path(DATASETS["300w"].default_data_dir))
    parser.add_argument("--output", type=Path, required=True, help="csv to write")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Fits the mean face to the training faces under --data-dir and writes it; raises InputError."""
    samples = read_samples(DATASETS["300w"], args.data_dir, "train")
    face = fit_mean_face(np.stack([sample.landmarks for sample in samples]))
    header = (
        "3D mean face, 68 points: x right, y down, z away from the camera; outer eye corners 1 apart "
        "(tests/tools/fit_mean_face.py)"
    )
    with replacing(args.output) as temporary:
        np.savetxt(temporary, face, fmt="%.5f", delimiter=",", header=header)
    print(f"{args.output}: mean face of {len(samples)} faces")


if __name__ == "__main__":
    cli.run(main, parse_args)
