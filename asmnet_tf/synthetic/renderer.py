"""Draws one synthetic face: a 3D head with exact landmarks and exact pose (NumPy, OpenCV, SciPy).

A head is a closed surface through the 3D mean face of `pose.py`, so its zero pose is the project's zero pose. Identity
and expression are smooth maps of space that move surface and landmarks alike. The camera is the one `pose.py` assumes.
Skin and hair are small quadrilaterals, drawn from far to near; brows, eyes and lips are drawn on the projected landmark
contours, and then the nose over them.

Face i of folder k is drawn from `default_rng([seed, k, i])`, whatever else is drawn beside it.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from asmnet_tf.data.geometry import landmark_box
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import FOCAL, angles_to_matrix, mean_face

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")  # columns of a WFLW list


class SyntheticFace(NamedTuple):
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
_CENTRE = np.array([0.0, -0.1, 0.8])  # the head is star-shaped around it
_ROWS, _COLUMNS = 56, 60
# hairline: height of the lowest hair by the angle around the head, 0 in front
_HAIRLINE = np.array([(0, -0.97), (30, -0.93), (48, -0.78), (62, -0.5), (74, -0.2), (86, 0.05), (100, 0.1), (120, 0.5)])
_ANGLE = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLE), np.sin(_ANGLE), 0 * _ANGLE], axis=1)
_SKINS = np.array([(238, 198, 174), (230, 184, 154), (214, 168, 134), (190, 138, 102), (146, 98, 68), (84, 54, 40)])
_HAIRS = np.array([(28, 24, 24), (52, 36, 28), (92, 60, 38), (140, 96, 56), (196, 156, 98), (150, 148, 146)])


def _curve(points: np.ndarray, factor: int = 3) -> np.ndarray:
    """Samples the Catmull-Rom curve through points (N, D), `factor` times as dense; it goes on straight at its ends."""
    p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = np.arange(factor)[:, None] / factor
    inner = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([inner.reshape(-1, points.shape[1]), points[-1:]])


def base_landmarks() -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean face as 68 points (68, 3) and as 98 points (98, 3), head axes, outer eye corners 1 apart.

    The 98 points lie on smooth curves through the 68; the lower outline of a brow is 0.07 below the upper.
    """
    face = np.array(mean_face())
    points = np.empty((98, 3))
    points[:33] = _curve(face[:17], factor=2)
    points[33:38], points[42:47] = face[17:22], face[22:27]
    drop = np.array([0.0, 0.07, 0.012]) * np.array([1.1, 1.1, 1.0, 0.8])[:, None]
    points[38:42], points[47:51] = points[[37, 36, 35, 34]] + drop, points[[45, 44, 43, 42]] + drop[::-1]
    points[51:60] = face[27:36]
    for first, corner in ((60, 36), (68, 42)):
        outline = face[[*range(corner, corner + 6), corner]]
        points[first : first + 4] = _curve(outline[:4], factor=4)[:12:3]
        points[first + 4 : first + 8] = _curve(outline[3:], factor=4)[:12:3]
    points[76:96] = face[48:68]
    points[96:] = face[36:42].mean(axis=0), face[42:48].mean(axis=0)
    mirrored = points[DATASETS["wflw"].flip_map] * [-1, 1, 1]
    return face, (points + mirrored) / 2  # rounding apart, it is symmetric already; now it is exactly


@functools.cache
def _mean_head() -> np.ndarray:
    """Returns the 68 landmarks, the 98, and a grid of the surface, dense in front: (166 + rows x columns, 3)."""
    from scipy.interpolate import RBFInterpolator  # only rendering needs it

    others = np.loadtxt(Path(__file__).parents[1] / "data" / "head_surface.csv", delimiter=",")
    known = np.concatenate([mean_face()[:60], others, others[others[:, 0] > 0] * [-1, 1, 1]]) - _CENTRE
    radius = np.linalg.norm(known, axis=1, keepdims=True)
    surface = RBFInterpolator(known / radius, radius, smoothing=5e-5)  # thin-plate spline over chords of the sphere
    s, t = np.linspace(-1, 1, _COLUMNS), np.linspace(-1, 1, _ROWS)
    around, up = (v.ravel() for v in np.meshgrid(np.pi * (0.45 * s + 0.55 * s**3), np.pi * (0.375 * t + 0.125 * t**3)))
    grid = np.stack([np.sin(around) * np.cos(up), np.sin(up), -np.cos(around) * np.cos(up)], axis=1)
    return np.concatenate([*base_landmarks(), grid * surface(grid) + _CENTRE])


def _bump(points: np.ndarray, x: float, y: float, wide: float, high: float) -> np.ndarray:
    """Returns a bell (N, 1) of points (N, 3) around (+-x, y), zero at the back of the head."""
    bell = np.exp(-(((np.abs(points[:, :1]) - x) / wide) ** 2) - ((points[:, 1:2] - y) / high) ** 2)
    return bell * (points[:, 2:] < 0.9)


# --- who it is, what it does, how it is seen --------------------------------------------------------------------------
def _draw_person(rng: np.random.Generator, hard: bool) -> dict:
    """Draws the properties of a face that do not depend on the size of the image."""
    wild = 1.4 if hard else 1.0
    harsh, long = rng.random() < (0.4 if hard else 0.12), rng.random() < 0.3
    dark = rng.uniform(0, len(_SKINS) - 1)
    light = np.array([rng.uniform(-1, 1) * (2.4 if harsh else 0.8), rng.uniform(-1.1, 0.25), -1.0])
    pose = rng.uniform(-1, 1, 3) if hard else np.append(rng.uniform(-1, 1) * rng.uniform(0.2, 1), rng.normal(0, 0.3, 2))
    warmth = 0.01 + rng.normal() * 0.045
    return {
        "pose": np.clip(pose, -1, 1) * [60, 30, 30],
        # identity: bells in space, alike on both sides, and how far each moves what is there
        "scale": 1 + rng.normal(size=3) * [0.045, 0.04, 0.03],
        "bells": rng.uniform([0, -0.7, -0.4], [0.9, 1.1, 0.5], (14, 3)),
        "moves": np.clip(rng.normal(size=(14, 3)), -2, 2) * 0.035,
        "jaw": rng.choice([rng.uniform(-3, -2), rng.uniform(-2, 6) * wild, rng.uniform(5, 17)], p=[0.45, 0.3, 0.25]),
        "smile": rng.choice([rng.normal() * 0.5 * wild, rng.uniform(0.3, 1.4)]),
        "brow_raise": rng.normal() * 0.035 * wild,
        "closed": rng.uniform(0.85, 1) if rng.random() < 0.05 * wild else np.clip(rng.normal(0.12, 0.15), -0.15, 0.65),
        "gaze": np.clip(rng.normal(size=3), -1.8, 1.8) * [0.035, 0.015, 0],
        "skin": np.array([np.interp(dark, range(len(_SKINS)), tone) for tone in _SKINS.T]),
        "hair": _HAIRS[rng.choice([0, 1, 5]) if dark > 3 else rng.integers(6)] * rng.uniform(0.8, 1.15),
        "iris": np.array([70, 45, 28]) + rng.uniform(0, 1) * (dark < 3) * np.array([10, 65, 110]),
        "cloth": rng.uniform(40, 220, 3),
        "long": long,
        "volume": rng.uniform(0.03, 0.14) * (long or rng.random() < 0.85),  # 0: bald
        "hairline": rng.uniform(-0.25, 0.2),
        "beard": rng.uniform(0.15, 0.9) * (rng.random() < 0.3 and not long),
        "make_up": long and rng.random() < 0.6,
        "harsh": harsh,
        "light": light / np.linalg.norm(light),
        "ambient": rng.uniform(0.1, 0.28) if harsh else rng.uniform(0.38, 0.62),
        "tint": np.array([1 + warmth, 1, 1 - warmth]) * (rng.uniform(0.6, 1.1) if harsh else rng.uniform(0.86, 1.04)),
        "occluder": rng.random() < (0.45 if hard else 0.1),
        "blur": rng.uniform(1.2, 2.4) if rng.random() < (0.25 if hard else 0.08) else rng.uniform(0.3, 0.7),
        "noise": rng.integers(1, 12),
    }


def _deform(p: dict) -> np.ndarray:
    """Gives the mean head the expression and then the proportions of one person; rows as in `_mean_head`."""
    head = _mean_head()
    q = head.copy()
    uppers = [37, 38, 43, 44, *range(129, 132), *range(137, 140)]  # of both sets of points
    lowers = [41, 40, 47, 46, *range(135, 132, -1), *range(143, 140, -1)]
    gap = q[lowers] - q[uppers]
    q[uppers] += 0.75 * p["closed"] * gap
    q[lowers] -= 0.25 * max(p["closed"], 0) * gap
    # pupils: where the eyes look, on the front of the eyeball
    q[164:166] = q[36:48].reshape(2, 6, 3).mean(axis=1) + p["gaze"] * (1 - p["closed"]) - [0, 0, 0.03]
    # the lower jaw turns about the ears; between the lips the motion sets in at once, on the cheeks gradually
    half = 0.022 + 0.5 * np.maximum(0.0, np.abs(head[:, 0]) - 0.27)
    share = np.interp((head[:, 1] - 0.519) / half, [-1, 1], [0, 1]) * np.interp(head[:, 2], [0.55, 0.85], [1, 0])
    sine, versine = np.sin(np.radians(p["jaw"]) * share), 1 - np.cos(np.radians(p["jaw"]) * share)
    down, back = q[:, 1] + 0.05, q[:, 2] - 0.8
    q[:, 1] -= down * versine + back * sine
    q[:, 2] += down * sine - back * versine
    folded = np.abs(q) * [1, 0, 0] + q * [0, 1, 1]
    away = (folded**2).sum(axis=1)[:, None] + (p["bells"] ** 2).sum(axis=1) - 2 * folded @ p["bells"].T
    move = np.exp(-8 * away) @ p["moves"] - p["brow_raise"] * _bump(head, 0.36, -0.5, 0.33, 0.14) * [0, 1, 0]
    move += p["smile"] * _bump(head, 0.3, 0.53, 0.14, 0.13) * [0.055, -0.05, 0.03]
    move[:, 0] *= np.clip(q[:, 0] / 0.2, -1, 1)  # alike on both sides; what is in the middle stays there
    return (q + move) * p["scale"]


class _View:
    """The camera of `pose.py` that sees the box of points (68, 3) centred on `centre`, its longer side `side` px."""

    def __init__(self, points: np.ndarray, pose_deg: np.ndarray, side: float, centre: np.ndarray):
        self.rotation, self.shift = angles_to_matrix(pose_deg), np.array([0.0, 0.0, FOCAL * 1.9])
        self.scale, self.centre = 1.0, np.zeros(2)
        for _ in range(12):  # a fixed point: depth differs between landmarks, so the box moves as the head does
            rays = self.project(points)[:, :2]
            low, high = rays.min(axis=0), rays.max(axis=0)
            self.shift[:2] -= (low + high) / 2 * self.shift[2]
            self.shift[2] *= (high - low).max() * FOCAL
        self.scale, self.centre = FOCAL * side, centre
        self.unit = self.scale / self.shift[2]  # pixels per unit of length

    def project(self, points: np.ndarray) -> np.ndarray:
        """Head points (..., 3) -> x and y in pixels, and depth (..., 3)."""
        seen = points @ self.rotation.T + self.shift
        seen[..., :2] = seen[..., :2] / seen[..., 2:] * self.scale + self.centre
        return seen


# --- drawing ----------------------------------------------------------------------------------------------------------
def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(points[..., :2] * 16).astype(np.int32)  # OpenCV draws at 1/16 pixel (shift 4)


def _fill(image: np.ndarray, shapes: Iterable[np.ndarray], colour: np.ndarray, line: float = 0.0) -> None:
    """Fills polygons (N, 2 or 3), or draws along them if `line` is a width in pixels."""
    value = np.clip(colour, 0, 255).tolist()
    for shape in shapes:
        if line:
            cv2.polylines(image, [_fixed(shape)], False, value, max(1, round(line)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(image, [_fixed(shape)], value, cv2.LINE_AA, 4)


def _area(contours: np.ndarray) -> np.ndarray:
    """Returns twice the signed areas of polygons (..., N, 2 or 3); > 0: clockwise in the image."""
    x, y = np.moveaxis(contours[..., 1:, :2] - contours[..., :1, :2], -1, 0)
    return (x[..., :-1] * y[..., 1:] - x[..., 1:] * y[..., :-1]).sum(axis=-1)


def _draw_background(rng: np.random.Generator, p: dict, view: _View, height: int, width: int) -> np.ndarray:
    """Returns what is behind the head: blurred spots, long hair, neck and shoulders."""
    small = cv2.resize(rng.integers(50, 210, (2, 2, 3), np.uint8), (96, 96), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(10)):
        outline = rng.uniform(0, 96, 2) + rng.uniform(3, 20, 2) * _CIRCLE[:: rng.choice([1, 6]), :2]
        _fill(small, [outline], rng.uniform(40, 220, 3))
    image = cv2.resize(cv2.GaussianBlur(small, (0, 0), rng.uniform(0.6, 5)), (width, height))
    skull, neck = view.project(np.array([(0, -0.25, 0.9), (0, 0.6, 1.0)]) * p["scale"])[:, :2]
    if p["long"]:
        _fill(image, [skull + ([0, 0.25] + _CIRCLE[:, :2] * [1.1, 1.3]) * view.unit], p["hair"] * p["tint"] * 0.5)
    column = np.array([(-0.48, -0.4), (0.48, -0.4), (0.55, 0.9), (-0.55, 0.9)])
    _fill(image, [neck + column * view.unit], p["skin"] * p["tint"] * (p["ambient"] * 0.6 + 0.25))
    _fill(image, [neck + ([0, 2.1] + _CIRCLE[:, :2] * [1.9, 1.5]) * view.unit], p["cloth"] * p["tint"])
    return image


def _corners(points: np.ndarray) -> np.ndarray:
    """Returns the corners, in turn, of the quadrilaterals between the points (N, D) of the surface grid: (M, 4, D)."""
    grid = points.reshape(_ROWS, _COLUMNS, -1)
    return np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=2).reshape(-1, 4, grid.shape[2])


def _draw_head(image: np.ndarray, p: dict, view: _View, surface: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the image with skin and hair in it, and where the nose is seen, uint8 (H, W), 255 inside."""
    mean = _mean_head()[166:]
    around = np.degrees(np.arctan2(np.abs(mean[:, :1]), _CENTRE[2] - mean[:, 2:]))
    above = np.interp(around, *_HAIRLINE.T) + p["hairline"] - mean[:, 1:2]
    hair = (p["volume"] > 0) * np.interp(above, [-0.06, 0.08], [0, 1])
    surface = surface + (surface - _CENTRE) * p["volume"] * hair
    quads = _corners(view.project(surface))
    seen = np.argsort(-quads[:, :, 2].sum(axis=1))
    seen = seen[_area(quads[seen]) > 0]
    solid, quads = _corners(surface)[seen], _fixed(quads[seen])
    normal = np.cross(solid[:, 2] - solid[:, 0], solid[:, 1] - solid[:, 3])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    m = _corners(mean)[seen].mean(axis=1)
    x, y, z = np.abs(m[:, :1]), m[:, 1:2], m[:, 2:]
    beard = p["beard"] * np.interp(y + 0.6 * x, [0.72, 0.88], [0, 1]) * (z < 0.8)
    strands = 1 + 0.15 * np.sin(m @ [[40], [3], [25]] + 3 * np.sin(m @ [[7], [5], [9]]))
    albedo = p["skin"] + (p["hair"] * strands - p["skin"]) * np.maximum(beard, _corners(hair)[seen].mean(axis=1))
    shadow = 0.3 * _bump(m, 0.22, -0.27, 0.1, 0.1) + 0.14 * _bump(m, 0.35, -0.28, 0.17, 0.12)  # eye sockets
    shadow += 0.3 * _bump(m, 0.0, 0.3, 0.13, 0.05) + 0.2 * _bump(m, 0.0, 0.735, 0.14, 0.05)  # below nose and lip
    shadow += 0.5 * np.interp(y, [0.95, 1.15], [0, 1]) * np.interp(z, [0.15, 0.5], [0, 1])  # below the chin
    lit = np.maximum(normal @ (p["light"] @ view.rotation)[:, None] * 0.85 + 0.15, 0)
    lit = (p["ambient"] + (1.03 - 0.95 * p["ambient"]) * lit) * (1 - shadow)
    colours = np.pad(np.minimum(albedo * lit * p["tint"], 255), ((0, 0), (0, 1)))  # the fourth says where

    layer, nose = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), np.zeros(image.shape[:2], np.uint8)
    for quad, colour in zip(quads, colours.tolist()):
        cv2.fillConvexPoly(layer, quad, colour, cv2.LINE_8, 4)
    for quad in quads[((y > -0.4) & (y < 0.24) & (x < 0.17 + 0.25 * y))[:, 0]]:
        cv2.fillConvexPoly(nose, quad, 255, cv2.LINE_8, 4)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.02 * view.unit)  # hides the quadrilaterals
    behind = np.maximum(layer[..., 3] / np.float32(128) - 1, 0)
    return cv2.blendLinear(cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), image, 1 - behind, behind), nose


def _draw_features(image: np.ndarray, p: dict, view: _View, points: np.ndarray, nose: np.ndarray) -> np.ndarray:
    """Returns the image with brows, eyes, lips and nostrils on the contours of the 98 `points`."""
    px, bare, unit = view.project(points), image.copy(), view.unit

    def skin(at: int) -> np.ndarray:  # how bright it is drawn at a landmark, as factors
        column, row = np.clip(np.rint(px[at, :2]), 0, np.array(image.shape[1::-1]) - 1).astype(int)
        return np.clip(bare[row, column] / p["skin"], 0.1, 1.25)

    for brow, first, pupil in ((33, 60, 96), (42, 68, 97)):
        if _area(px[[brow, brow + 4, first + 4, first]]) <= 0:  # turned away
            continue
        _fill(image, [_curve(px[brow : brow + 9])], (p["hair"] * 0.5 + p["skin"] * 0.2) * skin(brow + 2))
        upper, lower = _curve(px[first : first + 5]), _curve(px[[*range(first + 4, first + 8), first]])
        contour, light = np.concatenate([upper, lower[1:-1]]), np.minimum(skin(first + 4) * 1.3, 1.05)
        _fill(image, [contour], np.array([224, 216, 211]) * light)
        hull = cv2.convexHull(contour[:, :2].astype(np.float32))
        for radius, colour in ((0.075, p["iris"]), (0.032, np.full(3, 10))):
            disc = view.project(points[pupil] + _CIRCLE * radius)[:, :2].astype(np.float32)
            area, inside = cv2.intersectConvexConvex(hull, disc)
            if area > 0:
                _fill(image, [inside[:, 0]], colour * light)
        _fill(image, [lower, upper - [0, unit * 0.04, 0]], p["skin"] * 0.6 * light, line=unit * 0.012)
        _fill(image, [upper], np.minimum(p["hair"], 70) * 0.4 * light, line=unit * (0.04 if p["make_up"] else 0.025))

    upper, lower, light = _curve(px[88:93]), _curve(px[[88, 95, 94, 93, 92]]), skin(57)
    lips = (np.array([190, 40, 60]) if p["make_up"] else p["skin"] * [0.88, 0.6, 0.58]) * light * 1.2
    _fill(image, [_curve(px[76:88])], lips)
    _fill(image, [np.concatenate([upper, lower[::-1]])], np.array([70, 24, 26]) * light)
    if p["jaw"] > 2:  # teeth
        edge = upper + np.minimum(0.6 * (lower - upper), 0.085 * unit)
        _fill(image, [np.concatenate([upper, edge[::-1]])], np.array([250, 244, 230]) * light)
    _fill(image, [upper], lips * 0.5, line=unit * 0.014)
    cv2.copyTo(bare, cv2.erode(nose, None), image)
    _fill(image, [_curve(px[55:60])], p["skin"] * [0.75, 0.68, 0.66] * light, line=unit * 0.03)
    if view.rotation[2] @ [0, 0.75, -0.66] < -0.3:  # nostrils look forward and down
        holes = [view.project(points[at] + _CIRCLE * [0.046, 0.022, 0]) for at in (56, 58)]
        _fill(image, holes, p["skin"] * [0.4, 0.32, 0.3] * light)
    return image


def render_face(seed: int, index: int, difficulty: str = "mild", size: int = 0, split: int = 0) -> SyntheticFace:
    """Renders face `index` of folder number `split` of the dataset with this seed.

    Args:   difficulty: "mild", or "hard": larger angles, stronger expressions and light, more occlusion and blur.
            size: side of the square image in pixels; 0: drawn from 256..320, not square.
    Raises: ValueError for an unknown difficulty.
    """
    if difficulty not in ("mild", "hard"):
        raise ValueError(f"difficulty is {difficulty!r}; it is 'mild' or 'hard'")
    rng = np.random.default_rng([seed, split, index])
    p = _draw_person(rng, hard=difficulty == "hard")
    height, width = (size, size) if size else rng.integers(256, 321, 2).tolist()
    side = rng.uniform(0.4, 0.58) * min(height, width)
    frame = np.array([width, height])
    room = (frame - side) / 2 * (1.3 if rng.random() < 0.1 else 0.68)  # 1.3: the border may cut the face
    points = _deform(p)
    view = _View(points[:68], p["pose"], side, frame / 2 + rng.uniform(-1, 1, 2) * room + [0, 0.04 * height])
    landmarks = view.project(points[:166])[:, :2].astype(np.float32)

    image, nose = _draw_head(_draw_background(rng, p, view, height, width), p, view, points[166:])
    skin = p["skin"] * p["tint"] * (p["ambient"] * 0.6 + 0.35)
    for at, outwards in ((0, -1), (16, 1)):
        ear = [0.12, -0.05, 0.3] + _CIRCLE[:, [0, 1, 0]] * [0.09, 0.25, 0.16]
        ear = view.project(points[at] + ear * [outwards, 1, 1])
        if not p["long"] and _area(ear) * outwards > 0.02 * view.unit**2:
            _fill(image, [ear], skin)
    image = _draw_features(image, p, view, points[68:166], nose)
    if p["occluder"]:
        low, high = np.split(landmark_box(landmarks[:68]), 2)
        box = rng.uniform(low, high), rng.uniform([0.2, 0.4], [0.4, 0.8]) * side, rng.uniform(0, 180)
        cv2.ellipse(image, box, (rng.uniform(40, 220, 3) if rng.random() < 0.6 else skin).tolist(), -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), p["blur"])
    image = cv2.add(image, rng.integers(-p["noise"], p["noise"] + 1, image.shape, np.int16), dtype=cv2.CV_8U)
    strong = p["jaw"] > 9 or abs(p["smile"]) > 1.15 or p["closed"] > 0.8
    flags = ((np.abs(p["pose"]) > [35, 20, 20]).any(), strong, p["harsh"], p["make_up"], p["occluder"], p["blur"] > 1)
    pose, attributes = p["pose"].astype(np.float32), dict(zip(ATTRIBUTES, map(bool, flags)))
    return SyntheticFace(image, landmarks[:68], landmarks[68:], pose, attributes)
