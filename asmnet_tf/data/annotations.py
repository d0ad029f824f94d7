"""A dataset folder as downloaded -> a list of samples: always the same ones in the same order (NumPy, OpenCV)."""

import functools
import hashlib
import itertools
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from asmnet_tf.config import PHOTO_ENDINGS
from asmnet_tf.data import readers
from asmnet_tf.data.layouts import DATASETS, DatasetSpec, Source
from asmnet_tf.data.pose import align_signs, cached_pose, read_pose_labels
from asmnet_tf.data.readers import BadSamples, Sample, pts_text, read_pts  # noqa: F401
from asmnet_tf.files import InputError, cores

_ENDING = re.compile(rf"({'|'.join(map(re.escape, (*PHOTO_ENDINGS, '.pts')))})(?=#\d+$|$)", re.IGNORECASE)


def read_samples(
    spec: DatasetSpec,
    data_dir: str | Path,
    split: str,
    limit: int | None = None,
    quiet: bool = False,
    bad: BadSamples | None = None,
) -> list[Sample]:
    """Reads one split of a dataset; says once on stderr what a partial download lacks.

    Args:    split: a key of spec.splits or spec.shares ("train", "val", "test"). limit: the first so many samples only.
             bad: what to do with those that cannot be used; default: raise.
    Returns: samples in the order of the spec's sources, by file name within a folder (300W), by line in a list.
    Raises:  InputError for a missing or empty folder and for a file that cannot be used.
    """
    data_dir = Path(data_dir)
    bad = bad or BadSamples()
    if split not in spec.split_names:
        raise InputError(f"split {split!r}: {spec.title} has {', '.join(spec.split_names) or 'none'}.")
    if not data_dir.is_dir():
        raise InputError(f"{data_dir}: no such folder. Put {spec.title} there or give its place with --data-dir.")
    sources = spec.splits[split if split in spec.splits else "train"]
    samples, found = [], Counter()
    shared = bool(spec.shares) and (split in spec.shares or split == "train")
    most = sys.maxsize if shared or limit is None else limit
    for source in sources:
        path = data_dir / source.path
        kind = path.suffix.lower() if spec.layout == "300w" else spec.layout
        there = path.is_file() if kind in readers.FILE_READERS else path.is_dir()
        if not there and not source.expected:
            told = f"not there; the description of {spec.title} names it. Is --data-dir right?"
            endings = ", ".join(ending for ending in readers.FILE_READERS if ending.startswith("."))
            raise InputError(f"{path}: {f'neither a folder nor one of {endings}.' if path.exists() else told}")
        if there and len(samples) < most:
            read = readers.READERS.get(kind, readers.read_folder_pts)
            here = list(read(spec, data_dir, source, most - len(samples), bad))
            found[source.path] += len(here)
            samples += here
    if shared:
        samples = _share(samples, spec.shares, split)[:limit]
    if twice := [name for name, times in Counter(sample.name for sample in samples).items() if times > 1]:
        raise InputError(f"{data_dir}: {twice[0]} is there twice ({len(twice)} faces). List each source once.")
    samples = _usable(samples, bad, quiet)
    if not samples and bad.reasons:
        first = next(iter(bad.reasons.values()))
        raise InputError(f"{data_dir}: all {len(bad.reasons)} {split} faces are bad, the first: {first}")
    if not samples:
        places = ", ".join(source.path for source in sources)
        raise InputError(f"{data_dir}: no {spec.title} {split} face in it (looked for {places}). Is --data-dir right?")
    expected = 0 if shared else sum(source.expected for source in sources)  # which counts all shares together
    if expected and limit is None and len(samples) != expected and not quiet:
        parts = ", ".join(f"{s.name.upper()} {found[s.path]}/{s.expected}" for s in sources)
        print(f"{spec.title} {split}: {len(samples)} of {expected} faces ({parts})", file=sys.stderr)
    return samples


def read_folder(path: Path, spec: DatasetSpec, bad: BadSamples | None = None) -> list[Sample]:
    """Returns further faces with the points of a dataset, of a flat folder or a file of annotations; see layouts.py."""
    source = Source("extra", "." if path.is_dir() else path.name)
    flat = replace(spec, layout="300w", splits={"train": (source,)}, shares={})
    return read_samples(flat, path if path.is_dir() else path.parent, "train", bad=bad)


def _share(samples: list[Sample], shares: dict[str, float], split: str) -> list[Sample]:
    """Returns the faces of a split that is a share of the training photographs, or of what the shares leave."""
    left = 1.0
    for name, share in shares.items():
        samples, part = hold_out(samples, share / left, salt=name)
        if name == split:
            return part
        left -= share
    return samples


def training_faces(
    spec: DatasetSpec, data_dir: str | Path, fraction: float, limit: int | None = None, bad: BadSamples | None = None
) -> tuple[list[Sample], list[Sample]]:
    """Returns the faces to train on and those held out: the split `val` of a description that has one, else `hold_out`.

    Raises: InputError as `read_samples`, and where nothing is left to train on.
    """
    faces = read_samples(spec, data_dir, "train", limit, bad=bad)
    if "val" in spec.split_names:
        return faces, read_samples(spec, data_dir, "val", limit, bad=bad)
    kept, validation = hold_out(faces, fraction)
    if not kept:
        raise InputError(f"--val-fraction {fraction:g}: all {len(faces)} faces are held out. Use less.")
    return kept, validation


def _usable(samples: list[Sample], bad: BadSamples, quiet: bool) -> list[Sample]:
    """Returns the samples whose landmarks lie in their images, by the headers; with `bad.images` they decode, too."""
    turned = []

    def check(sample: Sample) -> None:
        if not np.ptp(sample.landmarks, axis=0).any():
            told = f"all {len(sample.landmarks)} landmarks of {sample.name} are in one point"
            raise InputError(f"{sample.image_path}: {told}. Remove this face.")
        width, height, is_turned = sample.image_size() or (np.inf, np.inf, False)  # decoding it will say what is wrong
        turned.extend([sample] * is_turned)
        x, y = sample.landmarks.T
        inside = int(((x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)).sum())
        if 2 * inside < len(x) and np.isfinite(width):
            other = "the image before EXIF turned it" if is_turned else "another size of this image"
            lie = f"{inside} of {len(x)} landmarks of {sample.name} lie in its {width} x {height} pixels"
            raise InputError(f"{sample.image_path}: {lie}. Do the points belong to {other}?")
        if bad.images:
            sample.read_image()

    fine = []
    with ThreadPoolExecutor(cores()) as pool:  # OpenCV decodes outside the interpreter lock
        checks = [pool.submit(check, s).result if bad.images else functools.partial(check, s) for s in samples]
        for sample, pass_or_raise in zip(samples, readers.progress(checks, "images")):
            with bad.catch(sample.name):
                pass_or_raise()
                fine.append(sample)
    if turned and not quiet:
        first = min(str(sample.image_path) for sample in turned)
        told = f"turned upright as its EXIF orientation says, as {len(turned)} of {len(samples)} faces"
        print(f"{first}: {told}; their points must be those of the upright image", file=sys.stderr)
    return fine


def trainable(samples: list[Sample], bad: BadSamples) -> list[Sample]:
    """Returns the samples whose head pose is known, or all where none is; PnP finds none for landmarks in one place.

    Raises: InputError naming the first that has none, unless such are to be skipped.
    """
    chosen = []
    for sample in samples:
        with bad.catch(sample.name):
            if sample.pose is not None and not np.isfinite(sample.pose).all():
                raise InputError(f"{sample.image_path}: no head pose for this face (degenerate landmarks). Remove it.")
            chosen.append(sample)
    if not chosen:
        raise InputError(f"none of {len(samples)} training faces can be used. {next(iter(bad.reasons.values()), '')}")
    if chosen[0].pose is None:
        print("no six rigid points (`pose` of the description), so no head pose is trained", file=sys.stderr)
    return chosen


def faces_of_run(
    spec: DatasetSpec,
    data_dir: str | Path,
    fraction: float,
    labels: str | Path | None,
    extra: Path | None,
    limit: int | None,
    bad: BadSamples,
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Returns the faces to train on, further ones of `extra` (see `read_folder`), and those held out, with their pose.

    Raises: InputError as `training_faces`, `pose_of` and `trainable`; where only those of `extra` have no pose.
    """
    faces, validation = training_faces(spec, data_dir, fraction, limit, bad=bad)
    posed = with_pose([*faces, *validation], spec, data_dir, labels)
    faces, validation, further = trainable(posed[: len(faces)], bad), posed[len(faces) :], []
    if extra:
        further = trainable(with_pose(read_folder(extra, spec, bad), spec, extra, None), bad)
        if further[0].pose is None and faces[0].pose is not None:
            raise InputError(f"{extra}: these faces have no head pose, those of the dataset have.")
    return faces, further, validation


def with_pose(
    samples: list[Sample], spec: DatasetSpec, data_dir: str | Path, labels: str | Path | None
) -> list[Sample]:
    """Returns the samples with their pose; see `pose_of`. Without six rigid points and `labels` it stays None."""
    if labels is None and not spec.has_pose:
        return samples
    angles = pose_of(samples, spec, data_dir, labels)[0]
    return [replace(sample, pose=angle.astype(np.float32)) for sample, angle in zip(samples, angles)]


def pose_of(
    samples: list[Sample], spec: DatasetSpec, data_dir: str | Path, labels: str | Path | None
) -> tuple[np.ndarray, str]:
    """Returns the pose of samples, float64 (N, 3), degrees, and in words what it is.

    It is from `labels` (see `pose.read_pose_labels`), else by PnP, cached. Synthetic data brings its exact pose in
    `pose.csv`, which is used where `labels` is None. Labels of another sign convention are brought to ours.
    """
    if labels is None and not spec.has_pose:
        return np.full((len(samples), 3), np.nan), f"none: {spec.title} has no six rigid points"
    if labels is None and all(sample.pose is not None for sample in samples):
        return np.stack([sample.pose for sample in samples]).astype(np.float64), f"annotated ({spec.title})"
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
    angles, negated = align_signs(np.array(list(table.values()))[rows], by_pnp, labels)
    return angles, what + (f"; negated: {', '.join(negated)}" if negated else "")


def select(samples: list[Sample], spec: DatasetSpec, subset: str) -> np.ndarray:
    """Returns which samples belong to a subset (`all`: every one), bool (N,). Raises: InputError for an unknown one."""
    if subset == "all":
        return np.ones(len(samples), bool)
    if subset not in spec.subsets:
        raise InputError(f"subset {subset!r}: {spec.title} has {', '.join(spec.subsets)}, all.")
    return np.array([not sample.tags.isdisjoint(spec.subsets[subset]) for sample in samples], bool)


def photograph(name: str) -> str:
    """Returns the source and photograph of a sample name: without `#k`, else `_k`, which count faces of a photograph.

    300W writes `_1`, `_2`, ... behind a photograph's number; `image_0001` and `photo_10` number photographs.
    """
    return re.sub(r"#\d+$|_[1-9]$|(?<=[0-9])_(0|[1-9][0-9])$", "", name)


def _photograph_of(sample: Sample) -> str:
    folder, _, stem = sample.name.rpartition("/")
    image = sample.image_path.stem
    if re.fullmatch(rf"{re.escape(image)}_[1-9]\d?", stem):  # NAME_12.pts of NAME.jpg
        return f"{folder}/{image}" if folder else image
    return photograph(sample.name)


def hold_out(samples: list[Sample], fraction: float, salt: str = "") -> tuple[list[Sample], list[Sample]]:
    """Splits training samples into (train, validation): held out is where the hash of the photograph is below.

    The choice depends on a photograph's source and name alone: every source is split in expectation, faces of one
    photograph stand on one side, and a missing sample moves no other. If no hash is below `fraction`, the photograph
    with the smallest one is held out. Where all samples would be of one photograph, each counts as one of its own.

    Args: fraction: of the photographs, in expectation; 0 gives an empty validation list. salt: makes another choice.
    """
    names = [_photograph_of(sample) for sample in samples]
    if len(set(names)) == 1:
        names = [sample.name for sample in samples]
    hashes = [int.from_bytes(hashlib.sha256(os.fsencode(salt + name)).digest()[:8], "big") / 2**64 for name in names]
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

    ours, theirs = [parts(name) for name in wanted], [parts(name) for name in given]
    ours_in, theirs_in = ([{part.lower() for part in name[:-1]} for name in names] for names in (ours, theirs))
    known = set().union(*ours_in)
    for spec in DATASETS.values():
        sources = [source for split in spec.splits.values() for source in split]
        names = {part for source in sources for part in (source.name, *source.path.split("/"))}
        known |= names if names & known else set()

    def fits(i: int, row: int, shared: tuple[str, ...]) -> bool:
        return shared == ours[i] or theirs_in[row] & known <= ours_in[i]

    rows = _best_matches(ours, theirs, fits)
    back = _best_matches(theirs, ours, lambda row, i, shared: fits(i, row, shared))
    same = {name: row for row, name in enumerate(given)}
    mutual = [row if row is not None and back[row] == i else None for i, row in enumerate(rows)]
    return [same.get(name, row) for name, row in zip(wanted, mutual)]


def _best_matches(
    names: list[tuple[str, ...]], others: list[tuple[str, ...]], fits: Callable[[int, int, tuple[str, ...]], bool]
) -> list[int | None]:
    """Returns, for each name in parts, which of the others shares most of its last parts; None for none or several."""
    ends, best = defaultdict(list), []
    for j, other in enumerate(others):
        for k in range(len(other)):
            ends[other[k:]].append(j)
    for i, name in enumerate(names):
        fitting = ((j for j in ends.get(tail, ()) if fits(i, j, tail)) for tail in (name[k:] for k in range(len(name))))
        first_two = next(filter(None, (list(itertools.islice(found, 2)) for found in fitting)), [])
        best.append(first_two[0] if len(first_two) == 1 else None)
    return best
