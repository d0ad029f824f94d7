"""Reads a dataset folder as downloaded into a list of samples: always the same ones in the same order (NumPy, OpenCV).

300W    <data_dir>/{helen,lfpw}/{trainset,testset}/, afw/, ibug/ with NAME.{jpg,png,...} beside NAME.pts
WFLW    <data_dir>/WFLW_images/... and WFLW_annotations/list_98pt_rect_attr_train_test/*.txt (207 columns)
COFW    <data_dir>/COFW_{train,test}_color.mat (MATLAB v7.3, which is HDF5)
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from asmnet_tf.config import DATASETS, PHOTO_ENDINGS, DatasetSpec, Source
from asmnet_tf.files import InputError, parse_numbers, read_text, write_text
from asmnet_tf.geometry import image_size, landmark_box, read_image
from asmnet_tf.pose import align_signs, cached_pose, read_pose_labels

if TYPE_CHECKING:
    import h5py

_ENDING = re.compile(rf"({'|'.join(map(re.escape, (*PHOTO_ENDINGS, '.pts')))})(?=#\d+$|$)", re.IGNORECASE)
MAX_PTS_BYTES = 1 << 20  # a .pts has about 2 kB; more is another kind of file
MAX_LIST_BYTES = 1 << 28  # the list of 7,500 WFLW faces has 16 MB
WFLW_ATTRIBUTES = ("largepose", "expression", "illumination", "makeup", "occlusion", "blur")  # columns 200..205


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One annotated face.

    name: unique in its split: image path without its ending, relative to the data folder (WFLW: to WFLW_images, with
    `#k` for the k-th listed face of that image). landmarks: float32 (L, 2), pixels of the upright
    image, 0-based; half of them or more lie in it.
    bbox: float32 (4,), bounding box of the landmarks. tags: source folder and attribute flags. pose: yaw, pitch, roll
    in degrees, or None. index: which image of a file that holds several (COFW).
    """

    name: str
    image_path: Path
    landmarks: np.ndarray
    bbox: np.ndarray
    tags: frozenset[str]
    pose: np.ndarray | None = None
    index: int | None = None

    def read_image(self) -> np.ndarray:
        """Returns RGB uint8 (H, W, 3). Raises: InputError naming the file."""
        if self.index is None:
            return read_image(self.image_path)
        return _read_cofw_image(self.image_path, self.index)

    def image_size(self) -> tuple[int, int, bool] | None:
        """Returns width and height of that image and whether EXIF turned it; see `geometry.image_size`."""
        return image_size(self.image_path) if self.index is None else _cofw_image_size(self.image_path, self.index)


class BadSamples:
    """What becomes of a sample that cannot be used: it ends the run, or is left out, counted and listed.

    Args: skip: leave it out. images: whether images are decoded to see if they can be: once more, so only with `skip`.
    """

    def __init__(self, skip: bool = False, images: bool = True) -> None:
        self.skip = skip
        self.images = skip and images
        self.reasons: dict[str, str] = {}  # of those left out, by name

    @contextlib.contextmanager
    def catch(self, name: str) -> Iterator[None]:
        """Notes an InputError as that sample's, or lets it pass where nothing is to be skipped."""
        try:
            yield
        except InputError as error:
            if not self.skip:
                raise
            self.reasons[name] = str(error)

    def write(self, folder: str | Path) -> None:
        """Writes skipped.csv (name, reason) and says so in one line on stderr; without a bad sample there is none."""
        path = Path(folder) / "skipped.csv"
        if not self.reasons:
            path.unlink(missing_ok=True)  # of an earlier evaluation into the same folder
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("name", "reason"), *self.reasons.items()])
        write_text(path, text.getvalue())
        print(f"{path}: {len(self.reasons)} bad samples skipped, the first: {self._first()}", file=sys.stderr)

    def _first(self) -> str:
        return next(iter(self.reasons.values()))


def _sample(name: str, path: Path, landmarks: np.ndarray, tags: Set[str], index: int | None = None) -> Sample:
    landmarks = landmarks.astype(np.float32)
    return Sample(name, path, landmarks, landmark_box(landmarks), frozenset(tags), index=index)


def _progress(items: Iterable, title: str, total: int | None = None) -> Iterable:
    return tqdm(items, f"read {title}", total, unit="face", disable=None, leave=False)


# --- public readers ---------------------------------------------------------------------------------------------------


def read_samples(
    spec: DatasetSpec,
    data_dir: str | Path,
    split: str,
    limit: int | None = None,
    quiet: bool = False,
    bad: BadSamples | None = None,
) -> list[Sample]:
    """Reads one split of a dataset; says once on stderr what a partial download lacks.

    Args:    split: a key of spec.splits ("train", "test"). limit: the first so many samples only. bad: what to do with
             those that cannot be used; default: raise.
    Returns: samples in the order of the spec's sources, by file name within a folder (300W), by line in a list.
    Raises:  InputError for a missing or empty folder and for a file that cannot be used.
    """
    data_dir = Path(data_dir)
    bad = bad or BadSamples()
    if split not in spec.splits:
        raise InputError(f"split {split!r}: {spec.title} has {', '.join(spec.splits)}.")
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder. Put {spec.title} there or give its place with --data-dir.")
    reader = {"300w": _read_300w, "wflw": _read_wflw, "cofw": _read_cofw}[spec.layout]
    samples: list[Sample] = []
    found: dict[str, int] = {}
    for source in spec.splits[split]:
        here = reader(spec, data_dir, source, None if limit is None else limit - len(samples), bad)
        found[source.name] = len(here)
        samples += here
        if limit is not None and len(samples) >= limit:
            break
    samples = _usable(samples, bad, quiet)
    if not samples and bad.reasons:
        raise InputError(f"{data_dir}: all {len(bad.reasons)} {split} faces are bad, the first: {bad._first()}")
    if not samples:
        places = ", ".join(source.path for source in spec.splits[split])
        raise InputError(f"{data_dir}: no {spec.title} {split} face in it (looked for {places}). Is --data-dir right?")
    expected = sum(source.expected for source in spec.splits[split])
    if limit is None and len(samples) != expected and not quiet:
        parts = ", ".join(f"{s.name.upper()} {found[s.name]}/{s.expected}" for s in spec.splits[split])
        print(f"{spec.title} {split}: {len(samples)} of {expected} faces ({parts})", file=sys.stderr)
    return samples


def _usable(samples: list[Sample], bad: BadSamples, quiet: bool) -> list[Sample]:
    """Returns the samples whose landmarks lie in their images; where bad ones are skipped, their images decode, too.

    Only headers are read, unless images are to be decoded.
    """

    turned = []

    def check(sample: Sample) -> InputError | None:
        width, height, is_turned = sample.image_size() or (np.inf, np.inf, False)  # decoding it will say what is wrong
        turned.extend([sample] * is_turned)
        x, y = sample.landmarks.T
        inside = int(((x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)).sum())
        try:
            if 2 * inside < len(x) and np.isfinite(width):
                other = "the image before EXIF turned it" if is_turned else "another size of this image"
                raise InputError(
                    f"{sample.image_path}: {inside} of {len(x)} landmarks of {sample.name} lie in its "
                    f"{width} x {height} pixels. Do the points belong to {other}?"
                )
            if bad.images:
                sample.read_image()
        except InputError as error:
            return error
        return None

    fine = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside the interpreter lock
        errors = pool.map(check, samples) if bad.images else map(check, samples)
        for sample, error in zip(samples, _progress(errors, "images", len(samples))):
            with bad.catch(sample.name):
                if error is not None:
                    raise error
                fine.append(sample)
    if turned and not quiet:
        first = min(str(sample.image_path) for sample in turned)
        print(
            f"{first}: turned upright as its EXIF orientation says, as {len(turned)} of {len(samples)} faces; their "
            "points must be those of the upright image",
            file=sys.stderr,
        )
    return fine


def trainable(samples: list[Sample], bad: BadSamples) -> list[Sample]:
    """Returns the samples whose head pose is known. PnP finds none for landmarks that are all in one place.

    Raises: InputError naming the first that has none, unless such are to be skipped.
    """
    chosen = []
    for sample in samples:
        with bad.catch(sample.name):
            if not np.isfinite(sample.pose).all():
                raise InputError(
                    f"{sample.image_path}: no head pose for this face (its landmarks are degenerate). Remove it."
                )
            chosen.append(sample)
    return chosen


def with_pose(
    samples: list[Sample], spec: DatasetSpec, data_dir: str | Path, labels: str | Path | None
) -> list[Sample]:
    """Returns the samples with their pose; see `pose_of`."""
    angles = pose_of(samples, spec, data_dir, labels)[0]
    return [replace(sample, pose=angle.astype(np.float32)) for sample, angle in zip(samples, angles)]


def pose_of(
    samples: list[Sample], spec: DatasetSpec, data_dir: str | Path, labels: str | Path | None
) -> tuple[np.ndarray, str]:
    """Returns the pose of samples, float64 (N, 3), degrees, and in words what it is.

    It is from `labels` (see `pose.read_pose_labels`), else by PnP, cached. Synthetic data brings its exact pose in
    `pose.csv`, which is used where `labels` is None. Labels of another sign convention are brought to ours.

    Raises: InputError if a sample has no label in `labels`.
    """
    by_pnp = cached_pose(np.stack([sample.landmarks for sample in samples]), spec)
    exact = Path(data_dir) / "pose.csv"
    what = str(labels)
    if labels is None and spec.is_synthetic and exact.is_file():
        labels, what = exact, "exact (pose.csv of the synthetic faces)"
    if labels is None:
        return by_pnp, "PnP on the ground-truth landmarks"
    table = read_pose_labels(labels)
    rows = match_names([sample.name for sample in samples], list(table))
    missing = [sample.name for sample, row in zip(samples, rows) if row is None]
    if missing:
        raise InputError(f"{labels}: no pose for {missing[0]} ({len(missing)} of {len(samples)} faces lack one).")
    values = list(table.values())
    angles, negated = align_signs(np.stack([values[row] for row in rows]), by_pnp, labels)
    return angles, what + (f"; negated: {', '.join(negated)}" if negated else "")


def select(samples: list[Sample], spec: DatasetSpec, subset: str) -> np.ndarray:
    """Returns which samples belong to a subset (`all`: every one), bool (N,).

    Raises: InputError for a subset that the dataset does not have.
    """
    if subset == "all":
        return np.ones(len(samples), bool)
    if subset not in spec.subsets:
        raise InputError(f"subset {subset!r}: {spec.title} has {', '.join(spec.subsets)}, all.")
    wanted = set(spec.subsets[subset])
    return np.array([bool(wanted & sample.tags) for sample in samples], bool)


def photograph(name: str) -> str:
    """Returns the source and photograph of a sample name: without `#k`, else `_k`, which count faces of a photograph.

    300W writes `_1`, `_2`, ... behind a photograph's number; `image_0001` and `photo_10` number photographs.
    """
    stem, mark, face = name.rpartition("#")
    if mark and face.isdecimal():
        return stem
    return re.sub(r"_[1-9]$|(?<=[0-9])_[1-9][0-9]$", "", name)


def hold_out(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Splits training samples into (train, validation): held out is where the hash of the photograph is below.

    The choice depends on a photograph's source and name alone: every source is split in expectation, faces of one
    photograph stand on one side, and a missing sample moves no other. If no hash is below `fraction`, the photograph
    with the smallest one is held out. Where all samples would be of one photograph, each counts as one of its own.

    Args: fraction: of the photographs, in expectation; 0 gives an empty validation list.
    """
    names = [photograph(sample.name) for sample in samples]
    if len(set(names)) == 1:
        names = [sample.name for sample in samples]
    hashes = [int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big") / 2**64 for name in names]
    limit = max(fraction, np.nextafter(min(hashes, default=0.0), 1.0)) if fraction else 0.0
    below = [value < limit for value in hashes]
    return [s for s, held in zip(samples, below) if not held], [s for s, held in zip(samples, below) if held]


def match_names(wanted: list[str], given: list[str]) -> list[int | None]:
    """Returns, for each wanted sample name, the place of its row in `given`, or None.

    The same name comes first. Otherwise names match, image endings aside, by as many of their last parts as agree
    (`/data/images/image_0001.png` is `lfpw/testset/image_0001`), where each is the other's only best match. What lies
    in another folder of the dataset (`helen/trainset/image_0001`) is another face.
    """

    def parts(name: str) -> tuple[str, ...]:
        return tuple(part for part in _ENDING.sub("", name.replace("\\", "/")).split("/") if part not in ("", "."))

    def folders(name: tuple[str, ...]) -> set[str]:
        return {part.lower() for part in name[:-1]}

    ours, theirs = [parts(name) for name in wanted], [parts(name) for name in given]
    known = set().union(*map(folders, ours))
    for spec in DATASETS.values():
        sources = [source for split in spec.splits.values() for source in split]
        names = {part for source in sources for part in (source.name, *source.path.split("/"))}
        known |= names if names & known else set()
    ours_in, theirs_in = [folders(name) for name in ours], [folders(name) & known for name in theirs]

    def fits(i: int, row: int, shared: tuple[str, ...]) -> bool:
        return shared == ours[i] or theirs_in[row] <= ours_in[i]

    rows = _best_matches(ours, theirs, fits)
    back = _best_matches(theirs, ours, lambda row, i, shared: fits(i, row, shared))
    same = {name: row for row, name in enumerate(given)}
    mutual = [row if row is not None and back[row] == i else None for i, row in enumerate(rows)]
    return [same.get(name, row) for name, row in zip(wanted, mutual)]


def _best_matches(
    names: list[tuple[str, ...]], others: list[tuple[str, ...]], fits: Callable[[int, int, tuple[str, ...]], bool]
) -> list[int | None]:
    """Returns, for each name in parts, which of the others shares most of its last parts; None for none or several."""
    ends: dict[tuple[str, ...], list[int]] = {}
    for j, other in enumerate(others):
        for k in range(len(other)):
            ends.setdefault(other[k:], []).append(j)
    result: list[int | None] = []
    for i, name in enumerate(names):
        found: list[int] = []
        for k in range(len(name)):
            fitting = (j for j in ends.get(name[k:], ()) if fits(i, j, name[k:]))
            if found := list(itertools.islice(fitting, 2)):
                break
        result.append(found[0] if len(found) == 1 else None)
    return result


# --- 300W -------------------------------------------------------------------------------------------------------------


def read_pts(path: str | Path, num_landmarks: int) -> np.ndarray:
    """Reads a `.pts` file, with or without the `version/n_points/{` header.

    Returns: float64 (L, 2), 0-based pixels: the file's coordinates are 1-based.
    Raises:  InputError naming the file and what is wrong with it.
    """
    try:
        lines = read_text(path, MAX_PTS_BYTES).split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Is the download complete?") from error
    rows, said = [], num_landmarks
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line in "{}":
            continue
        try:
            point = _point(line)
        except ValueError as error:
            if line.casefold().startswith(("version", "n_points")):
                count = re.search(r"n_points\W*(\d{1,9})$", line.casefold())
                said = int(count[1]) if count else said
                continue
            raise InputError(f"{path}, line {number}: {line[:40]!r}, expected two numbers ({error}).") from error
        if len(point) != 2 or not all(abs(value) <= 1e6 for value in point):  # NaN is not
            raise InputError(f"{path}, line {number}: {line[:40]!r}, expected two numbers, x and y.")
        rows.append(point)
    if len(rows) != num_landmarks:
        raise InputError(f"{path}: {len(rows)} points, {num_landmarks} expected. Is --dataset right?")
    if said != num_landmarks:
        raise InputError(f"{path}: n_points says {said}, but there are {len(rows)} points. Is the file whole?")
    return np.array(rows) - 1.0


def _point(line: str) -> list[float]:
    """Returns the numbers of a line of a .pts: parted by spaces, tabs, semicolons or commas; see `parse_numbers`."""
    with contextlib.suppress(ValueError):
        return [float(part) for part in line.split()]
    fields = [part for part in (part.strip(",") for part in re.split(r"[\s;]+", line)) if part]
    if len(fields) == 1:
        fields = fields[0].split(",")
        if len(fields) > 2:
            raise ValueError("commas as decimal point and between the numbers? Write decimal points")
    return parse_numbers(fields)


def pts_text(landmarks: np.ndarray) -> str:
    """Returns landmarks (L, 2), 0-based pixels, as the text of a `.pts` file, whose first pixel is (1, 1)."""
    rows = "\n".join(f"{x + 1:.4f} {y + 1:.4f}" for x, y in landmarks.tolist())
    return f"version: 1\nn_points:  {len(landmarks)}\n{{\n{rows}\n}}\n"


def _read_300w(spec: DatasetSpec, data_dir: Path, source: Source, limit: int | None, bad: BadSamples) -> list[Sample]:
    folder = data_dir / source.path
    if not folder.is_dir():
        return []
    # one listing instead of three look-ups a file; natural order is not needed, only a fixed one
    files = [os.path.splitext(name) for name in sorted(os.listdir(folder), reverse=True) if not name.startswith(".")]
    images = {stem: stem + ending for stem, ending in files if ending.lower() in PHOTO_ENDINGS}
    points = {stem: stem + ending for stem, ending in reversed(files) if ending.lower() == ".pts"}
    paired = [(stem, name) for stem, name in points.items() if stem in images]
    if len(paired) < len(points):
        lonely = next(name for stem, name in points.items() if stem not in images)
        print(f"{folder}: {len(points) - len(paired)} .pts without an image ({lonely}), left out", file=sys.stderr)
    faces = {stem + ending for stem, ending in files if stem in images and stem in points}
    faces = sorted(name for name in faces if name.lower().endswith((".pts", *PHOTO_ENDINGS)))
    if spare := [name for name in faces if name not in {*images.values(), *points.values()}]:
        print(f"{folder}: {len(spare)} more files of the same faces ({spare[0]}), left out", file=sys.stderr)
    tags = frozenset({source.name})
    samples = []
    for stem, file in _progress(paired[:limit], source.path):
        name = f"{source.path}/{stem}"
        with bad.catch(name):
            samples.append(_sample(name, folder / images[stem], read_pts(folder / file, spec.num_landmarks), tags))
    return samples


# --- WFLW -------------------------------------------------------------------------------------------------------------


def _read_wflw(spec: DatasetSpec, data_dir: Path, source: Source, limit: int | None, bad: BadSamples) -> list[Sample]:
    path = data_dir / source.path
    if not path.is_file():
        return []
    samples, faces, absent = [], Counter(), 0
    columns = 2 * spec.num_landmarks + 11
    try:
        lines = read_text(path, MAX_LIST_BYTES).split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    listed: dict[str, bool] = {}
    for number, line in enumerate(_progress(lines, path.name), 1):
        if limit is not None and len(samples) >= limit:
            break
        if not line.strip():
            continue
        with bad.catch(f"{path.name}, line {number}"):
            parts = next((p for s in (None, ",", ";") if len(p := line.split(s, columns - 1)) == columns), line.split())
            if len(parts) != columns:
                raise InputError(
                    f"{path}, line {number}: {len(parts)} columns, {columns} expected. Is --dataset right?"
                )
            image_name = parts[-1].strip().replace("\\", "/")
            relative = Path(image_name)
            if relative.anchor or ".." in relative.parts:
                raise InputError(f"{path}, line {number}: image name {image_name[:60]!r} leaves the data folder.")
            if not relative.name:
                raise InputError(
                    f"{path}, line {number}: {image_name[:60]!r} is no image name. Download the list again."
                )
            image_name = relative.as_posix()
            name = f"{relative.with_suffix('').as_posix()}#{faces[image_name]}"
            faces[image_name] += 1
            try:
                numbers = np.array(parts[:-1], np.float64)
            except ValueError:
                try:
                    numbers = np.array(parse_numbers([part.strip(" ,;\t") for part in parts[:-1]]))
                except ValueError as error:
                    raise InputError(f"{path}, line {number}: a column that is not a number ({error}).") from error
            if not np.isfinite(numbers).all() or np.abs(numbers).max() > 1e6:
                raise InputError(f"{path}, line {number}: a column that is not a number. Download the list again.")
            image = data_dir / "WFLW_images" / relative
            if image_name not in listed:
                listed[image_name] = os.path.isfile(image)  # unlike is_file() also False for what no file can be called
            if not listed[image_name]:
                absent += 1
                continue
            landmarks = numbers[: 2 * spec.num_landmarks].reshape(-1, 2)
            flags = numbers[2 * spec.num_landmarks + 4 : 2 * spec.num_landmarks + 10] > 0.5
            tags = {source.name} | {tag for tag, on in zip(WFLW_ATTRIBUTES, flags) if on}
            samples.append(_sample(name, image, landmarks, tags))
    if absent:
        print(f"{path}: {absent} listed faces whose image is absent, left out", file=sys.stderr)
    return samples


# --- COFW -------------------------------------------------------------------------------------------------------------


def _read_cofw(spec: DatasetSpec, data_dir: Path, source: Source, limit: int | None, bad: BadSamples) -> list[Sample]:
    path = data_dir / source.path
    if not path.is_file():
        return []
    ending = "Tr" if source.name == "train" else "T"
    with _reading_mat(path, f"phis{ending} and Is{ending}") as (file, read):
        table = read(file, f"phis{ending}").astype(np.float64)  # MATLAB is column-major: (87, N) here
        count = file[f"Is{ending}"].size
    rows = 3 * spec.num_landmarks
    if table.ndim != 2 or table.shape[0] != rows or table.shape[1] != count:
        raise InputError(f"{path}: phis{ending} has shape {table.shape}, expected ({rows}, {count}).")
    samples = []
    for i, column in enumerate(_progress(table.T[:limit], path.name)):
        name = f"{source.name}/{i:04d}"
        with bad.catch(name):
            if not (np.abs(column) <= 1e6).all():  # NaN is not
                raise InputError(f"{path}: face {i} has a point that is not a number. Download it again.")
            x, y, occluded = np.split(column, 3)
            tags = {source.name} | ({"occlusion"} if occluded.any() else set())
            landmarks = np.stack([x, y], axis=1) - 1.0  # MATLAB counts from 1
            samples.append(_sample(name, path, landmarks, tags, index=i))
    return samples


def _cofw_reference(file: h5py.File, read: Callable, index: int) -> h5py.Reference:
    return read(file, "IsTr" if "IsTr" in file else "IsT").reshape(-1)[index]


def _cofw_image_size(path: Path, index: int) -> tuple[int, int, bool] | None:
    try:
        with _reading_mat(path, f"image {index}") as (file, read):
            width, height = file[_cofw_reference(file, read, index)].shape[-2:]
    except InputError:
        return None
    return width, height, False


def _read_cofw_image(path: Path, index: int) -> np.ndarray:
    with _reading_mat(path, f"image {index}") as (file, read):
        image = read(file, _cofw_reference(file, read, index))
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and len(image) != 3):
        raise InputError(f"{path}: image {index} is {image.dtype} {image.shape}, expected uint8 (3, W, H) or (W, H).")
    image = image.T if image.ndim == 3 else np.repeat(image.T[..., None], 3, axis=-1)  # (3, W, H) -> (H, W, 3)
    return np.ascontiguousarray(image)


@contextlib.contextmanager
def _reading_mat(path: Path, wanted: str) -> Iterator[tuple]:
    """Yields an open COFW file and the function that reads an array of it. Raises: InputError for a damaged file."""
    import h5py  # comes with Keras; only this dataset needs it

    from asmnet_tf.hdf5 import BROKEN_HDF5, read_dataset

    try:
        with h5py.File(path, "r") as file:
            yield file, read_dataset
    except InputError:
        raise
    except BROKEN_HDF5 as error:
        raise InputError(f"{path}: {wanted} cannot be read ({str(error)[:100]}). Is it COFW's colour file?") from error
