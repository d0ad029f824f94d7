"""Draws one synthetic face: a 3D head with exact landmarks and exact pose (NumPy and OpenCV only).

A head is a closed surface through the 3D mean face of `pose.py`, so its zero pose is the project's zero pose. Identity
and expression are smooth maps of space that move surface and landmarks alike. The camera is the one `pose.py` assumes.
Skin and hair are splatted with a depth buffer at half resolution; eyes, brows, lips and nostrils are drawn on the
projected landmark contours at full resolution and tested against that depth.

Face i of folder k is drawn from `default_rng([seed, k, i])`, whatever else is drawn beside it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from asmnet_tf.config import DATASETS
from asmnet_tf.geometry import landmark_box
from asmnet_tf.pose import FOCAL, angles_to_matrix, mean_face

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")  # columns of a WFLW list
_SHIFT = 4  # OpenCV draws at 1/16 pixel
_FAR = 99.0


@dataclass(frozen=True)
class SyntheticFace:
    """One rendered face.

    image: RGB uint8 (H, W, 3). landmarks_68 (68, 2), landmarks_98 (98, 2): float32, image pixels, 0-based.
    pose: float32 (3,), yaw, pitch, roll in degrees, convention of `pose.py`. attributes: the six flags of WFLW.
    """

    image: np.ndarray
    landmarks_68: np.ndarray
    landmarks_98: np.ndarray
    pose: np.ndarray
    attributes: dict[str, bool]


# --- the mean head ----------------------------------------------------------------------------------------------------

# Surface points between and around the landmarks (x, y, z of `mean_face`); those with x > 0 stand for both sides.
_SURFACE = np.array(
    [
        *((0.09, -0.25, -0.06), (0.1, -0.12, -0.06), (0.115, 0.0, -0.1), (0.1, 0.1, -0.26), (0.19, 0.15, -0.1)),  # nose
        *((0.15, 0.19, -0.17), (0.07, 0.17, -0.33), (0.25, 0.12, -0.01), (0.28, 0.0, 0.03), (0.33, -0.1, 0.06)),
        *((0.45, -0.08, 0.07), (0.6, -0.02, 0.13), (0.45, 0.14, 0.03), (0.34, 0.28, 0.01), (0.45, 0.4, 0.09)),  # cheek
        *((0.7, 0.15, 0.25), (0.64, 0.45, 0.26), (0.5, 0.65, 0.23), (0.82, -0.1, 0.42), (0.85, 0.2, 0.5)),
        *((0.68, -0.25, 0.2), (0.16, 0.36, -0.1), (0.0, 0.34, -0.165), (0.0, 0.75, -0.03), (0.2, 0.75, 0.03)),
        *((0.0, 0.9, -0.06), (0.18, 0.9, -0.01), (0.36, 0.8, 0.13), (0.0, 1.01, -0.02)),  # chin
        *((0.0, -0.36, -0.165), (0.0, -0.5, -0.16), (0.0, -0.7, -0.15), (0.3, -0.7, -0.11), (0.55, -0.65, 0.05)),
        *((0.0, -0.95, -0.06), (0.35, -0.95, -0.01), (0.62, -0.9, 0.22), (0.76, -0.55, 0.3), (0.0, -1.2, 0.12)),
        *((0.35, -1.18, 0.2), (0.0, -1.42, 0.55), (0.5, -1.28, 0.6), (0.85, -0.8, 0.65), (0.92, -0.45, 0.7)),
        *((0.0, -1.5, 1.0), (0.55, -1.34, 1.05), (0.88, -0.9, 1.1), (0.97, -0.4, 1.05), (0.93, 0.1, 1.1)),
        *((0.0, -1.25, 1.7), (0.6, -1.0, 1.65), (0.0, -0.6, 2.02), (0.65, -0.4, 1.8), (0.0, 0.1, 1.9)),
        *((0.6, 0.2, 1.6), (0.0, 0.7, 1.5), (0.5, 0.75, 1.25), (0.0, 1.08, 0.4), (0.3, 1.0, 0.5), (0.0, 1.05, 0.8)),
        *((0.6, 0.85, 0.8), (0.78, 0.6, 0.9), (0.88, 0.3, 0.95), (0.0, 1.0, 1.2)),
    ]
)
_CENTRE = np.array([0.0, -0.1, 0.8])  # the head is star-shaped around it
_ROWS, _COLUMNS, _UPSAMPLE = 72, 80, 3
# hairline: height of the lowest hair by the angle around the head, 0 in front
_HAIRLINE = np.array([(0, -0.97), (30, -0.93), (48, -0.78), (62, -0.5), (74, -0.2), (86, 0.05), (100, 0.1), (120, 0.5)])


@functools.cache
def _spline_weights(count: int, closed: bool, factor: int) -> np.ndarray:
    """Returns the (M, count) matrix that samples a Catmull-Rom curve, `factor` times as dense as its points."""
    segments = count if closed else count - 1
    place = np.arange(segments * factor + (not closed)) / factor
    k = np.minimum(place.astype(int), segments - 1)
    t = place - k
    basis = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1) / 2
    weights = np.zeros((len(place), count + 2))
    for j in range(4):
        index = (k + j - 1) % count if closed else k + j
        np.add.at(weights, (np.arange(len(place)), index), basis[:, j])
    if closed:
        return weights[:, :count]
    inner = weights[:, 1:-1].copy()  # beyond an open end the curve goes on straight: p[-1] = 2 p[0] - p[1]
    inner[:, 0] += 2 * weights[:, 0]
    inner[:, 1] -= weights[:, 0]
    inner[:, -1] += 2 * weights[:, -1]
    inner[:, -2] -= weights[:, -1]
    return inner


def _curve(points: np.ndarray, closed: bool = False, factor: int = 3) -> np.ndarray:
    return _spline_weights(len(points), closed, factor) @ points


_BROW_THICKNESS = 0.07


def base_landmarks() -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean face as 68 points (68, 3) and as 98 points (98, 3), head axes, outer eye corners 1 apart.

    The 98 points lie on smooth curves through the 68; the lower outline of a brow is 0.07 below the upper.
    """
    face = np.array(mean_face())
    points = np.empty((98, 3))
    points[:33] = _curve(face[:17], factor=2)
    points[33:38], points[42:47] = face[17:22], face[22:27]
    drop = np.array([0.0, _BROW_THICKNESS, 0.012])
    points[38:42] = points[[37, 36, 35, 34]] + drop * np.array([1.1, 1.1, 1.0, 0.8])[:, None]
    points[51:60] = face[27:36]
    for first, corners in ((60, (36, 37, 38, 39, 40, 41)), (68, (42, 43, 44, 45, 46, 47))):
        upper = face[list(corners[:4])]
        lower = face[[*corners[3:], corners[0]]]
        points[first : first + 4] = _curve(upper, factor=12)[[0, 9, 18, 27]]
        points[first + 4 : first + 8] = _curve(lower, factor=12)[[0, 9, 18, 27]]
    points[76:96] = face[48:68]
    points[96:] = [face[36:42].mean(axis=0), face[42:48].mean(axis=0)]
    points[47:51] = points[[41, 40, 39, 38]] * [-1, 1, 1]
    mirrored = points[DATASETS["wflw"].flip_map] * [-1, 1, 1]
    return face, (points + mirrored) / 2  # rounding apart, it is symmetric already; now it is exactly


_EAR = np.array(
    [
        *((0.92, -0.2, 0.8), (0.97, -0.34, 0.88), (1.05, -0.37, 1.0), (1.1, -0.26, 1.1), (1.09, -0.1, 1.1)),
        *((1.04, 0.03, 1.03), (1.0, 0.15, 0.94), (0.95, 0.17, 0.86), (0.92, 0.02, 0.8)),
    ]
)
_ANGLE = np.linspace(0, 2 * np.pi, 25)
_COS, _SIN = np.cos(_ANGLE), np.sin(_ANGLE)
_CIRCLE = np.stack([_COS, _SIN, 0 * _COS], axis=1)
_RIM_X, _RIM_Y = (np.sign(v) * np.abs(v) ** 0.7 for v in (_COS, _SIN))  # of glasses: between ellipse and rectangle
_PARTS = {  # what is drawn on the skin besides the landmarks: the right half of the image, on the mean head
    "ear": _EAR,
    "ear_inside": (_EAR - _EAR.mean(axis=0)) * 0.6 + _EAR.mean(axis=0) + [0.02, -0.02, 0.0],
    "nostril": np.array([0.08, 0.228, -0.2]) + _CIRCLE * [0.046, 0.022, 0] + np.outer(_SIN, [0, 0, 0.026]),
    "wing": np.array([(0.15, 0.09, -0.1), (0.195, 0.13, -0.075), (0.203, 0.19, -0.085), (0.165, 0.235, -0.13)]),
    "fold": np.array([(0.235, 0.2, -0.03), (0.31, 0.32, -0.01), (0.37, 0.46, 0.06)]),
    "rim": np.stack([0.35 + 0.225 * _RIM_X, -0.25 + 0.16 * _RIM_Y, -0.06 + 0.03 * _RIM_X], axis=1),
    "arm": np.array([(0.57, -0.3, -0.02), (0.93, -0.28, 0.5), (1.02, -0.25, 0.9)]),
    "bridge": np.array([(0.13, -0.28, -0.17), (0.0, -0.31, -0.22)]),
}
_BELLS = {  # smooth bumps on both sides of the face: x, y, width, height. Identity and expression are made of them.
    "corner": (0.3, 0.53, 0.14, 0.13),
    "lips": (0.0, 0.53, 0.37, 0.14),
    "lower_lip": (0.0, 0.55, 0.14, 0.13),
    "cheek": (0.45, 0.15, 0.25, 0.2),
    "brow": (0.36, -0.5, 0.33, 0.14),
    "brow_inner": (0.12, -0.45, 0.12, 0.1),
    "chin": (0.0, 1.0, 0.4, 0.2),
    "eye": (0.355, -0.262, 0.2, 0.13),
    "nose": (0.0, 0.17, 0.24, 0.14),
    "tip": (0.0, 0.12, 0.13, 0.17),
    "ridge": (0.0, -0.1, 0.08, 0.15),
}


@dataclass(frozen=True)
class _Model:
    """All points that a face consists of, mean face, and the smooth fields that move them."""

    points: np.ndarray  # (N, 3) float32: 68 landmarks, 98 landmarks, parts, surface
    slices: dict[str, slice]  # name -> rows of `points`
    bells: dict[str, np.ndarray]  # (N,) each
    outwards: np.ndarray  # (rows, columns, 3) unit vectors of the surface grid
    hair: np.ndarray  # (rows, columns) height above the hairline; > 0 is hair
    dense: dict[str, np.ndarray]  # fields over the surface, flat, at the resolution of the splats
    steep: np.ndarray  # flat indices of the dense points on nose, mouth and chin


def _smooth(value: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _bump(points: np.ndarray, x: float, y: float, wide: float, high: float) -> np.ndarray:
    """Bell of points (..., 3) around (+-x, y), zero at the back of the head."""
    bell = np.exp(-(((np.abs(points[..., 0]) - x) / wide) ** 2) - ((points[..., 1] - y) / high) ** 2)
    return bell * (points[..., 2] < 0.9)


def _upsample(grid: np.ndarray) -> np.ndarray:
    size = (_COLUMNS * _UPSAMPLE, _ROWS * _UPSAMPLE)
    return cv2.resize(np.ascontiguousarray(grid, np.float32), size, interpolation=cv2.INTER_LINEAR)


@functools.cache
def _model() -> _Model:
    mirrored = _SURFACE[_SURFACE[:, 0] > 0] * [-1, 1, 1]
    known = np.concatenate([mean_face()[:60], _SURFACE, mirrored]) - _CENTRE  # without the inner lips
    radius = np.linalg.norm(known, axis=1)
    directions = known / radius[:, None]

    def kernel(ours: np.ndarray) -> np.ndarray:  # thin-plate spline over chords of the sphere, with a linear part
        squared = np.maximum(2 - 2 * ours @ directions.T, 1e-12)
        return squared * np.log(squared)

    ones = np.concatenate([np.ones((len(known), 1)), directions], axis=1)
    system = np.block([[kernel(directions) + 1e-4 * np.eye(len(known)), ones], [ones.T, np.zeros((4, 4))]])
    solution = np.linalg.solve(system, np.concatenate([radius, np.zeros(4)]))
    s, t = np.linspace(-1, 1, _COLUMNS), np.linspace(-1, 1, _ROWS)
    around, up = np.meshgrid(np.pi * (0.45 * s + 0.55 * s**3), np.pi / 2 * (0.75 * t + 0.25 * t**3))
    outwards = np.stack([np.sin(around) * np.cos(up), np.sin(up), -np.cos(around) * np.cos(up)], axis=-1)
    flat = outwards.reshape(-1, 3)
    grid = np.concatenate([kernel(flat), np.ones((len(flat), 1)), flat], axis=1) @ solution
    vertices = flat * grid[:, None]
    vertices = vertices.reshape(_ROWS, _COLUMNS, 3) + _CENTRE

    p = _upsample(vertices)
    hair = np.interp(np.degrees(np.abs(around)), *_HAIRLINE.T) - vertices[..., 1]
    x, y = np.abs(p[..., 0]), p[..., 1]
    jaw = _smooth(y - 0.25 - 0.55 * _smooth(-x, -0.8, -0.25) * _smooth(-y, -0.66, -0.4), 0.0, 0.2)
    jaw *= _smooth(x + y, 0.62, 0.9) * _smooth(-p[..., 2], -0.9, -0.6)
    moustache = _bump(p, 0.16, 0.37, 0.15, 0.06) + 0.4 * _bump(p, 0.36, 0.55, 0.06, 0.14)
    shadow = 0.3 * _bump(p, 0.22, -0.27, 0.1, 0.1) + 0.14 * _bump(p, 0.35, -0.28, 0.17, 0.12)
    shadow += 0.3 * _bump(p, 0.0, 0.3, 0.13, 0.05) + 0.2 * _bump(p, 0.0, 0.735, 0.14, 0.05)
    shadow += 0.14 * _bump(p, 0.24, 0.27, 0.05, 0.1) + 0.5 * _smooth(y, 0.95, 1.15) * _smooth(p[..., 2], 0.15, 0.5)
    noise = np.random.default_rng(0).normal(size=p.shape[:2])
    dense = {
        "hair": _upsample(hair),
        "jaw": np.clip(jaw, 0, 1),
        "moustache": np.clip(moustache, 0, 1),
        "shadow": shadow,
        "blush": _bump(p, 0.5, 0.12, 0.2, 0.16) + 0.7 * _bump(p, 0.0, 0.13, 0.14, 0.1),
        "lid": _bump(p, 0.36, -0.34, 0.18, 0.075),
        "strands": cv2.GaussianBlur(noise, (0, 0), sigmaX=0.8, sigmaY=7) * 4,
        "mottle": cv2.GaussianBlur(noise, (0, 0), 2.5) * 6,
    }
    dense = {name: np.ascontiguousarray(field, np.float32).reshape(-1) for name, field in dense.items()}
    sides = {f"{name}{s:+d}": part * [s, 1, 1] for name, part in _PARTS.items() for s in (-1, 1)}
    face, more = base_landmarks()
    pieces = {"landmarks": np.concatenate([face, more]), **sides, "surface": vertices.reshape(-1, 3)}
    slices, end = {}, 0
    for name, piece in pieces.items():
        slices[name] = slice(end, end + len(piece))
        end += len(piece)
    points = np.concatenate(list(pieces.values())).astype(np.float32)
    bells = {name: _bump(points, *bell) for name, bell in _BELLS.items()}
    # the lower jaw turns about the ears; between the lips the motion sets in at once, on the cheeks gradually
    half = 0.022 + 0.5 * np.maximum(0.0, np.abs(points[:, 0]) - 0.27)
    bells["jaw"] = _smooth((points[:, 1] - 0.519) / half, -1.0, 1.0) * _smooth(-points[:, 2], -0.85, -0.55)
    steep = ((x < 0.24) & (y > -0.3) | (x < 0.6) & (y > 0.4)) & (p[..., 2] < 0.3)
    return _Model(points, slices, bells, outwards, hair, dense, np.flatnonzero(steep))


# --- who it is, what it does, how it is seen --------------------------------------------------------------------------

_SKINS = np.reshape(
    [238, 198, 174, 230, 184, 154, 214, 168, 134, 190, 138, 102, 146, 98, 68, 102, 66, 46, 72, 46, 36], (-1, 3)
)
_HAIRS = np.reshape(
    [28, 24, 24, 52, 36, 28, 92, 60, 38, 140, 96, 56, 196, 156, 98, 128, 58, 34, 150, 148, 146], (-1, 3)
)
_IRISES = [(62, 38, 22), (92, 60, 32), (98, 108, 62), (78, 112, 142), (108, 124, 132)]


def _muted(rng: np.random.Generator, low: float, high: float, count: int | None = None) -> np.ndarray:
    """Draws colours (3,) or (count, 3), most of them not gaudy."""
    colours = rng.uniform(low, high, (count or 1, 3))
    grey = colours.mean(axis=1, keepdims=True)
    colours = grey + (colours - grey) * rng.uniform(0.15, 0.8, (count or 1, 1))
    return colours if count else colours[0]


def _draw_person(rng: np.random.Generator, hard: bool) -> dict:
    """Draws all random properties of a face, in a fixed order."""
    normal = rng.normal
    wild = 1.4 if hard else 1.0
    p: dict = {
        "scale": (1 + normal(size=3) * [0.045, 0.04, 0.03]).astype(np.float32),
        "shape": np.clip(normal(size=14), -2, 2),
        "waves": (
            rng.uniform([-0.8, -0.7, -0.3], [0.8, 1.0, 0.4], (8, 3)).astype(np.float32),
            (normal(size=(8, 3)) * 0.012).astype(np.float32),
        ),
        "brow_thickness": rng.uniform(0.045, 0.09),
    }
    talks = rng.random()
    p["jaw"] = (
        rng.uniform(-3.0, -2.0) if talks < 0.45 else wild * rng.uniform(-2, 6) if talks < 0.75 else rng.uniform(5, 17)
    )
    p["smile"] = normal() * 0.5 * wild if rng.random() < 0.5 else rng.uniform(0.3, 1.4)
    p["pucker"] = max(0.0, normal() - 1.2) * (p["smile"] < 0.3)
    p["brow_raise"], p["frown"] = normal() * 0.025 * wild, abs(normal()) * 0.01 * wild
    blink = rng.random()
    p["closed"] = rng.uniform(0.85, 1.0) if blink < 0.05 * wild else float(np.clip(normal() * 0.15 + 0.12, -0.15, 0.65))
    p["gaze"] = np.clip(normal(size=2), -1.8, 1.8) * [0.035, 0.015]
    if hard:
        p["pose"] = rng.uniform([-60, -30, -30], [60, 30, 30])
    else:
        p["pose"] = np.array([rng.uniform(-60, 60) * rng.uniform(0.2, 1) ** 0.7, normal() * 9, normal() * 8])
        p["pose"] = np.clip(p["pose"], [-60, -30, -30], [60, 30, 30])
    tone = rng.uniform(0, len(_SKINS) - 1.001)
    low = int(tone)
    p["skin"] = np.array(_SKINS[low]) * (1 - tone + low) + np.array(_SKINS[low + 1]) * (tone - low)
    p["skin"] *= 1 + normal(size=3) * 0.02
    hair = int(rng.choice(len(_HAIRS), p=[0.28, 0.24, 0.16, 0.1, 0.08, 0.05, 0.09]))
    if tone > 3.5 and hair not in (0, 6):
        hair = 1
    p["hair"] = np.clip(np.array(_HAIRS[hair]) * rng.uniform(0.8, 1.15), 8, 235)
    p["style"] = str(rng.choice(["short", "full", "long", "fringe", "receding", "bald", "hat"], p=_STYLE_SHARES))
    p["hat"], p["cloth"] = (_muted(rng, 25, 225) for _ in range(2))
    p["beard"] = str(rng.choice(["none", "stubble", "moustache", "full"], p=[0.64, 0.14, 0.08, 0.14]))
    if p["style"] in ("long", "fringe"):
        p["beard"] = "none"
    p["make_up"] = p["beard"] == "none" and rng.random() < 0.22
    p["lips"] = rng.uniform([130, 15, 30], [215, 60, 90]) if p["make_up"] else None
    p["lid_colour"] = rng.uniform([60, 40, 50], [150, 110, 170])
    p["iris"] = np.array(_IRISES[0 if tone > 3.5 else rng.integers(len(_IRISES))]) * rng.uniform(0.8, 1.2)
    p["glasses"] = str(rng.choice(["none", "clear", "dark"], p=[0.82, 0.13, 0.05]))
    p["frame"] = rng.uniform(10, 90) * np.ones(3) + rng.uniform(0, 40, 3)
    p["harsh"] = rng.random() < (0.4 if hard else 0.12)
    side = rng.uniform(-1, 1) * (2.4 if p["harsh"] else 0.8)
    light = np.array([side, rng.uniform(-1.1, 0.25), -1.0])
    p["light"] = light / np.linalg.norm(light)
    p["ambient"] = rng.uniform(0.1, 0.28) if p["harsh"] else rng.uniform(0.38, 0.62)
    warmth = 0.01 + rng.normal() * 0.045
    p["tint"] = np.array([1 + warmth, 1.0, 1 - warmth]) * (
        rng.uniform(0.6, 1.1) if p["harsh"] else rng.uniform(0.86, 1.04)
    )
    p["occluder"] = rng.random() < (0.45 if hard else 0.1)
    p["blur"] = float(rng.uniform(1.2, 2.4)) if rng.random() < (0.25 if hard else 0.08) else float(rng.uniform(0, 0.6))
    p["noise"] = int(rng.integers(0, 6))
    for name in ("skin", "hair", "hat", "tint", "light", "lid_colour"):
        p[name] = p[name].astype(np.float32)  # these meet large arrays
    return p


_STYLE_SHARES = [0.3, 0.18, 0.2, 0.12, 0.08, 0.07, 0.05]


def _deform(p: dict) -> np.ndarray:
    """Gives the mean face the expression and then the proportions of one person: (N, 3), rows as in `_Model.points`."""
    model = _model()
    bell = model.bells
    q = model.points.copy()
    landmarks = q[model.slices["landmarks"]]
    for uppers, lowers in (  # lids meet on a line a little above the lower lid
        *(((37, 38), (41, 40)), ((43, 44), (47, 46))),
        *(((129, 130, 131), (135, 134, 133)), ((137, 138, 139), (143, 142, 141))),
    ):
        upper, lower = landmarks[list(uppers)], landmarks[list(lowers)]
        line = 0.25 * upper + 0.75 * lower
        landmarks[list(uppers)] = upper + p["closed"] * (line - upper)
        landmarks[list(lowers)] = lower + max(p["closed"], 0) * (line - lower)
    landmarks[[106, 107, 108, 109, 115, 116, 117, 118], 1] += p["brow_thickness"] - _BROW_THICKNESS
    landmarks[-2:] += [
        p["gaze"][0],
        p["gaze"][1] + 0.008,
        -0.03,
    ]  # pupils: where the eyes look, on the front of the eyeball

    side = np.sign(q[:, 0])
    angle = np.radians(p["jaw"]) * bell["jaw"]
    down, back = q[:, 1] + 0.05, q[:, 2] - 0.8
    q[:, 1] += down * (np.cos(angle) - 1) - back * np.sin(angle)
    q[:, 2] += back * (np.cos(angle) - 1) + down * np.sin(angle)
    q[:, 0] += side * (0.055 * p["smile"] * bell["corner"] - 0.6 * p["frown"] * bell["brow_inner"])
    q[:, 0] *= 1 - 0.3 * p["pucker"] * bell["lips"]
    q[:, 1] += p["smile"] * (0.018 * bell["lower_lip"] - 0.05 * bell["corner"] - 0.02 * bell["cheek"])
    q[:, 1] += p["frown"] * bell["brow_inner"] - p["brow_raise"] * bell["brow"]
    q[:, 2] += 0.03 * p["smile"] * bell["corner"] - 0.06 * p["pucker"] * bell["lips"]

    a = p["shape"]
    x, y = np.abs(q[:, 0]), q[:, 1]
    move = np.empty_like(q)
    move[:, 0] = x * (0.06 * a[0] * _smooth(y, 0.1, 1.0) + 0.1 * a[2] * bell["chin"])
    move[:, 0] += 0.03 * a[1] * _smooth(x, 0.4, 0.9) * np.exp(-((y / 0.4) ** 2))
    move[:, 0] += bell["eye"] * (0.09 * a[5] * (x - 0.355) + 0.018 * a[6])
    move[:, 0] += x * (0.16 * a[8] * bell["nose"] + 0.07 * a[11] * bell["lips"])
    move[:, 0] *= side
    move[:, 1] = 0.05 * a[3] * _smooth(y, 0.6, 1.1) + 0.02 * a[4] * _smooth(y, 0.3, 0.5)
    move[:, 1] += bell["eye"] * (0.16 * a[5] * (y + 0.262) + 0.12 * a[7] * (x - 0.355)) + 0.022 * a[9] * bell["nose"]
    move[:, 1] += 0.14 * a[12] * (y - 0.53) * bell["lips"] - 0.025 * a[13] * bell["brow"]
    move[:, 2] = a[10] * (-0.035 * bell["tip"] - 0.03 * bell["ridge"])
    centres, amplitudes = p["waves"]
    away = [sum((v - c) ** 2 for v, c in zip(q.T, centre)) for centre in centres]
    return (q + move + np.exp(np.float32(-10) * np.stack(away, axis=1)) @ amplitudes) * p["scale"]


@dataclass(frozen=True)
class _View:
    """Camera of `pose.py`: rotation (3, 3), shift (3,), focal length and centre in pixels."""

    rotation: np.ndarray
    shift: np.ndarray
    focal: float
    centre: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Head points (..., 3) -> x, y in pixels and depth z, (..., 3)."""
        q = points @ self.rotation.T + self.shift
        q[..., :2] = q[..., :2] / q[..., 2:] * self.focal + self.centre
        return q


def _look_at(points: np.ndarray, pose_deg: np.ndarray, side: float, centre: np.ndarray) -> _View:
    """Returns the view in which the box of `points` (68, 3) is centred on `centre` and its longer side is `side` px."""
    rotation = angles_to_matrix(pose_deg)
    turned = points @ rotation.T
    shift = np.array([0.0, 0.0, FOCAL * 1.9])
    for _ in range(12):  # a fixed point: depth differs between landmarks, so the box moves as the head does
        q = turned + shift
        rays = q[:, :2] / q[:, 2:]
        low, high = rays.min(axis=0), rays.max(axis=0)
        shift[:2] -= (low + high) / 2 * shift[2]
        shift[2] *= (high - low).max() * FOCAL
    return _View(rotation, shift, FOCAL * side, np.asarray(centre, np.float64))


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Canvas:
    """An RGB uint8 image, and the depth of what was drawn, which the head may hide."""

    def __init__(self, image: np.ndarray):
        self.image = image
        self.depth = np.full(image.shape[:2], -_FAR, np.float32)  # nothing drawn: never hidden

    def fill(
        self,
        shapes: Sequence[np.ndarray],
        colour: np.ndarray,
        alpha: float = 1.0,
        soft: float = 0.0,
        clip: np.ndarray | None = None,
        line: float = 0.0,
        depth: bool = True,
    ) -> None:
        """Blends `colour` into the union of polygons (N, 2 or 3), or along them if `line` is a width in pixels."""
        every = np.concatenate(shapes)
        low, high = every.min(axis=0).tolist(), every.max(axis=0).tolist()
        height, width = self.image.shape[:2]
        margin = 2 + line + 3 * soft
        left, top = max(0, int(low[0] - margin)), max(0, int(low[1] - margin))
        right, bottom = min(int(high[0] + margin) + 2, width), min(int(high[1] + margin) + 2, height)
        if right <= left or bottom <= top:
            return
        moved = np.rint((every[:, :2] - (left, top)) * (1 << _SHIFT)).astype(np.int32)
        ends = list(itertools.accumulate(map(len, shapes)))
        pixels = [moved[end - len(shape) : end] for shape, end in zip(shapes, ends)]
        if depth and shapes[0].shape[1] == 3:
            part = self.depth[top:bottom, left:right]
            for shape, outline in zip(shapes, pixels):
                z = float(shape[0, 2] + shape[len(shape) // 2, 2]) / 2
                if not line:
                    cv2.fillPoly(part, [outline], z, cv2.LINE_8, _SHIFT)
                cv2.polylines(part, [outline], not line, z, 3 + round(line), cv2.LINE_8, _SHIFT)
        part = self.image[top:bottom, left:right]
        simple = alpha >= 1 and not soft and clip is None
        mask = part if simple else np.zeros(part.shape[:2], np.uint8)
        value = np.minimum(colour, 255).tolist() if simple else 255
        if line:
            cv2.polylines(mask, pixels, False, value, max(1, round(line)), cv2.LINE_AA, _SHIFT)
        else:
            for outline in pixels:  # together, overlapping polygons would cancel
                cv2.fillPoly(mask, [outline], value, cv2.LINE_AA, _SHIFT)
        if simple:
            return
        if clip is not None:
            window = np.zeros_like(mask)
            outline = np.rint((clip[:, :2] - (left, top)) * (1 << _SHIFT)).astype(np.int32)
            cv2.fillPoly(window, [outline], 255, cv2.LINE_AA, _SHIFT)
            mask = cv2.multiply(mask, window, scale=1 / 255)
        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft)
        weight = mask[..., None] * np.float32(alpha / 255)
        part[:] = part + (np.minimum(colour, 255).astype(np.float32) - part) * weight + 0.5

    def strip(self, upper: np.ndarray, lower: np.ndarray, colour: np.ndarray, alpha: float, soft: float) -> None:
        """Fills the band between two curves (N, 3), without the pieces that are turned away from the camera."""
        quads = np.stack([upper[:-1], upper[1:], lower[1:], lower[:-1]], axis=1)
        after = np.roll(quads, -1, axis=1)
        area = (quads[..., 0] * after[..., 1] - after[..., 0] * quads[..., 1]).sum(axis=1)
        if (area > 0).any():
            self.fill(list(quads[area > 0]), colour, alpha, soft)


def _draw_head(
    p: dict, view: _View, surface: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns colour uint8 (H, W, 3), coverage and depth float32 (H, W) of skin and hair."""
    model = _model()
    hair_shift = {"receding": -0.3, "fringe": 0.24, "hat": 0.12, "full": 0.03}.get(p["style"], 0.0)
    thick = {"bald": 0.0, "receding": 0.03, "short": 0.06, "hat": 0.13}.get(p["style"], 0.15)
    vertices = surface.reshape(_ROWS, _COLUMNS, 3)
    vertices = vertices + model.outwards * (thick * _smooth(model.hair + hair_shift, -0.04, 0.25))[..., None]
    screen = view.project(vertices)
    space = vertices @ view.rotation.T + view.shift
    normal = np.cross(np.gradient(space, axis=0), np.gradient(space, axis=1))
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    facing = (normal * space).sum(-1) / np.linalg.norm(space, axis=-1)
    diffuse = np.maximum(normal @ p["light"] * 0.85 + 0.15, 0)
    half = p["light"] + [0, 0, -1]
    shine = np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 24
    x, y, z, facing = (_upsample(plane).reshape(-1) for plane in (*np.moveaxis(screen, -1, 0), facing))
    light = _upsample(np.stack([diffuse, shine], axis=-1)).reshape(-1, 2)

    rows, columns = (height + 1) // 2, (width + 1) // 2
    front = np.flatnonzero(facing < 0.03)
    steep = model.steep[facing[model.steep] < 0.03]
    x, y = (x - 0.5) / 2, (y - 0.5) / 2  # pixels of the half-sized image
    # seen from the side, nose and open mouth are steep and their splats lie apart: there they are 2 x 2 pixels
    corner_x, corner_y = (np.floor(v[steep]).astype(np.int32) for v in (x, y))
    which = np.concatenate([front, steep, steep, steep, steep])
    column = np.concatenate([np.rint(x[front]).astype(np.int32), corner_x, corner_x + 1, corner_x, corner_x + 1])
    row = np.concatenate([np.rint(y[front]).astype(np.int32), corner_y, corner_y, corner_y + 1, corner_y + 1])
    depth = z[which]
    near, far = depth.min(), depth.max()
    rank = ((far - depth) * (65535 / (far - near))).astype(np.uint16)  # 16 bits: NumPy sorts these by radix
    order = np.argsort(rank, kind="stable")
    order = order[((column >= 0) & (column < columns) & (row >= 0) & (row < rows))[order]]
    index = np.full((rows, columns), -1, np.int64)
    index.reshape(-1)[(row * columns + column)[order]] = which[order]  # the nearest comes last and stays
    pixels = np.flatnonzero(index.reshape(-1) >= 0)
    at = index.reshape(-1)[pixels]

    field = {name: values[at] for name, values in model.dense.items()}
    albedo = np.ones((len(at), 3), np.float32) * p["skin"].astype(np.float32)
    albedo += field["mottle"][:, None] * np.float32([2.0, 1.5, 1.5])
    albedo += field["blush"][:, None] * np.float32([3, -7, -6] * p["skin"] / 200 * (2.2 if p["make_up"] else 1.0))
    if p["make_up"]:
        albedo += (p["lid_colour"] * p["skin"].mean() / 200 - albedo) * (0.5 * field["lid"])[:, None]
    stubble = {"none": 0.0, "stubble": 0.3, "moustache": 0.12, "full": 0.85}[p["beard"]]
    if stubble:
        share = np.maximum(
            stubble * field["jaw"], (0.85 if p["beard"] == "moustache" else stubble) * field["moustache"]
        )
        grain = field["strands"] if p["beard"] == "full" else field["mottle"]
        share = np.clip(share * (1 + 0.2 * grain), 0, 0.95)
        albedo += (p["hair"] * 0.8 - albedo) * share[:, None]
    gloss = np.full(len(at), 0.08 * p["skin"].mean() / 200 + 0.05)
    if p["style"] != "bald":
        ragged = 0.0 if p["style"] == "hat" else 0.035
        share = _smooth(field["hair"] + hair_shift + ragged * field["strands"], -0.03, 0.05)
        colour = p["hat"] if p["style"] == "hat" else p["hair"]
        weave = 0.05 if p["style"] == "hat" else 0.22
        strands = np.maximum(colour * (1 + weave * field["strands"][:, None]), 0)
        albedo += (strands - albedo) * share[:, None]
        gloss *= 1 - 0.6 * share
    lit = (p["ambient"] + (1.03 - 0.95 * p["ambient"]) * light[at, 0]) * (1 - field["shadow"])
    lit = np.maximum(lit, 0)
    colour = albedo * np.stack([lit**0.88, lit, lit**1.06], axis=-1) + (255 * gloss * light[at, 1])[:, None]
    rgb = np.zeros((rows, columns, 3), np.uint8)
    cover, depth = np.zeros((rows, columns), np.float32), np.full((rows, columns), _FAR, np.float32)
    rgb.reshape(-1, 3)[pixels] = np.minimum(colour * p["tint"], 255)
    cover.reshape(-1)[pixels] = 1
    depth.reshape(-1)[pixels] = z[at]
    # colours bleed outwards before enlarging, so that the head has no dark rim
    spread, share = cv2.blur(rgb, (5, 5)), cv2.blur(cover, (5, 5))
    rim = (cover == 0) & (share > 0)
    rgb[rim] = np.minimum(spread[rim] / share[rim][:, None], 255)
    square = np.ones((3, 3), np.uint8)  # holes between splats are closed in the same way
    cover = cv2.morphologyEx(cover, cv2.MORPH_CLOSE, square)
    depth = cv2.morphologyEx(depth, cv2.MORPH_OPEN, square)
    size = (columns * 2, rows * 2)
    rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR)[:height, :width]
    cover = cv2.resize(cv2.GaussianBlur(cover, (0, 0), 0.8), size)[:height, :width]
    depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)[:height, :width]
    return rgb, np.minimum(np.maximum(cover * 2.2 - 0.6, 0), 1), depth


def _is_front(contour: np.ndarray) -> bool:
    """Says whether a contour (N, 3) that runs clockwise on the face is seen from its front."""
    after = np.roll(contour, -1, axis=0)
    return float((contour[:, 0] * after[:, 1] - after[:, 0] * contour[:, 1]).sum()) > 0


class _Painter:
    """Draws the features of one face on a canvas."""

    def __init__(self, canvas: _Canvas, p: dict, view: _View, points: np.ndarray, rng: np.random.Generator):
        self.canvas, self.p, self.view, self.rng = canvas, p, view, rng
        self.solid = points[68 : 68 + 98]  # the 98, head axes
        self.screen = view.project(points[: _model().slices["surface"].start])
        self.px = self.screen[68 : 68 + 98]
        self.unit = float(view.focal / self.px[:, 2].mean())  # pixels per unit of length

    def part(self, name: str, side: int) -> np.ndarray:
        """Returns a part of the face in the image, (N, 3); side -1 is the image's left."""
        return self.screen[_model().slices[f"{name}{side:+d}"]]

    def light(self, pixel: np.ndarray) -> np.ndarray:
        """Returns how bright the skin is drawn at a pixel, as factors (3,)."""
        height, width = self.canvas.image.shape[:2]
        x, y = min(max(int(pixel[0]), 0), width - 1), min(max(int(pixel[1]), 0), height - 1)
        return np.clip(self.canvas.image[y, x] / self.p["skin"], 0.1, 1.25)

    def ears(self) -> None:
        if self.p["style"] in ("long", "hat"):
            return
        for side in (-1, 1):
            normal = self.view.rotation @ np.array([side * 0.6, 0, -0.8])
            lit = self.p["ambient"] + (1.03 - 0.95 * self.p["ambient"]) * max(0.0, normal @ self.p["light"])
            colour = self.p["skin"] * self.p["tint"] * lit * [1.0, 0.92, 0.9]
            self.canvas.fill([_curve(self.part("ear", side), True)], colour)
            self.canvas.fill([_curve(self.part("ear_inside", side), True)], colour * 0.72, 0.8, self.unit * 0.02)

    def eye(self, first: int, pupil: int) -> None:
        p, unit, canvas = self.p, self.unit, self.canvas
        upper = _curve(self.px[first : first + 5])
        lower = _curve(self.px[[*range(first + 4, first + 8), first]])
        contour = np.concatenate([upper, lower[1:-1]])
        if not _is_front(contour):
            return
        light = np.minimum(self.light(self.px[[first, first + 4]].mean(axis=0)) * 1.2, 1.05)
        canvas.fill([contour], np.array([224, 216, 211]) * light)
        size = 0.07 * (1 + 0.07 * p["shape"][5])
        for share, colour in ((1.0, p["iris"] * 0.55), (0.86, p["iris"] * 1.1), (0.42, np.array([10, 8, 8]))):
            disc = self.view.project(self.solid[pupil] + _CIRCLE * size * share)
            canvas.fill([disc], colour * light, clip=contour, depth=False)
        canvas.fill([upper], p["skin"] * 0.12, 0.4, soft=unit * 0.015, line=unit * 0.05, clip=contour, depth=False)
        glint = self.view.project(self.solid[[pupil]] - [0.022, 0.024, 0.0]) + unit * 0.012 * _CIRCLE
        canvas.fill([glint], np.full(3, 245) * light, 0.9, clip=contour, depth=False)
        lash = np.minimum(p["hair"], 70) * 0.4 * light
        crease = self.solid[first : first + 5] - [0, 0.035 + 0.05 * p["closed"], 0.01]
        crease = _curve(self.view.project(crease))
        canvas.fill([crease], p["skin"] * 0.4 * light, 0.45, soft=unit * 0.008, line=unit * 0.016)
        canvas.fill([upper], lash, line=unit * (0.034 if p["make_up"] else 0.02))
        canvas.fill([lower], lash, 0.45, line=unit * 0.012)
        if p["make_up"] or p["closed"] > 0.8:
            roots = upper[:5] if first == 60 else upper[-5:]
            ends = roots + (roots - self.px[pupil]) * [0.12, 0, 0] - [0, unit * 0.03, 0]
            canvas.fill(list(np.stack([roots, ends], axis=1)), lash, 0.8, line=1)

    def brow(self, upper: Sequence[int], lower: Sequence[int], side: int) -> None:
        top, bottom = _curve(self.px[list(upper)]), _curve(self.px[list(lower)])
        light = self.light(top[len(top) // 2])
        colour = np.minimum(self.p["hair"] * 0.75, self.p["skin"] * 0.75) * light
        self.canvas.strip(top, bottom, colour, 0.7, self.unit * 0.013)
        k = self.rng.integers(0, len(top), 14)
        tips = top[k] + [side * 0.03 * self.unit, 0, 0]
        self.canvas.fill(list(np.stack([bottom[k], tips], axis=1)), colour * 0.8, 0.45, line=1, depth=False)

    def mouth(self) -> None:
        p, unit, canvas, px = self.p, self.unit, self.canvas, self.px
        rows = {
            "top": [76, 77, 78, 79, 80, 81, 82],
            "upper": [76, 88, 89, 90, 91, 92, 82],
            "lower": [76, 88, 95, 94, 93, 92, 82],
            "bottom": [76, 87, 86, 85, 84, 83, 82],
        }
        line = {name: _curve(px[index]) for name, index in rows.items()}
        light = self.light(px[85] + [0, 0.06 * unit, 0]) * 1.1
        hole = np.concatenate([line["upper"], line["lower"][::-1]])
        gap = float(np.linalg.norm(self.solid[90] - self.solid[94]))
        canvas.strip(line["upper"], line["lower"], np.array([58, 20, 22]) * light, 1.0, 0.4)
        if gap > 0.06:
            tongue = self.view.project(self.solid[94] + [0, 0.01, 0.1] + _CIRCLE * [0.13, 0.3 * gap, 0])
            canvas.fill([tongue], np.array([168, 76, 78]) * light, 0.8, soft=unit * 0.015, clip=hole, depth=False)
        if gap > 0.03:
            edge = self.solid[rows["upper"]]
            gums, tips = edge + np.array([0, -0.03, 0.02]), edge + np.array([0, min(0.085, 0.75 * gap), 0.03])
            gums, tips = _curve(self.view.project(gums)), _curve(self.view.project(tips))
            outline = np.concatenate([gums, tips[::-1]])
            canvas.fill([outline], np.array([232, 226, 212]) * light, 0.95, soft=0.5, clip=hole, depth=False)
            between = list(np.stack([gums, tips], axis=1)[3:17:2])
            canvas.fill(between, np.array([120, 100, 92]) * light, 0.3, line=1, clip=hole, depth=False)
        natural = p["skin"] * [0.9, 0.62, 0.6] + [8, 0, 4]
        colour = (natural if p["lips"] is None else p["lips"]) * light
        canvas.strip(line["top"], line["upper"], colour * 0.84, 0.88, unit * 0.008)
        canvas.strip(line["lower"], line["bottom"], colour, 0.88, unit * 0.008)
        if gap <= 0.06:
            canvas.fill([line["upper"]], colour * 0.35, 0.7, line=unit * 0.014, soft=0.4)
        shine = 0.5 * (line["lower"] + line["bottom"])[6:13]
        canvas.fill([shine], 255 * light, 0.16, soft=unit * 0.02, line=unit * 0.04, depth=False)

    def nose(self) -> None:
        p, unit = self.p, self.unit
        base = _curve(self.px[55:60])
        dark = p["skin"] * [0.36, 0.26, 0.24] * self.light(base[6])
        self.canvas.fill([base], dark, 0.3, soft=unit * 0.02, line=unit * 0.035)
        down = float(self.view.rotation[2] @ [0, 0.75, -0.66])  # nostrils look forward and down
        for side in (-1, 1):
            if down < -0.3:
                hole = self.part("nostril", side)
                self.canvas.fill([hole], dark * 0.7, min(0.9, -1.3 * down), soft=unit * 0.01)
            wing, fold = _curve(self.part("wing", side)), _curve(self.part("fold", side))
            self.canvas.fill([wing], dark, 0.38, soft=unit * 0.014, line=unit * 0.02)
            strength = 0.1 + 0.14 * max(0.0, p["smile"])
            self.canvas.fill([fold], dark, strength, soft=unit * 0.02, line=unit * 0.03)

    def glasses(self) -> None:
        p, width = self.p, max(1.0, self.unit * 0.03)
        if p["glasses"] == "none":
            return
        for side in (-1, 1):
            rim = self.part("rim", side)
            if p["glasses"] == "dark":
                self.canvas.fill([rim], p["frame"] * 0.4, 0.93)
            else:
                self.canvas.fill([rim], np.full(3, 255.0), 0.07)
            arm = self.part("arm", side)
            self.canvas.fill([rim, arm[:2], arm[1:], self.part("bridge", side)], p["frame"], line=width)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    corners = _muted(rng, 20, 230, 4).reshape(2, 2, 3) * rng.uniform(0.5, 1.0)
    small = cv2.resize(corners.astype(np.float32), (96, 96), interpolation=cv2.INTER_LINEAR)
    count = int(rng.integers(0, 14))
    for colour, (x, y, size, long) in zip(
        _muted(rng, 10, 250, max(count, 1)), rng.integers(3, 96, (count, 4)).tolist()
    ):
        if rng.random() < 0.5:
            cv2.circle(small, (x, y), 3 + size // 8, colour.tolist(), -1)
        else:
            cv2.rectangle(small, (x, y), (x + size // 4, y + long // 2), colour.tolist(), -1)
    small = cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.6, 5)))
    return cv2.resize(np.clip(small, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)


def _draw_body(canvas: _Canvas, p: dict, view: _View) -> None:
    """Draws what is behind the head: long hair, neck and shoulders."""

    def flat(points: np.ndarray) -> np.ndarray:  # camera space -> pixels
        return points[:, :2] / points[:, 2:] * view.focal + view.centre

    def hull(points: np.ndarray) -> np.ndarray:
        return cv2.convexHull(points.astype(np.float32))[:, 0]

    if p["style"] == "long":
        ball = np.concatenate(
            [_CIRCLE[:, [0, 2, 1]] * np.cos(t) + [0, np.sin(t), 0] for t in np.linspace(-1.5, 1.5, 7)]
        )
        curtain = ball * [1.14, 1.0, 1.0] + [0, -0.3, 1.0]
        curtain[:, 1] += np.maximum(ball[:, 1], 0) ** 0.6 * (0.7 + 0.2 * p["shape"][13])
        canvas.fill([hull(view.project(curtain)[:, :2])], p["hair"] * p["tint"] * 0.6)
    upper = np.array([0, 0.55, 1.0]) * p["scale"] @ view.rotation.T + view.shift
    lower = upper + np.array([0.1 * view.rotation[0, 2], 1.25, 0.15])
    ring = _CIRCLE[:, [0, 2, 1]]
    lit = p["tint"] * (p["ambient"] * 0.6 + 0.28)
    canvas.fill([hull(flat(np.concatenate([upper + ring * 0.56, lower + ring * 0.66])))], p["skin"] * lit)
    left = np.array([(-2.3, 2.6), (-2.2, 1.0), (-1.75, 0.5), (-0.66, 0.08), (-0.3, 0.22)]) - [0, 0.25]
    outline = np.concatenate([left, left[::-1] * [-1, 1]])
    shirt = np.concatenate([outline, np.zeros((len(outline), 1))], axis=1) + lower
    canvas.fill([_curve(flat(shirt), factor=3)], p["cloth"] * p["tint"] * 0.8)


def _draw_occluder(rng: np.random.Generator, canvas: _Canvas, p: dict, box: np.ndarray) -> None:
    """Hides part of the face behind a hand, a bar or a ball."""
    side = float((box[2:] - box[:2]).max())
    middle = box[:2] + rng.uniform(0.1, 0.9, 2) * (box[2:] - box[:2])
    kind, turn = rng.integers(3), rng.uniform(0, 2 * np.pi)
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * side
    if kind == 0:
        colour = p["skin"] * p["tint"] * rng.uniform(0.6, 0.95)
        palm = middle + np.array([0, 0.34]) @ spin
        canvas.fill([palm + _CIRCLE[:, :2] * [0.2, 0.24] @ spin], colour)
        canvas.fill([palm + np.array([[0, 0.1], [0, 1.2]]) @ spin], colour, line=0.26 * side)
        for x in (-0.15, -0.05, 0.05, 0.15):
            finger = palm + np.array([[x * 0.8, -0.1], [x * 1.35, -0.42 + 0.5 * abs(x + 0.02)]]) @ spin
            canvas.fill([finger + side * 0.008], colour * 0.6, line=0.1 * side)
            canvas.fill([finger], colour, line=0.09 * side)
    elif kind == 1:
        half = rng.uniform([0.1, 0.2], [0.2, 0.45])
        corners = middle + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ spin
        canvas.fill([corners], _muted(rng, 10, 240))
        canvas.fill([corners[:2] * 0.6 + corners[3:1:-1] * 0.4], _muted(rng, 10, 240), line=side * 0.03)
    else:
        half = rng.uniform([0.12, 0.12], [0.28, 0.24])
        canvas.fill([middle + _CIRCLE[:, :2] * half @ spin], _muted(rng, 10, 240), soft=side * 0.006)


@functools.cache
def _grain(strength: int) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=(640, 640, 3)) * strength
    return np.rint(noise).astype(np.int16)


# --- one face ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """A face before it is drawn; points (N, 3) as in `_Model`, landmarks (166, 2): the 68, then the 98."""

    rng: np.random.Generator
    person: dict
    points: np.ndarray
    view: _View
    landmarks: np.ndarray
    height: int
    width: int


def _set_scene(seed: int, index: int, difficulty: str, size: int | None, split: int) -> _Scene:
    if difficulty not in ("mild", "hard"):
        raise ValueError(f"difficulty is {difficulty!r}; it is 'mild' or 'hard'")
    rng = np.random.default_rng([seed, split, index])
    p = _draw_person(rng, hard=difficulty == "hard")
    drawn = rng.integers(256, 321, 2).tolist()
    height, width = (size, size) if size else drawn
    side = rng.uniform(0.4, 0.58) * min(height, width)
    room = (np.array([width, height]) - side) / 2 * (1.3 if rng.random() < 0.1 else 0.68)  # 1.3: the border may cut it
    centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * room + [0, 0.04 * height]
    points = _deform(p)
    view = _look_at(points[:68], p["pose"], side, centre)
    landmarks = view.project(points[: 68 + 98])[:, :2].astype(np.float32)
    return _Scene(rng, p, points, view, landmarks, height, width)


def render_landmarks(
    seed: int, index: int, difficulty: str = "mild", size: int | None = None, split: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns landmarks_68, landmarks_98 and pose of `render_face` with the same arguments, without the image."""
    scene = _set_scene(seed, index, difficulty, size, split)
    return scene.landmarks[:68], scene.landmarks[68:], scene.person["pose"].astype(np.float32)


def render_face(
    seed: int, index: int, difficulty: str = "mild", size: int | None = None, split: int = 0
) -> SyntheticFace:
    """Renders face `index` of folder number `split` of the dataset with this seed.

    Args:   difficulty: "mild", or "hard": larger angles, stronger expressions and light, more occlusion and blur.
            size: side of the square image in pixels, at most 640; None: drawn from 256..320, not square.
    Raises: ValueError for an unknown difficulty.
    """
    scene = _set_scene(seed, index, difficulty, size, split)
    rng, p, points, view, landmarks = scene.rng, scene.person, scene.points, scene.view, scene.landmarks
    height, width = scene.height, scene.width
    canvas = _Canvas(_draw_background(rng, height, width))
    _draw_body(canvas, p, view)
    colour, cover, depth = _draw_head(p, view, points[_model().slices["surface"]], height, width)
    canvas.image = cv2.blendLinear(colour, canvas.image, cover, 1 - cover)
    bare = canvas.image.copy()
    painter = _Painter(canvas, p, view, points, rng)
    painter.ears()
    painter.nose()
    painter.eye(60, 96)
    painter.eye(68, 97)
    painter.brow((33, 34, 35, 36, 37), (33, 41, 40, 39, 38), -1)
    painter.brow((42, 43, 44, 45, 46), (50, 49, 48, 47, 46), 1)
    painter.mouth()
    painter.glasses()
    hidden = cv2.blur((canvas.depth > depth + 0.13).astype(np.float32), (2, 2))
    image = canvas.image = cv2.blendLinear(bare, canvas.image, hidden, 1 - hidden)
    if p["occluder"]:
        _draw_occluder(rng, canvas, p, landmark_box(landmarks[:68]))
    if p["blur"] > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), p["blur"])
    y, x = rng.integers(0, [641 - height, 641 - width])
    image = cv2.add(image, _grain(p["noise"])[y : y + height, x : x + width], dtype=cv2.CV_8U)
    attributes = {
        "pose": bool((np.abs(p["pose"]) > [35, 20, 20]).any()),
        "expression": bool(p["jaw"] > 9 or abs(p["smile"]) > 1.15 or p["closed"] > 0.8),
        "illumination": bool(p["harsh"]),
        "make-up": bool(p["make_up"]),
        "occlusion": bool(p["occluder"] or p["glasses"] == "dark"),
        "blur": bool(p["blur"] > 1),
    }
    return SyntheticFace(image, landmarks[:68], landmarks[68:], p["pose"].astype(np.float32), attributes)
