"""Head pose from landmarks, and the one place where its convention is written down (NumPy and OpenCV only).

Convention. Camera axes: x to the right of the image, y down, z away from the camera. Head axes: the same when the face
looks straight into the camera. R takes head to camera coordinates and R = Rz Ry Rx, roll outermost, so turning the
image in its plane by an angle adds exactly that angle to roll. Signs are those of 300W-LP and HopeNet, hence of the
release's labels:

    yaw   > 0   the face turns towards the left edge of the image       (mirror image: -yaw)
    pitch > 0   the face looks up
    roll  > 0   the head is tilted clockwise as the viewer sees it      (mirror image: -roll)

Zero. Yaw and roll are zero by symmetry. Pitch is zero where outer eye corners and mouth corners are equally far from
the camera; 300W-LP and others put it 3 to 9 degrees elsewhere (a constant). 300W-LP decomposes R in the other order
(roll innermost), which differs by a few degrees where yaw and pitch are both large.

Camera. Centred on the bounding box of the landmarks, focal length 2.4 x its longer side (what SPIGA's annotation uses).
The box is taken, and PnP solved, in the upright frame: the image turned until the line of the outer eye corners is
level. The turn is added to roll, so that turning the landmarks changes nothing else.
"""

import contextlib
import functools
import hashlib
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from asmnet_tf.config import ANGLES, POSE_RANGE_DEG
from asmnet_tf.data.geometry import crop_frame, landmark_box, rotation
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.files import InputError, read_array, read_csv, replacing

FOCAL = 2.4  # focal length over the longer side of the landmark box
LABELS_VERSION = 2  # of what `estimate_pose` says of the same landmarks; 1: box and camera not turned upright


@functools.cache
def mean_face() -> np.ndarray:
    """Returns the 3D mean face (68, 3), float64, read-only: head axes, outer eye corners 1 apart (fit_mean_face.py)."""
    face = np.loadtxt(Path(__file__).with_name("mean_face_68.csv"), delimiter=",", comments="#")
    face.setflags(write=False)
    return face


# --- angles -----------------------------------------------------------------------------------------------------------
def angles_to_matrix(angles_deg: np.ndarray) -> np.ndarray:
    """Angles (..., 3) = yaw, pitch, roll in degrees -> rotations (..., 3, 3), head to camera."""
    yaw, pitch, roll = np.moveaxis(np.radians(angles_deg), -1, 0)
    sy, cy = np.sin(yaw), np.cos(yaw)
    sx, cx = -np.sin(pitch), np.cos(pitch)  # the convention's pitch is left-handed about x: up is positive
    sz, cz = np.sin(roll), np.cos(roll)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_angles(rotations: np.ndarray) -> np.ndarray:
    """Inverse of `angles_to_matrix`; yaw in [-90, 90]."""
    yaw = np.arcsin(np.clip(-rotations[..., 2, 0], -1.0, 1.0))
    pitch = -np.arctan2(rotations[..., 2, 1], rotations[..., 2, 2])
    roll = np.arctan2(rotations[..., 1, 0], rotations[..., 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], axis=-1))


def angles_of_300w_lp(pitch_yaw_roll: np.ndarray) -> np.ndarray:
    """`Pose_Para` of 300W-LP and AFLW2000-3D, (3,) radians -> yaw, pitch, roll (3,) in degrees, in our convention.

    Their rotation is Rx Ry Rz, each transposed, with y upwards and z towards the viewer: in our axes, pitch outermost.
    """
    pitch, yaw, roll = angles_to_matrix(np.degrees(np.diag(pitch_yaw_roll))[:, [1, 0, 2]])
    return matrix_to_angles(pitch @ yaw @ roll)


def angles_to_unit(angles_deg: np.ndarray) -> np.ndarray:
    """Degrees -> network units: +-65 degrees become +-1, more is clipped as in the release (paper section 4)."""
    return np.clip(np.asarray(angles_deg) / POSE_RANGE_DEG, -1.0, 1.0)


def unit_to_angles(pose_norm: np.ndarray, turned: np.ndarray | None = None) -> np.ndarray:
    """Network units (`O_P`) (..., 3) -> degrees; turned (...): by how much the crop was, degrees clockwise."""
    angles = np.asarray(pose_norm) * POSE_RANGE_DEG
    if turned is not None:
        angles[..., 2] = np.where(turned, signed(angles[..., 2] + turned), angles[..., 2])
    return angles


def signed(angle: np.ndarray | float) -> np.ndarray | float:
    """Returns angles in degrees within (-180, 180]."""
    return 180.0 - (180.0 - angle) % 360.0


# --- PnP --------------------------------------------------------------------------------------------------------------
def to_rays(landmarks: np.ndarray) -> np.ndarray:
    """Image pixels (..., L, 2) -> coordinates at unit depth of the camera above (..., L, 2)."""
    frame = crop_frame(landmark_box(landmarks), "square", FOCAL)
    return (landmarks - frame[..., None, :2]) / frame[..., None, 2:]


def solve_pnp(points_3d: np.ndarray, rays: np.ndarray, refine: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Returns rotation (3, 3) and translation (3,) that put points (P, 3) on rays (P, 2).

    SQPnP has no local minima behind the camera, where the iterative solver alone left 30 of 554 real faces;
    iterations from there, unless not to `refine`, minimise the error in the image.
    """
    rays, camera = np.ascontiguousarray(rays, np.float64), np.eye(3)
    _, turn, shift = cv2.solvePnP(points_3d, rays, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    if not refine:
        return cv2.Rodrigues(turn)[0], shift[:, 0]
    _, turn, shift = cv2.solvePnP(points_3d, rays, camera, None, turn, shift, True, flags=cv2.SOLVEPNP_ITERATIVE)
    pose, errors = np.concatenate([turn, shift]), []
    for _ in range(10):  # Gauss-Newton: OpenCV stops where the error stands still, which leaves 1e-6 degrees open
        seen, jacobian = cv2.projectPoints(points_3d, pose[:3], pose[3:], camera, None)
        missed = (rays - seen[:, 0]).reshape(-1, 1)
        errors.append(np.linalg.norm(missed))
        if not errors[-1] <= 1.001 * errors[0]:  # no face: the steps lead away from what OpenCV found
            return cv2.Rodrigues(turn)[0], shift[:, 0]
        pose = pose + np.linalg.lstsq(jacobian[:, :6], missed, rcond=None)[0]
    return cv2.Rodrigues(pose[:3])[0], pose[3:, 0]


def estimate_pose(landmarks: np.ndarray, spec: DatasetSpec, refine: bool = True) -> np.ndarray:
    """Estimates head pose by PnP of the 3D mean face on the dataset's rigid points, in the upright frame.

    Args:    landmarks: float (N, L, 2) or (L, 2), image pixels. spec: the dataset whose points they are.
        refine: False takes a fifth of the time, and differs by less than a degree on average.
    Returns: float64 (N, 3) or (3,): yaw, pitch, roll in degrees, roll in (-180, 180]; NaN where the landmarks are
        degenerate or not finite, and everywhere for a dataset without six rigid points.
    Raises:  ValueError if L is not the dataset's.
    """
    landmarks = np.asarray(landmarks)
    if landmarks.shape[-2:] != (spec.num_landmarks, 2):
        raise ValueError(f"landmarks of shape {landmarks.shape}; {spec.name} has (N, {spec.num_landmarks}, 2)")
    faces = landmarks.reshape(-1, spec.num_landmarks, 2)
    angles = np.full((len(faces), 3), np.nan)
    ours = [i for i, _ in spec.rigid_points]
    points_3d = np.array([mean_face()[place] if isinstance(place, int) else place for _, place in spec.rigid_points])
    usable = np.flatnonzero(np.isfinite(faces).all(axis=(1, 2)) & spec.has_pose)
    disable = len(usable) < 1000 or None  # less takes no second
    for i in tqdm(usable, "head pose", unit="face", disable=disable, leave=False):
        face = faces[i].astype(np.float64)
        tilt, upright = turn_upright(face, spec)
        if np.ptp(upright, axis=0).min() <= 1e-9 * np.abs(face).max():  # all on one line, up to rounding
            continue
        with contextlib.suppress(cv2.error):  # rigid points on one line: no pose, the row stays NaN
            angles[i] = matrix_to_angles(solve_pnp(points_3d, to_rays(upright)[ours], refine)[0])
            angles[i, 2] = signed(angles[i, 2] + tilt)
    return angles.reshape(*landmarks.shape[:-2], 3)


def turn_upright(landmarks: np.ndarray, spec: DatasetSpec) -> tuple[float, np.ndarray]:
    """Returns the tilt of the line of the outer eye corners, degrees clockwise, and landmarks (L, 2) without it."""
    across = landmarks[spec.outer_eye_corners[1]] - landmarks[spec.outer_eye_corners[0]]
    tilt = float(np.degrees(np.arctan2(across[1], across[0])))
    return tilt, (landmarks - landmarks.mean(axis=0)) @ rotation(tilt)


def cache_folder() -> Path:
    """Returns where computed files are kept: $ASMNET_CACHE, else asmnet_tf in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asmnet_tf"
    return Path(os.environ.get("ASMNET_CACHE") or folder)


def cached_pose(landmarks: np.ndarray, spec: DatasetSpec) -> np.ndarray:
    """`estimate_pose` of (N, L, 2), computed once and kept under `cache_folder()`, never inside the dataset.

    The key is a hash of all that the labels depend on: landmarks, mean face, layout, camera and LABELS_VERSION.
    """
    digest = hashlib.sha256(np.ascontiguousarray(landmarks, np.float32).data)
    settings = (spec.rigid_points, spec.outer_eye_corners, FOCAL, LABELS_VERSION)
    digest.update(mean_face().tobytes() + repr(settings).encode())
    path = cache_folder() / f"pose_{spec.name}_{digest.hexdigest()[:16]}.npy"
    with contextlib.suppress(FileNotFoundError, InputError):  # not there yet, or cut short: compute it
        angles = read_array(path)
        if angles.shape == (len(landmarks), 3):
            return angles
    angles = estimate_pose(landmarks, spec)
    with contextlib.suppress(InputError), replacing(path) as temporary:  # a cache that is not written costs time alone
        np.save(temporary, angles, allow_pickle=False)
    return angles


# --- pose labels from files -------------------------------------------------------------------------------------------
def read_pose_labels(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads pose labels: name -> yaw, pitch, roll in degrees, float64 (3,).

    `path` is a csv with the columns name, yaw, pitch, roll (degrees; see `files.read_csv`), or the release's: a folder
    of `<name>.npy` files with three numbers in [-1, 1] for +-65 degrees; sub-folders become part of the name.
    """
    path = Path(path)
    labels: dict[str, np.ndarray] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*.npy")):
            values = read_array(file).reshape(-1)
            if values.dtype.kind not in "fiu" or values.shape != (3,) or not (np.abs(values) <= 1.0 + 1e-6).all():
                held = f"{values.dtype} {values[:4]}"
                raise InputError(f"{file}: holds {held}, expected yaw, pitch, roll in [-1, 1] for +-65 degrees.")
            name = file.relative_to(path).with_suffix("").as_posix()
            labels[name] = unit_to_angles(values.astype(np.float64))
        if not labels:
            raise InputError(f"{path}: no .npy file in this folder. A pose folder holds one <image name>.npy per face.")
        return labels
    for line, name, values in read_csv(path, "name", ANGLES):
        name = name.replace("\\", "/").removeprefix("./")
        if name in labels:
            raise InputError(f"{path}, line {line}: {name!r} for the second time. Keep one row for each face.")
        if max(map(abs, values)) > 180.0:
            raise InputError(f"{path}, line {line}: {values}, expected yaw, pitch, roll in degrees, within +-180.")
        labels[name] = np.array(values)
    return labels


def align_signs(angles_deg: np.ndarray, reference_deg: np.ndarray, source: str | Path) -> tuple[np.ndarray, list[str]]:
    """Brings angles of another sign convention to ours, by their correlation with known ones of the same faces.

    Some annotations and methods (SPIGA's, 3DDFA's) count yaw the other way round. A network trained on a mixture would
    learn nonsense, and a score would be one. So an angle that runs against the reference is negated: correlation below
    -0.5, and for fewer than 50 faces so far below that chance is no explanation (t < -4); 5 faces at least.

    Args:    angles_deg, reference_deg: (N, 3); NaN where unknown. source: of the angles, for the line on stderr.
    Returns: the angles, (N, 3), and the names of those that were negated.
    """
    negated = []
    for i, angle in enumerate(ANGLES):
        known = np.isfinite(angles_deg[:, i]) & np.isfinite(reference_deg[:, i])
        theirs, ours, count = angles_deg[known, i], reference_deg[known, i], int(known.sum())
        if count < 5 or not theirs.std() or not ours.std():
            continue
        r, clear = np.corrcoef(ours, theirs)[0, 1], max(0.5, 4 / np.sqrt(count + 14))  # t = r sqrt((n - 2) / (1 - r^2))
        if abs(r) > clear and ours.std() > 20 * theirs.std():
            told = f"{angle} varies by {theirs.std():.2g}, that of the same faces by {ours.std():.2g} degrees"
            raise InputError(f"{source}: {told}. Give degrees, not radians.")
        if r < -clear:
            negated.append(angle)
    if negated:
        print(f"{source}: {', '.join(negated)} counted the other way round, negated (see pose.py)", file=sys.stderr)
    return angles_deg * [-1.0 if angle in negated else 1.0 for angle in ANGLES], negated
