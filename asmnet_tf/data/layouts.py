"""The layouts of landmarks and folders: 300W, WFLW, COFW and their synthetic kin. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from asmnet_tf.files import InputError


@dataclass(frozen=True)
class Source:
    """One folder (300W layout) or list file (WFLW, COFW layouts) of a dataset, with its official number of faces."""

    name: str
    path: str
    expected: int


@dataclass(frozen=True)
class DatasetSpec:
    """All that differs between datasets. A further dataset of a known layout is one more of these.

    Indices are 0-based. `rigid_points` pairs a landmark with the point of the 68-point 3D mean face it stands for
    (`pose.py`); `contours` are (indices, closed) poly-lines for drawing.
    """

    name: str
    title: str
    num_landmarks: int
    layout: str  # "300w", "wflw" or "cofw": which reader of annotations.py
    default_data_dir: str
    outer_eye_corners: tuple[int, int]
    pupils: tuple[tuple[int, ...], tuple[int, ...]]  # points whose mean is a pupil
    flip_pairs: tuple[tuple[int, int], ...]
    rigid_points: tuple[tuple[int, int], ...]
    contours: tuple[tuple[tuple[int, ...], bool], ...]
    splits: dict[str, tuple[Source, ...]]
    subsets: dict[str, tuple[str, ...]]  # test subset -> the tags a sample needs one of (source name or attribute)
    subset_counts: dict[str, int] = field(default_factory=dict)  # official number of faces, where results are published
    thresholds: tuple[float, ...] = (0.08, 0.10)  # of failure rate and AUC, in NME as a fraction
    is_synthetic: bool = False
    published: dict[str, dict] = field(default_factory=dict)

    @property
    def flip_map(self) -> list[int]:
        """Point i of a mirrored face is point flip_map[i] of the original."""
        mapping = list(range(self.num_landmarks))
        for a, b in self.flip_pairs:
            mapping[a], mapping[b] = b, a
        return mapping


def _run(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


def _lines(*ends: tuple[int, int], closed: bool) -> tuple[tuple[tuple[int, ...], bool], ...]:
    return tuple((_run(*pair), closed) for pair in ends)


def _folders(counts: dict[str, int]) -> tuple[Source, ...]:
    return tuple(Source(path.split("/")[0], path, count) for path, count in counts.items())


_RIGID_68 = (8, 17, 19, 21, 22, 24, 26, 30, 31, 35, 36, 39, 42, 45, 48, 51, 54, 57)
_RIGID_98 = (16, 33, 35, 37, 42, 44, 46, 54, 55, 59, 60, 64, 68, 72, 76, 79, 82, 85)

_FLIP_68 = (
    *((i, 16 - i) for i in range(8)),
    *((17 + i, 26 - i) for i in range(5)),
    *((31, 35), (32, 34)),
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58)),
    *((60, 64), (61, 63), (65, 67)),
)
_FLIP_98 = (
    *((i, 32 - i) for i in range(16)),
    *((33 + i, 46 - i) for i in range(5)),
    *((38 + i, 50 - i) for i in range(4)),
    *((55, 59), (56, 58)),
    *((60, 72), (61, 71), (62, 70), (63, 69), (64, 68), (65, 75), (66, 74), (67, 73)),
    *((76, 82), (77, 81), (78, 80), (83, 87), (84, 86)),
    *((88, 92), (89, 91), (93, 95)),
    (96, 97),
)
# Published tables: NME in %, inter-ocular; pose MAE in degrees against HopeNet's predictions.
_PUBLISHED_300W = {
    "nme_pct": {
        "mnv2": {"common": 3.93, "challenging": 7.52, "full": 4.70},
        "mnv2_r": {"common": 3.88, "challenging": 7.35, "full": 4.59},
        "ASMNet_nr": {"common": 5.86, "challenging": 8.80, "full": 6.46},
        "ASMNet": {"common": 4.82, "challenging": 8.20, "full": 5.50},
    },
    "pose_mae_deg": {
        "mnv2": {"full": (1.75, 1.93, 1.32)},
        "mnv2_r": {"full": (1.71, 1.89, 1.30)},
        "ASMNet_nr": {"full": (2.41, 1.87, 2.115)},
        "ASMNet": {"full": (1.62, 1.80, 1.24)},
    },
}
_SUBSETS_WFLW = ("test", "largepose", "expression", "illumination", "makeup", "occlusion", "blur")
_PUBLISHED_WFLW = {
    "nme_pct": {
        "mnv2": dict(zip(_SUBSETS_WFLW, (9.57, 18.18, 9.93, 8.98, 9.92, 11.38, 10.79))),
        "mnv2_r": dict(zip(_SUBSETS_WFLW, (9.41, 17.86, 9.78, 8.90, 9.67, 11.25, 10.66))),
        "ASMNet_nr": dict(zip(_SUBSETS_WFLW, (11.96, 21.95, 13.08, 11.02, 11.84, 13.24, 12.60))),
        "ASMNet": dict(zip(_SUBSETS_WFLW, (10.77, 21.11, 12.02, 9.93, 10.55, 12.34, 11.62))),
    },
    "pose_mae_deg": {
        "mnv2": {"test": (3.06, 3.03, 2.26)},
        "mnv2_r": {"test": (3.08, 2.94, 2.22)},
        "ASMNet_nr": {"test": (3.14, 2.99, 2.23)},
        "ASMNet": {"test": (2.97, 2.93, 2.21)},
    },
}

_300W = DatasetSpec(
    name="300w",
    title="300W",
    num_landmarks=68,
    layout="300w",
    default_data_dir="data/300w",
    outer_eye_corners=(36, 45),
    pupils=(_run(36, 41), _run(42, 47)),
    flip_pairs=_FLIP_68,
    rigid_points=tuple((i, i) for i in _RIGID_68),
    contours=(
        *_lines((0, 16), (17, 21), (22, 26), (27, 30), (31, 35), closed=False),
        *_lines((36, 41), (42, 47), (48, 59), (60, 67), closed=True),
    ),
    splits={
        "train": _folders({"helen/trainset": 2000, "lfpw/trainset": 811, "afw": 337}),
        "test": _folders({"helen/testset": 330, "lfpw/testset": 224, "ibug": 135}),
    },
    subsets={
        "full": ("helen", "lfpw", "ibug"),
        "common": ("helen", "lfpw"),
        "challenging": ("ibug",),
        **{name: (name,) for name in ("helen", "lfpw", "ibug", "afw")},
    },
    subset_counts={
        **{"full": 689, "common": 554, "challenging": 135},
        **{"helen": 330, "lfpw": 224, "ibug": 135, "afw": 337},
    },
    published=_PUBLISHED_300W,
)
_WFLW_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_"
_WFLW = DatasetSpec(
    name="wflw",
    title="WFLW",
    num_landmarks=98,
    layout="wflw",
    default_data_dir="data/wflw",
    outer_eye_corners=(60, 72),
    pupils=((96,), (97,)),
    flip_pairs=_FLIP_98,
    rigid_points=tuple(zip(_RIGID_98, _RIGID_68)),
    contours=(
        *_lines((0, 32), (51, 54), (55, 59), closed=False),
        *_lines((33, 41), (42, 50), (60, 67), (68, 75), (76, 87), (88, 95), closed=True),
    ),
    splits={
        "train": (Source("train", f"{_WFLW_LISTS}train.txt", 7500),),
        "test": (Source("test", f"{_WFLW_LISTS}test.txt", 2500),),
    },
    subsets={name: (name,) for name in _SUBSETS_WFLW},
    subset_counts=dict(zip(_SUBSETS_WFLW, (2500, 326, 314, 698, 206, 736, 773))),
    thresholds=(0.10,),
    published=_PUBLISHED_WFLW,
)
_COFW = DatasetSpec(
    name="cofw",
    title="COFW",
    num_landmarks=29,
    layout="cofw",
    default_data_dir="data/cofw",
    outer_eye_corners=(8, 9),
    pupils=((16,), (17,)),
    flip_pairs=((0, 1), (2, 3), (4, 6), (5, 7), (8, 9), (10, 11), (12, 14), (13, 15), (16, 17), (18, 19), (22, 23)),
    # brow ends, eye corners, nose wings and tip, mouth corners and middles, chin
    rigid_points=(
        *((0, 17), (1, 26), (2, 21), (3, 22), (8, 36), (9, 45), (10, 39), (11, 42)),
        *((18, 31), (19, 35), (20, 30), (22, 48), (23, 54), (24, 51), (27, 57), (28, 8)),
    ),
    contours=(
        *(((0, 4, 2, 5), True), ((1, 6, 3, 7), True), ((8, 12, 10, 13), True), ((9, 14, 11, 15), True)),
        *(((18, 20, 19, 21), True), ((22, 24, 23, 27), True), ((22, 25, 23, 26), True)),
    ),
    splits={
        "train": (Source("train", "COFW_train_color.mat", 1345),),
        "test": (Source("test", "COFW_test_color.mat", 507),),
    },
    subsets={"test": ("test",)},
)


def _synthetic(real: DatasetSpec, name: str, title: str, *counts: int) -> DatasetSpec:
    """Returns the spec of rendered faces in the layout of `real`; `counts`: faces per folder or list."""
    count = iter(counts)
    splits = {
        split: tuple(replace(source, expected=next(count)) for source in sources)
        for split, sources in real.splits.items()
    }
    return replace(
        real, name=name, title=title, default_data_dir=f"data/{name}", splits=splits, subset_counts={}, published={},
        is_synthetic=True,
    )  # fmt: skip


DATASETS: dict[str, DatasetSpec] = {
    "synthetic": _synthetic(_300W, "synthetic", "Synthetic", 1000, 400, 200, 160, 110, 60),  # roughly half of 300W
    "300w": _300W,
    "wflw": _WFLW,
    "synthetic_wflw": _synthetic(_WFLW, "synthetic_wflw", "Synthetic (98 points)", 1600, 320),
    "cofw": _COFW,
}


def spec_with(num_landmarks: int, path: Path) -> DatasetSpec:
    """Returns the spec whose faces have so many points; `path`: what has them, for the error. Raises: InputError."""
    for spec in (_300W, _WFLW, _COFW):
        if spec.num_landmarks == num_landmarks:
            return spec
    raise InputError(f"{path}: {num_landmarks} points per face; 29, 68 and 98 have a meaning here.")
