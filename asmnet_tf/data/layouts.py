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
    right_px    by how many pixels the annotations lie right of what they mark, see `DatasetSpec`
    subsets     name = list of tags; a source {path, tag, faces} has one, else the first part of its path
    counts      faces of a whole subset;  thresholds: of failure rates;  data_dir: beside this file
    layout      "300w", what stands above, or another of LAYOUTS;  synthetic, published: of the datasets that ship

Standard library only.
"""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from asmnet_tf.files import InputError, read_text, refusing

FOLDER = Path(__file__).with_name("descriptions")
REAL = ("300w", "wflw", "cofw")  # what a number of points stands for, where nothing else is known
LAYOUTS = ("300w", "wflw", "cofw", "aflw2000", "biwi")  # of files: which reader of readers.py
RIGID_POINTS = 6  # PnP on fewer says nothing
_KINDS = {
    **dict.fromkeys(("name", "title", "based_on", "layout", "data_dir"), (str, "a text")),
    **dict.fromkeys(("flip", "pupils", "pose", "contours", "thresholds", "detector_box"), (list, "a list")),
    **dict.fromkeys(("splits", "subsets", "counts", "published"), (dict, "a table")),
    **{"points": (int | list, "names or their number"), "normaliser": (list | str, 'two points or "box"')},
    "synthetic": (bool, "true or false"),
    "right_px": (int | float, "a number of pixels"),
}
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
    `right_px`: image pixels by which the annotations lie right of what they mark (tests/benchmarks/offsets.py). The
    annotations of a mirrored training face would lie left of it, so they are moved: the network learns one of the two.
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
    right_px: float = 0.0
    published: dict[str, dict] = field(default_factory=dict)  # NME in %, inter-ocular; pose MAE in degrees, to HopeNet
    description: dict = field(default_factory=dict)  # the keys of the file, for the side-car of a model

    @property
    def flip_map(self) -> list[int]:
        """Point i of a mirrored face is point flip_map[i] of the original."""
        other = dict([*self.flip_pairs, *((b, a) for a, b in self.flip_pairs)])
        return [other.get(i, i) for i in range(self.num_landmarks)]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits there are: by sources of their own, or by a share of the training photographs."""
        return (*self.splits, *self.shares)

    @property
    def is_known(self) -> bool:
        """Whether the number of points alone tells a model's layout, see `spec_of`; else its side-car describes it."""
        return self.name in DATASETS and self.num_landmarks in (DATASETS[name].num_landmarks for name in REAL)

    @property
    def unit(self) -> str:
        """What errors are divided by, in words."""
        return "inter-ocular" if self.outer_eye_corners else "of the box's diagonal"

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
        raise InputError(f"--dataset {dataset}: there are {', '.join(DATASETS)}, or your own description FILE.toml.")
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
    own, known = sidecar.get("description"), {DATASETS[name].num_landmarks: DATASETS[name] for name in REAL}
    spec = read_spec(own, path) if isinstance(own, dict) else known.get(num_landmarks)
    if spec is None or spec.num_landmarks != num_landmarks:
        meant = f"{', '.join(map(str, known))} have a meaning here"
        raise InputError(f"{path}: {num_landmarks} points per face; {meant}. Give --dataset FILE.toml.")
    return spec


def read_spec(table: dict, where: str | Path) -> DatasetSpec:
    """Returns the spec of a description. Args: where: its file. Raises: InputError naming file, key and what came."""

    def need(fits: object, key: str, came: object, expected: str) -> None:
        if not fits:
            of = f", of based_on {own['based_on']}," if key in _INHERITED and key not in own else ""
            raise InputError(f"{where}: {key}{of} is {str(came)[:80]!r}, expected {expected}.")

    own = table
    if "based_on" in own:
        need(str(own["based_on"]) in DATASETS, "based_on", own["based_on"], f"one of {', '.join(DATASETS)}")
        theirs = DATASETS[own["based_on"]].description
        table = {key: theirs[key] for key in _INHERITED if key in theirs} | own
    for key, value in own.items():
        if key not in _KINDS:
            raise InputError(f"{where}: unknown key {key[:60]!r}. There are {', '.join(_KINDS)}.")
        kind, words = _KINDS[key]
        need(isinstance(value, kind) and (kind is bool or not isinstance(value, bool)), key, value, words)
    if missing := [key for key in ("name", "points", "flip", "normaliser") if key not in table]:
        needed = "It needs name, points, flip and normaliser; see asmnet_tf/data/layouts.py."
        raise InputError(f"{where}: no {missing[0]}. {needed}")
    name, points = table["name"], table["points"]
    need(re.fullmatch(r"\w[\w-]{0,60}", name, re.ASCII), "name", name, "letters, digits, _ and -")
    names = points if isinstance(points, list) else []
    count = len(names) or points
    counted = isinstance(count, int) and 2 <= count <= 2000 and all(isinstance(n, str) for n in names)
    need(counted, "points", points, "names, or their number, from 2 to 2000")
    unfit = next((n for n in names if names.count(n) > 1 or re.fullmatch(r"[\d-]*", n)), None)
    need(unfit is None, "points", unfit, "names that differ and are no numbers")

    def run(key: str, items: object) -> tuple[int, ...]:
        found: list[int] = []
        for item in items if isinstance(items, list) else [items]:
            ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", item) if isinstance(item, str) else None
            first, last = map(int, ends.groups()) if ends else [names.index(item) if item in names else item] * 2
            point = f"a point: a number from 0 to {count - 1}, a name of `points`, or a run"
            need(all(type(i) is int and 0 <= i < count for i in (first, last)), key, item, point)
            found += range(first, last + 1) if first <= last else range(first, last - 1, -1)
        return tuple(found)

    def are_numbers(items: list, limit: float) -> bool:
        return all(type(v) in (int, float) and abs(v) <= limit for v in items)

    pairs: list[tuple[int, int]] = []
    for item in table["flip"]:
        sides = [run("flip", side) for side in item] if isinstance(item, list) else []
        pair = len(sides) == 2 and len(sides[0]) == len(sides[1])
        need(pair, "flip", item, "a pair: two points, or two lists of as many")
        pairs += zip(*sides)
    flat = [i for pair in pairs for i in pair]
    doubled = next((i for i in flat if flat.count(i) > 1), None)
    need(doubled is None, "flip", f"point {doubled} twice", "each point in one pair")
    box = table["normaliser"] == "box"
    corners = () if box else run("normaliser", table["normaliser"])
    need(box or len(set(corners)) == len(corners) == 2, "normaliser", table["normaliser"], 'two points, or "box"')
    pupils = tuple(run("pupils", item) for item in table.get("pupils", corners))
    two = (not pupils and box) or (len(pupils) == 2 and set(pupils[0]) != set(pupils[1]))
    need(two, "pupils", table.get("pupils"), "two points, or two lists of points")
    rigid: dict[int, int | tuple[float, ...]] = {}
    for item in table.get("pose", []):
        point, *place = item if isinstance(item, list) and item else [item]
        (point,) = run("pose", [point])[:1]
        place = place or [point]
        fits = len(place) == 3 or (len(place) == 1 and place[0] in range(68))
        fits = fits and are_numbers(place, 1e9) and point not in rigid
        need(fits, "pose", item, "a point, [point, 0 to 67] or [point, x, y, z], each point once")
        rigid[point] = tuple(map(float, place)) if len(place) == 3 else place[0]
    contours = [run("contours", item) for item in table.get("contours", [])]
    need(all(contours), "contours", table.get("contours"), "lists of points")
    lines = tuple((line[:-1], True) if len(line) > 2 and line[0] == line[-1] else (line, False) for line in contours)
    thresholds = table.get("thresholds", [0.08, 0.10])
    fractions = all(isinstance(t, float) and 0.01 <= t <= 1 and abs(t - round(t, 2)) < 1e-9 for t in thresholds)
    fractions = thresholds and fractions and len(set(thresholds)) == len(thresholds)
    need(fractions, "thresholds", thresholds, "fractions like 0.08, of two decimals, each once")
    counts, title, layout = table.get("counts", {}), table.get("title", name), table.get("layout", "300w")
    need(all(type(faces) is int and faces > 0 for faces in counts.values()), "counts", counts, "numbers of faces")
    need(title.isprintable(), "title", title, "one line")
    need(layout in LAYOUTS, "layout", layout, f"one of {', '.join(LAYOUTS)}")
    if (box := table.get("detector_box")) is not None:
        fits = len(box) == 3 and are_numbers(box, 5) and box[0] >= 0.05
        need(fits, "detector_box", box, "scale, x and y, like [0.5, 0.0, -0.1]")
        box = tuple(map(float, box))
    need(are_numbers([table.get("right_px", 0)], 100), "right_px", table.get("right_px"), "a number of pixels")
    splits, shares = {}, {}
    for split, sources in table.get("splits", {}).items():
        need(split in ("train", "val", "test"), "splits", split, "train, val and test; other keys stand above [splits]")
        if isinstance(sources, float) and 0 < sources < 1 and split != "train":
            shares[split] = sources
            continue
        listed = sources if isinstance(sources, list) else [sources]
        need(listed, f"splits.{split}", sources, "a path, or a list of such")
        splits[split] = tuple(_source(split, item, need) for item in listed)
    remains = sum(shares.values()) < 1 and (not shares or "train" in splits)
    need(remains, "splits", table.get("splits"), "shares of train that leave something of it")
    subsets = {key: tuple(t) if isinstance(t, list) else (t,) for key, t in table.get("subsets", {}).items()}
    for subset, tags in subsets.items():
        need(all(isinstance(tag, str) for tag in tags), f"subsets.{subset}", table["subsets"][subset], "tags")
    return DatasetSpec(
        name=name,
        title=title,
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
        subset_counts=counts,
        thresholds=tuple(thresholds),
        is_synthetic=table.get("synthetic", False),
        detector_box=box,
        right_px=float(table.get("right_px", 0)),
        published=table.get("published", {}),
        description={key: table[key] for key in table if key not in ("based_on", "synthetic", "data_dir")},
    )


def _table(path: Path) -> dict:
    text = read_text(path)
    with refusing(f"{path}: not TOML", (ValueError, RecursionError)):
        return tomllib.loads(text)


def _source(split: str, item: object, need: Callable[[object, str, object, str], None]) -> Source:
    entry = item if isinstance(item, dict) else {"path": item}
    path, faces, tag = entry.get("path"), entry.get("faces", 0), entry.get("tag", "")
    fits = isinstance(path, str) and path and set(entry) <= {"path", "tag", "faces"}
    fits = fits and type(faces) is int and faces >= 0 and isinstance(tag, str)
    need(fits, f"splits.{split}", item, "a path, a list of such, or a share of train like 0.1")
    above = any(kind(path).anchor or ".." in kind(path).parts for kind in (PurePosixPath, PureWindowsPath))
    need(not above, f"splits.{split}", path, "a path below the data folder")
    first, *more = PurePosixPath(path).parts or (split,)
    return Source(tag or (first if more else PurePosixPath(first).stem), path, faces)


DATASETS: dict[str, DatasetSpec] = {}
for _name in (*REAL, "synthetic", "synthetic_wflw", "points5", "aflw21", "menpo39", "points106", "aflw2000", "biwi"):
    DATASETS[_name] = read_spec(_table(FOLDER / f"{_name}.toml"), FOLDER / f"{_name}.toml")
