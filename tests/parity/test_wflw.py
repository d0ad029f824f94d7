"""WFLW's 98 points by geometry: an index that is wrong in config.py does not fit where faces have that point.

On the 126 real faces here and on synthetic ones, whose 98 points are made from the 68 (so that they show agreement of
the two schemes, not that either is right).
"""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from asmnet_tf.data import pose
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.truth import find_truth
from asmnet_tf.synthetic.renderer import render_face

WFLW, S300W = DATASETS["wflw"], DATASETS["300w"]
FLIP = np.array(WFLW.flip_map)
OUTER_LEFT, OUTER_RIGHT = WFLW.outer_eye_corners  # as seen in the image
EYES = (range(60, 68), range(68, 76))


def upright(faces: np.ndarray) -> np.ndarray:
    """Faces (N, 98, 2) turned until the outer eye corners are level, centred between them, their distance 1."""
    left, right = faces[:, OUTER_LEFT], faces[:, OUTER_RIGHT]
    axis = (right - left) / np.linalg.norm(right - left, axis=1, keepdims=True)
    turn = np.stack([axis, np.stack([-axis[:, 1], axis[:, 0]], axis=1)], axis=1)
    moved = np.einsum("nij,nlj->nli", turn, faces - (left + right)[:, None] / 2)
    return moved / np.linalg.norm(right - left, axis=1)[:, None, None]


@pytest.fixture(scope="module")
def real_faces(real_data) -> np.ndarray:
    samples = read_samples(WFLW, real_data / "wflw", "test", quiet=True)
    return np.stack([sample.landmarks for sample in samples]).astype(np.float64)


@pytest.fixture(scope="module")
def synthetic():
    """(68 points, 98 points, pose) of 75 mild and 25 hard faces."""
    drawn = [render_face(0, i, "mild" if i < 75 else "hard", size=64) for i in range(100)]
    parts = ("landmarks_68", "landmarks_98", "pose")
    return tuple(np.stack([getattr(face, part) for face in drawn]).astype(np.float64) for part in parts)


@pytest.fixture(params=["real", "synthetic"])
def faces(request) -> np.ndarray:
    """Faces in 98 points; of the synthetic ones those seen from the front, as the asymmetry of few would show."""
    if request.param == "real":
        return request.getfixturevalue("real_faces")
    _, landmarks, angles = request.getfixturevalue("synthetic")
    return landmarks[np.abs(angles[:, 0]) < 20]


# --- flip map ---------------------------------------------------------------------------------------------------------


def test_the_mirrored_mean_shape_is_the_mean_shape(faces):
    shape = upright(faces).mean(axis=0)
    distances = np.linalg.norm(shape - shape[FLIP] * [-1, 1], axis=1)
    print(f"{len(faces)} faces: {100 * distances.mean():.1f} % inter-ocular on average, at most {distances.max():.1%}")
    assert distances.max() < 0.05
    assert distances.mean() < 0.03


def test_every_point_of_the_flip_map_is_the_nearest_one_in_the_mirror(faces):
    """All 98: a pair confused with its neighbour would fit within a few per cent as well, but not best."""
    shape = upright(faces).mean(axis=0)
    distances = np.linalg.norm(shape[:, None] - shape * [-1, 1], axis=2)
    assert distances.argmin(axis=1).tolist() == FLIP.tolist()


# --- eyes -------------------------------------------------------------------------------------------------------------


def test_outer_eye_corners_are_the_outermost_points_of_the_eyes(faces):
    turned = upright(faces)
    eyes = [turned[:, list(eye), 0] for eye in EYES]
    assert (eyes[0].mean(axis=0).argmin(), eyes[1].mean(axis=0).argmax()) == (OUTER_LEFT - 60, OUTER_RIGHT - 68)
    assert (eyes[0].mean(axis=0).argmax(), eyes[1].mean(axis=0).argmin()) == (64 - 60, 68 - 68)  # the inner ones
    shares = (eyes[0].argmin(axis=1) == 0).mean(), (eyes[1].argmax(axis=1) == 4).mean()
    print(f"on {shares[0]:.1%} and {shares[1]:.1%} of {len(faces)} faces")
    assert min(shares) > 0.95  # profile faces have an eye on the edge
    outermost = turned[:, 60:76, 0]
    assert (outermost.mean(axis=0).argmin(), outermost.mean(axis=0).argmax()) == (0, 12)  # of both eyes together


def test_pupils_lie_in_their_eyes(faces):
    lengths = metrics.normaliser(faces, WFLW)

    def inside(eye: range, pupil: int) -> np.ndarray:
        depth = [cv2.pointPolygonTest(face[list(eye)].astype(np.float32), face[pupil].tolist(), True) for face in faces]
        return np.array(depth) / lengths

    (left,), (right,) = WFLW.pupils
    for eye, own, other in ((EYES[0], left, right), (EYES[1], right, left)):
        depth = inside(eye, own)
        print(f"pupil {own}: inside on {(depth >= 0).mean():.1%} of {len(faces)}, at most {-depth.min():.1%} outside")
        assert (depth >= 0).mean() > 0.85  # nearly closed eyes and profiles are annotated beside it
        assert depth.min() > -0.12
        assert inside(eye, other).max() < -0.1


def test_the_normalisers_are_the_lengths_of_these_points(real_faces):
    """The predecessor's WFLW code divides by the distance of points 96 and 97: our inter-pupil."""
    for face in real_faces:
        predecessor = float(np.hypot(*(face[96] - face[97])))
        assert metrics.normaliser(face[None], WFLW, "inter-pupil")[0] == pytest.approx(predecessor)
        corners = float(np.hypot(*(face[60] - face[72])))
        assert metrics.normaliser(face[None], WFLW)[0] == pytest.approx(corners)
    ratio = metrics.normaliser(real_faces, WFLW) / metrics.normaliser(real_faces, WFLW, "inter-pupil")
    print(f"inter-ocular is {np.median(ratio):.2f} x inter-pupil (median)")
    assert 1.2 < np.median(ratio) < 1.7


# --- pose -------------------------------------------------------------------------------------------------------------


def residuals(faces: np.ndarray, spec) -> np.ndarray:
    """How far PnP leaves each rigid point from its place, over the inter-ocular distance: (N, P)."""
    ours, theirs = map(list, zip(*spec.rigid_points))
    points, found = np.ascontiguousarray(pose.mean_face()[theirs]), []
    for face in faces:
        rays = pose.to_rays(face)
        rotation, shift = pose.solve_pnp(points, rays[ours])
        seen = points @ rotation.T + shift
        away = np.linalg.norm(seen[:, :2] / seen[:, 2:] - rays[ours], axis=1)
        found.append(away / np.linalg.norm(rays[OUTER_LEFT] - rays[OUTER_RIGHT]))
    return np.array(found)


def test_pose_from_98_points_is_that_from_68(synthetic):
    points_68, points_98, exact = synthetic
    ours, theirs = pose.estimate_pose(points_98, WFLW), pose.estimate_pose(points_68, S300W)
    away = np.abs(ours - theirs)
    print(f"98 against 68 points: {away.mean():.3f} deg on average, at most {away.max():.2f}")
    assert away.max() < 0.2
    errors = [np.abs(angles - exact).mean(axis=0) for angles in (ours, theirs)]
    print(f"against the exact pose: {errors[0].round(2)} and {errors[1].round(2)} deg")
    assert max(errors[0]) < 3
    assert errors[0] == pytest.approx(errors[1], abs=0.02)


def test_the_rigid_points_of_real_faces_fit_the_mean_face(real_faces):
    """Each of the 18, the brow middles included, is as near to its 3D point as a face of another person is."""
    medians = np.median(residuals(real_faces, WFLW), axis=0)
    print(f"median residual of the points: {medians.min():.1%} to {medians.max():.1%} inter-ocular")
    assert medians.max() < 0.09
    unmapped = replace(WFLW, rigid_points=tuple((theirs, theirs) for _, theirs in WFLW.rigid_points))
    assert np.median(residuals(real_faces, unmapped)) > 2 * np.median(medians)


def test_left_and_right_of_the_rigid_points_are_not_swapped(real_faces):
    """A swapped face fits nearly as well, as one seen from behind and upside down: the angles tell."""
    swapped = replace(WFLW, rigid_points=tuple((int(FLIP[ours]), theirs) for ours, theirs in WFLW.rigid_points))
    right, wrong = (np.median(np.abs(pose.estimate_pose(real_faces, spec)), axis=0) for spec in (WFLW, swapped))
    print(f"median |yaw|, |pitch|, |roll|: {right.round(1)}, swapped {wrong.round(1)} deg")
    assert max(right) < 20
    assert max(wrong) > 90


@pytest.mark.parametrize("place", range(18))
def test_one_wrong_rigid_point_shows(real_faces, place):
    """Any of the 18 moved along by two points of the 98 fits the mean face worse."""
    ours, theirs = WFLW.rigid_points[place]
    right = np.median(residuals(real_faces, WFLW).mean(axis=1))
    for moved in {max(0, ours - 2), min(97, ours + 2)}:
        points = (*WFLW.rigid_points[:place], (moved, theirs), *WFLW.rigid_points[place + 1 :])
        assert np.median(residuals(real_faces, replace(WFLW, rigid_points=points)).mean(axis=1)) > right


def test_pose_of_mirrored_real_faces(real_faces):
    angles = pose.estimate_pose(real_faces, WFLW)
    mirrored = pose.estimate_pose(real_faces[:, FLIP] * [-1, 1], WFLW)
    away = np.abs((mirrored - angles * [-1, 1, -1] + 180) % 360 - 180)
    print(f"at most {away.max():.3f} deg")
    assert np.median(away) < 0.05
    assert away.max() < 2


# --- subsets ----------------------------------------------------------------------------------------------------------


def test_subsets_of_the_real_faces(real_data):
    samples, faces = find_truth({}, WFLW, real_data / "wflw")
    counts = {name: int(mask.sum()) for name, mask in faces.subsets.items()}
    expected = {"largepose": 21, "expression": 32, "illumination": 44, "makeup": 7, "occlusion": 43, "blur": 43}
    assert counts == {"test": 126} | expected
    assert len(samples) == len(faces.names) == 126
    turned = np.abs(faces.pose[:, 0])
    large = faces.subsets["largepose"]
    print(f"mean |yaw| {turned[large].mean():.0f} deg in largepose, {turned[~large].mean():.0f} elsewhere")
    assert turned[large].mean() > 2 * turned[~large].mean()
