"""What an evaluation is about: faces, methods and their errors, and how they are named (NumPy only)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.files import numbered, utf8


@dataclass(frozen=True, eq=False)
class Method:
    """One model or prediction file, scored on one ordered list of N faces.

    name: in tables and legends, unique in a report. landmarks: (N, L, 2) predicted, image pixels; a face without a
    prediction is NaN and counts as a failure. pose: (N, 3) yaw, pitch, roll in degrees (`O_P` or the file's), or None.
    pose_pnp: (N, 3) degrees by PnP on `landmarks`, or None. info: any of parameters, multiply_adds, latency_ms, crop,
    input_size, format, file and more; plain values.
    """

    name: str
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    pose_pnp: np.ndarray | None = None
    info: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Faces:
    """The ground truth.

    spec: the layout of the points. names: N sample names. landmarks: (N, L, 2) image pixels, finite. pose: (N, 3)
    degrees, rows may be NaN, or None. subsets: name -> bool (N,), in the order asked for; empty stands for one subset
    `all`. pose_from: what the pose is, in words.
    """

    spec: DatasetSpec
    names: list[str]
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    subsets: dict[str, np.ndarray] = field(default_factory=dict)
    pose_from: str = ""

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Name -> bool (N,) of every subset, at least one."""
        return self.subsets or {"all": np.ones(len(self.names), bool)}


@dataclass(frozen=True, eq=False)
class Measured:
    """Errors of one method: fractions of the inter-ocular or inter-pupil distance, degrees. NaN where unknown."""

    method: Method
    points: np.ndarray  # (N, L)
    nme: np.ndarray  # (N,)
    nme_interpupil: np.ndarray  # (N,)
    pose: np.ndarray  # (N, 3)
    pose_pnp: np.ndarray  # (N, 3)


def number(value: float | None, decimals: int = 2) -> str:
    """Returns a number with a fixed count of decimals, `-` where it is unknown."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{decimals}f}"


def one_line(name: str, length: int) -> str:
    """Returns a name in one line of at most `length` characters."""
    name = re.sub(r"\s+", " ", utf8(name)).strip() or "(no name)"
    return name if len(name) <= length else name[: length - 1] + "…"


def file_names(names: Sequence[str]) -> list[str]:
    """Returns a file name stem for each method name: letters, digits, `.`, `_`, `-`; no two alike, case aside."""
    stems: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60] or "method"
        stem = next(stem for stem in numbered(base) if stem.lower() not in stems)
        stems[stem.lower()] = stem
    return list(stems.values())
