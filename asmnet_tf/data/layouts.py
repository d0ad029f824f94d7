"""The layouts of landmarks and folders, each described by a TOML file: those in `descriptions/`, or a user's own.

    name = "mine"                       # letters, digits, _ and -: of run folders and shape models
    points = ["eye_r", "eye_l", "nose", "mouth_r", "mouth_l"]    # names, or how many there are
    flip = [[0, 1], ["mouth_r", 4]]     # points that change places in a mirror image, each in one pair
    normaliser = [0, 1]                 # points whose distance the error is divided by, or "box": its diagonal
    [splits]                            # paths relative to the data folder:
    train = "train"                     # a folder of NAME.jpg + NAME.pts,
    test = ["test", "more.csv"]         # a list of images (.txt), a .csv, dlib's .xml, COCO's .json; or several
    val = 0.1                           # a share of the training photographs, by a hash of their names

A point is a number from 0, a name, or, in a list, a run: "36-41" or "41-36". Keys that may be missing:

    title       in tables and figures
    based_on    a dataset that ships, for the points, flip, normaliser, pupils, pose, contours and thresholds not given
    pupils      two points or lists of points
    pose        points of the 68-point mean face, [point, point of that face], [point, x, y, z] in head axes; six give
                a head pose
    contours    lists of points to draw, closed where the first is also the last
    detector_box  [scale, x, y]: where the landmarks' box lies, see `DatasetSpec`; train.py measures it if it is missing
    subsets     name = list of tags; a source {path, tag, faces} has one, else the first part of its path
    counts      faces of a whole subset;  thresholds: of failure rates;  data_dir: beside this file
    layout      "300w", what stands above, or another of LAYOUTS;  synthetic, published: of the datasets that ship

Standard library only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from asmnet_tf.files import InputError, first_line, read_text

FOLDER = Path(__file__).with_name("descriptions")
REAL = ("300w", "wflw", "cofw")  # what a number of points stands for, where nothing else is known
LAYOUTS = ("300w", "wflw", "cofw", "aflw2000", "biwi")  # of files: which reader of readers.py or pose_sets.py
RIGID_POINTS = 6  # PnP on fewer says nothing
_KINDS = {
    **dict.fromkeys(("name", "title", "based_on", "layout", "data_dir"), str),
    **dict.fromkeys(("flip", "pupils", "pose", "contours", "thresholds", "detector_box"), list),
    **dict.fromkeys(("splits", "subsets", "counts", "published"), dict),
    **{"points": (int, list), "normaliser": (list, str), "synthetic": bool},
}
_WORDS = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
_INHERITED = ("points", "flip", "normaliser", "pupils", "pose", "contours", "thresholds", "detector_box")


@dataclass(frozen=True)
class Source:
    """One folder, list or annotation file of a dataset; expected: its official number of faces, 0 where unknown."""

    name: str
    path: str
    expected: int = 0


@dataclass(frozen=True)
class DatasetSpec:
    """All that differs between datasets.

    Indices are 0-based. `rigid_points` pairs a landmark with the point of the 68-point 3D mean face it stands for
    (`pose.py`), or with a place (x, y, z) in head axes; `contours` are (indices, closed) poly-lines for drawing.
    `detector_box`: the longer side of these landmarks' box over that of 68 landmarks, and by how many sides of that its
    centre lies further right and down on an upright face; None: as of 68.
    """

    name: str
    title: str
    num_landmarks: int
    layout: str  # one of LAYOUTS
    default_data_dir: str
    outer_eye_corners: tuple[int, ...]  # or what else the error is normalised by; (): the diagonal of the box
    pupils: tuple[tuple[int, ...], ...]  # points whose mean is a pupil
    flip_pairs: tuple[tuple[int, int], ...]
    rigid_points: tuple[tuple[int, int | tuple[float, ...]], ...]
    contours: tuple[tuple[tuple[int, ...], bool], ...]
    splits: dict[str, tuple[Source, ...]]
    subsets: dict[str, tuple[str, ...]]  # test subset -> the tags a sample needs one of (source name or attribute)
    shares: dict[str, float] = field(default_factory=dict)  # split -> share of the training photographs
    point_names: tuple[str, ...] = ()
    subset_counts: dict[str, int] = field(default_factory=dict)  # official number of faces, where results are published
    thresholds: tuple[float, ...] = (0.08, 0.10)  # of failure rate and AUC, in NME as a fraction
    is_synthetic: bool = False
    detector_box: tuple[float, float, float] | None = None
    published: dict[str, dict] = field(default_factory=dict)  # NME in %, inter-ocular; pose MAE in degrees, to HopeNet
    description: dict = field(default_factory=dict)  # the keys of the file, for the side-car of a model

    @property
    def flip_map(self) -> list[int]:
        """Point i of a mirrored face is point flip_map[i] of the original."""
        mapping = list(range(self.num_landmarks))
        for a, b in self.flip_pairs:
            mapping[a], mapping[b] = b, a
        return mapping

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits there are: by sources of their own, or by a share of the training photographs."""
        return (*self.splits, *self.shares)

    @property
    def is_known(self) -> bool:
        """Whether the number of points alone tells a model's layout, see `spec_of`; else its side-car describes it."""
        return self.name in DATASETS and self.num_landmarks in (DATASETS[name].num_landmarks for name in REAL)

    @property
    def has_pose(self) -> bool:
        """Whether the landmarks tell a head pose: six rigid points and a line of the eyes."""
        return len(self.rigid_points) >= RIGID_POINTS and bool(self.outer_eye_corners)


def find_spec(dataset: str) -> DatasetSpec:
    """Returns the spec of a name of `DATASETS` or of a TOML file. Raises: InputError."""
    if dataset in DATASETS:
        return DATASETS[dataset]
    path = Path(dataset)
    if path.suffix.lower() != ".toml":
        raise InputError(
            f"--dataset {dataset}: there are {', '.join(DATASETS)}, or a description FILE.toml of your own."
        )
    table = _table(path)
    spec = read_spec(table, path)
    if spec.name in DATASETS:
        raise InputError(f"{path}: name is that of a dataset that ships. Choose another; based_on takes its keys.")
    folder = path.parent / spec.default_data_dir if "data_dir" in table else path.parent
    return replace(spec, default_data_dir=str(folder))


def spec_of(sidecar: dict, num_landmarks: int, path: Path) -> DatasetSpec:
    """Returns the layout of a model's points: its side-car's, else the one of `REAL` with so many points.

    Args: path: of the model, for the error. Raises: InputError where neither tells.
    """
    spec = None
    if isinstance(sidecar.get("description"), dict):
        spec = read_spec(sidecar["description"], path)
    for name in () if spec else REAL:
        spec = DATASETS[name] if DATASETS[name].num_landmarks == num_landmarks else spec
    if spec is None or spec.num_landmarks != num_landmarks:
        known = ", ".join(f"{DATASETS[name].num_landmarks}" for name in REAL)
        raise InputError(
            f"{path}: {num_landmarks} points per face; {known} have a meaning here. Give --dataset FILE.toml."
        )
    return spec


def read_spec(table: dict, where: str | Path) -> DatasetSpec:
    """Returns the spec of a description. Args: where: its file. Raises: InputError naming file, key and what came."""

    def wrong(key: str, came: object, expected: str) -> InputError:
        of = f", of based_on {own['based_on']}," if key in _INHERITED and key not in own else ""
        return InputError(f"{where}: {key}{of} is {str(came)[:80]!r}, expected {expected}.")

    own = table
    if "based_on" in table:
        base = table["based_on"]
        if str(base) not in DATASETS:
            raise wrong("based_on", base, f"one of {', '.join(DATASETS)}")
        table = {**{key: DATASETS[base].description.get(key) for key in _INHERITED}, **table}
        table = {key: value for key, value in table.items() if value is not None}
    for key, value in own.items():
        if key not in _KINDS:
            raise InputError(f"{where}: unknown key {key[:60]!r}. There are {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or (isinstance(value, bool) and _KINDS[key] is not bool):
            kinds = {"points": "names or their number", "normaliser": 'two points or "box"'}
            raise wrong(key, value, kinds.get(key) or _WORDS[_KINDS[key]])
    for key in ("name", "points", "flip", "normaliser"):
        if key not in table:
            raise InputError(
                f"{where}: no {key}. It needs name, points, flip and normaliser; see asmnet_tf/data/layouts.py."
            )
    name, points = table["name"], table["points"]
    if not re.fullmatch(r"\w[\w-]{0,60}", name, re.ASCII):
        raise wrong("name", name, "letters, digits, _ and -")
    names = points if isinstance(points, list) else []
    count = len(names) or points
    if not isinstance(count, int) or not 2 <= count <= 2000 or not all(isinstance(n, str) for n in names):
        raise wrong("points", points, "names, or their number, from 2 to 2000")
    if unfit := [n for n in names if names.count(n) > 1 or re.fullmatch(r"[\d-]*", n)]:
        raise wrong("points", unfit[0], "names that differ and are no numbers")

    def run(key: str, items: object) -> tuple[int, ...]:
        found: list[int] = []
        for item in items if isinstance(items, list) else [items]:
            ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", item) if isinstance(item, str) else None
            first, last = map(int, ends.groups()) if ends else [names.index(item) if item in names else item] * 2
            if any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count for i in (first, last)):
                raise wrong(key, item, f"a point: a number from 0 to {count - 1}, a name of `points`, or a run")
            found += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        return tuple(found)

    pairs: list[tuple[int, int]] = []
    for item in table["flip"]:
        sides = [run("flip", side) for side in item] if isinstance(item, list) else []
        if len(sides) != 2 or len(sides[0]) != len(sides[1]):
            raise wrong("flip", item, "a pair: two points, or two lists of as many")
        pairs += zip(*sides)
    flat = [i for pair in pairs for i in pair]
    if doubled := [i for i in flat if flat.count(i) > 1]:
        raise wrong("flip", f"point {doubled[0]} twice", "each point in one pair")
    corners = () if table["normaliser"] == "box" else run("normaliser", table["normaliser"])
    if table["normaliser"] != "box" and (len(corners) != 2 or corners[0] == corners[1]):
        raise wrong("normaliser", table["normaliser"], 'two points, or "box"')
    pupils = tuple(run("pupils", item) for item in table.get("pupils", corners))
    if len(pupils) not in (0, 2) or (pupils and set(pupils[0]) == set(pupils[1])):
        raise wrong("pupils", table["pupils"], "two points, or two lists of points")
    rigid: dict[int, int | tuple[float, ...]] = {}
    for item in table.get("pose", []):
        point, *place = item if isinstance(item, list) and item else [item]
        (point,) = run("pose", [point])[:1]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in place)
        theirs = tuple(map(float, place)) if len(place) == 3 else place[0] if place else point
        if not numbers or len(place) not in (0, 1, 3) or (len(place) < 2 and theirs not in range(68)) or point in rigid:
            raise wrong("pose", item, "a point, [point, 0 to 67] or [point, x, y, z], each point once")
        rigid[point] = theirs
    contours = [run("contours", item) for item in table.get("contours", [])]
    if not all(contours):
        raise wrong("contours", table["contours"], "lists of points")
    lines = tuple((line[:-1], True) if len(line) > 2 and line[0] == line[-1] else (line, False) for line in contours)
    thresholds = table.get("thresholds", [0.08, 0.10])
    if not thresholds or not all(isinstance(t, float) and 0 < t <= 1 for t in thresholds):
        raise wrong("thresholds", thresholds, "fractions like 0.08")
    if not all(type(faces) is int and faces > 0 for faces in table.get("counts", {}).values()):
        raise wrong("counts", table["counts"], "numbers of faces")
    if not table.get("title", name).isprintable():
        raise wrong("title", table["title"], "one line")
    layout = table.get("layout", "300w")
    if layout not in LAYOUTS:
        raise wrong("layout", layout, f"one of {', '.join(LAYOUTS)}")
    place = table.get("detector_box")
    if place is not None:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= 5 for v in place)
        if not numbers or len(place) != 3 or place[0] < 0.05:
            raise wrong("detector_box", place, "scale, x and y, like [0.5, 0.0, -0.1]")
        place = tuple(map(float, place))
    splits, shares = {}, {}
    for split, sources in table.get("splits", {}).items():
        if isinstance(sources, float) and 0 < sources < 1 and split != "train":
            shares[split] = sources
        else:
            listed = sources if isinstance(sources, list) else [sources]
            splits[split] = tuple(_source(split, item, wrong) for item in listed)
            if not listed:
                raise wrong(f"splits.{split}", sources, "a path, or a list of such")
    if sum(shares.values()) >= 1 or (shares and "train" not in splits):
        raise wrong("splits", table["splits"], "shares of train that leave something of it")
    subsets = {}
    for subset, tags in table.get("subsets", {}).items():
        subsets[subset] = tuple(tags) if isinstance(tags, list) else (tags,)
        if not all(isinstance(tag, str) for tag in subsets[subset]):
            raise wrong(f"subsets.{subset}", tags, "tags")
    return DatasetSpec(
        name=name,
        title=table.get("title", name),
        num_landmarks=count,
        layout=layout,
        default_data_dir=table.get("data_dir", f"data/{name}"),
        outer_eye_corners=corners,
        pupils=pupils,
        flip_pairs=tuple(pairs),
        rigid_points=tuple(rigid.items()),
        contours=lines,
        splits=splits,
        subsets=subsets,
        shares=shares,
        point_names=tuple(names),
        subset_counts=table.get("counts", {}),
        thresholds=tuple(thresholds),
        is_synthetic=table.get("synthetic", False),
        detector_box=place,
        published=table.get("published", {}),
        description={key: table[key] for key in table if key not in ("based_on", "synthetic", "data_dir")},
    )


def _table(path: Path) -> dict:
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({first_line(error, 120)}).") from error


def _source(split: str, item: object, wrong: Callable[[str, object, str], InputError]) -> Source:
    entry = {"path": item} if not isinstance(item, dict) else item
    path, faces = entry.get("path"), entry.get("faces", 0)
    fits = isinstance(path, str) and path and set(entry) <= {"path", "tag", "faces"}
    if not fits or type(faces) is not int or faces < 0 or not isinstance(entry.get("tag", ""), str):
        raise wrong(f"splits.{split}", item, "a path, a list of such, or a share of train like 0.1")
    if any(kind(path).anchor or ".." in kind(path).parts for kind in (PurePosixPath, PureWindowsPath)):
        raise wrong(f"splits.{split}", path, "a path below the data folder")
    parts = PurePosixPath(path).parts or (split,)
    return Source(entry.get("tag") or (parts[0] if len(parts) > 1 else PurePosixPath(parts[0]).stem), path, faces)


DATASETS: dict[str, DatasetSpec] = {}
for _name in (*REAL, "synthetic", "synthetic_wflw", "points5", "aflw21", "menpo39", "points106", "aflw2000", "biwi"):
    DATASETS[_name] = read_spec(_table(FOLDER / f"{_name}.toml"), FOLDER / f"{_name}.toml")
