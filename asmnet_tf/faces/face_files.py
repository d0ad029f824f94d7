"""Writes the faces found in images and videos as `.json`, `.csv` and `.pts`; reads boxes from a csv (NumPy only)."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import and_, eq
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asmnet_tf.config import ANGLES, FACE_FORMATS, PHOTO_ENDINGS
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.readers import pts_text
from asmnet_tf.files import InputError, plain, read_csv, utf8, write_csv, write_text

if TYPE_CHECKING:
    from asmnet_tf.faces.aligner import Face

BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True, eq=False)
class Result:
    """The faces of one image, or of one frame of a video, with their numbers.

    image: as the user named it. stem: of the files that belong to it, relative to the output folder. frame: from 0;
    None for an image.
    """

    image: str
    stem: str
    size: tuple[int, int]  # width, height
    faces: list[tuple[int, Face]]
    frame: int | None = None


def write_results(
    folder: Path,
    results: list[Result],
    formats: Iterable[str],
    model: str,
    spec: DatasetSpec,
    failed: Sequence[dict[str, str]] = (),
) -> list[Path]:
    """Writes predictions.json, predictions.csv and, with `pts`, `<stem>_<number>.pts` for every face.

    Coordinates of json and csv are image pixels from 0, those of .pts from 1, as in 300W. Names that are not UTF-8 are
    escaped.

    Args:    failed: `image` and `reason` of every input without a result, for the json.
    Returns: the files or, for .pts, their pattern.
    Raises:  InputError if a file cannot be written, after the others have been.
    """
    written, error = [], None
    for form in (form for form in FACE_FORMATS if form in formats):
        path = folder / f"predictions.{form}"
        try:
            if form == "json":
                write_text(path, json.dumps(plain(_document(results, model, spec, failed), 4)) + "\n")
            elif form == "csv":
                points = [f"{axis}{i}" for i in range(spec.num_landmarks) for axis in "xy"]
                header = ["image", "frame", "face", "score", *BOX_COLUMNS, *ANGLES, *points]
                write_csv(path, header, _rows(results))
            else:
                path = folder / "*.pts"
                _write_pts(folder, results)
            written.append(path)
        except InputError as caught:
            error = error or caught
    if error:
        raise error
    return written


def _document(results: list[Result], model: str, spec: DatasetSpec, failed: Sequence[dict[str, str]]) -> dict:
    document = {
        "model": utf8(model),
        "points": f"{spec.num_landmarks} as in {spec.title}; image pixels, pixel centres at integers from 0",
        "point_names": spec.point_names or None,
        "angles": "degrees; yaw > 0 towards the left edge of the image, pitch > 0 up, roll > 0 clockwise",
        "face": "number of a face in its image; in a video of one face for as long as it is followed (tracking.py)",
        "results": [],
        "failed": [{key: utf8(value) for key, value in failure.items()} for failure in failed],
    }
    for result in results:
        faces = [
            {"face": number, "score": face.score, "box": face.box} | dict(zip(ANGLES, face.angles))
            | {"landmarks": face.landmarks}
            for number, face in result.faces
        ]  # fmt: skip
        frame = {} if result.frame is None else {"frame": result.frame}
        size = {"width": result.size[0], "height": result.size[1]}
        document["results"].append({"image": utf8(result.image)} | frame | size | {"faces": faces})
    return document


def _rows(results: list[Result]) -> Iterable[list]:
    for result in results:
        frame = "" if result.frame is None else result.frame
        for number, face in result.faces:
            numbers = (face.score, *face.box, *face.angles, *face.landmarks.reshape(-1))
            cells = (f"{value:.4f}" if np.isfinite(value) else "" for value in numbers)
            yield [utf8(result.image), frame, number, *cells]


def _write_pts(folder: Path, results: list[Result]) -> None:
    for result in results:
        frame = "" if result.frame is None else f"_{result.frame:06d}"
        for number, face in result.faces:
            path = folder / f"{result.stem}{frame}_{number}.pts"
            if any(path.with_suffix(ending).exists() for ending in PHOTO_ENDINGS):
                raise InputError(f"{path}: would be the annotation of the photo beside it. Choose another output.")
            write_text(path, pts_text(face.landmarks))


@dataclass(frozen=True, eq=False)
class BoxRow:
    """A row of a boxes file. line: its number, from 1. image: as written there. box: float64 (4,)."""

    line: int
    image: str
    box: np.ndarray


def read_boxes(path: Path) -> list[BoxRow]:
    """Reads one's own detector's boxes, a csv with the columns image, x_min, y_min, x_max, y_max, pixels from 0.

    Raises: InputError naming the line that cannot be used.
    """
    rows = []
    for line, image, box in read_csv(path, "image", BOX_COLUMNS):
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"{path}, line {line}: {box}, expected x_min < x_max and y_min < y_max.")
        rows.append(BoxRow(line, image, np.array(box)))
    return rows


def match_boxes(
    path: Path, rows: list[BoxRow], images: list[Path], folders: list[Path]
) -> tuple[dict[Path, list[BoxRow]], list[str]]:
    """Gives the rows of a boxes file to their images.

    By path first: as written, from the csv's folder, from one of `folders`, with `/` or `\\`. Then, among the images
    that no path names, by the last parts of the path, as many as agree; then so without the ending.

    Returns: image -> its rows; what there is to say, a line each.
    Raises:  InputError if a row may be of several images, or rows of several names of one; if none is of any image.
    """
    lines: dict[str, int] = {}
    for row in rows:
        lines.setdefault(row.image, row.line)
    found: dict[str, Path] = {}

    def take(name: str, candidates: list[Path]) -> None:
        if len(candidates) > 1:
            several = f"{name} may be {candidates[0]} or {candidates[1]}"
            raise InputError(f"{path}, line {lines[name]}: {several}. Write its path.")
        found.update((name, image) for image in candidates)

    places = {_key(place(image)): image for place in (os.path.realpath, os.path.abspath) for image in images}
    for name in lines:
        for roots in ([Path()], [path.parent], folders):
            spelled = [root / text for root in roots for text in (name, name.replace("\\", "/"))]
            if name not in found:
                take(name, sorted({places.get(_key(os.path.abspath(place))) for place in spelled} - {None}))
    by_path = len(found)
    for with_ending in (True, False):
        known = set(found.values())
        free: dict[str, list[tuple[list[str], Path]]] = {}
        for image in images:
            if image not in known:
                parts = _parts(os.path.abspath(image), with_ending)
                free.setdefault(parts[0], []).append((parts, image))
        names: dict[Path, str] = {}
        for name in lines:
            parts = [] if name in found else _parts(name, with_ending)
            if not parts or parts[0] not in free:
                continue
            agreeing = [sum(accumulate(map(eq, parts, theirs), and_)) for theirs, _ in free[parts[0]]]
            take(name, [image for n, (_, image) in zip(agreeing, free[parts[0]]) if n == max(agreeing)])
            if names.setdefault(found[name], name) != name:
                both = f"{names[found[name]]} and {name}"
                raise InputError(f"{path}, line {lines[name]}: {both} may be {found[name]}. Write its path.")
    if rows and images and not found:
        example = f"{rows[0].image}; {images[0]}"
        raise InputError(f"{path}: no row is of an image that was given ({example}). Write their paths.")

    matched: dict[Path, list[BoxRow]] = {}
    unmatched, repeated = [], []
    for row in rows:
        of_image = matched.setdefault(found[row.image], []) if row.image in found else None
        if of_image is None:
            unmatched.append(f"line {row.line}, {row.image}")
        elif any(np.array_equal(row.box, other.box) for other in of_image):
            repeated.append(f"line {row.line}, {row.image}")
        else:
            of_image.append(row)
    told = {
        "told by the file name alone": [f"{name} is {image}" for name, image in list(found.items())[by_path:]],
        "row of no image that was given": unmatched,
        "row that repeats another, used once": repeated,
        "image without a row: no face is looked for there": [image for image in images if image not in matched],
    }
    return matched, [f"{path}: {len(all_)} x {text} (first: {all_[0]})" for text, all_ in told.items() if all_]


def boxes_inside(path: Path, rows: list[BoxRow], image: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the boxes (N, 4) of an image of `size` (width, height).

    Raises: InputError for a box of which less than half lies in the image.
    """
    boxes = np.array([row.box for row in rows]).reshape(-1, 4)
    inside = np.clip(np.minimum(boxes[:, 2:], size) - np.maximum(boxes[:, :2], 0), 0, None)
    for row, share in zip(rows, (inside / (boxes[:, 2:] - boxes[:, :2])).prod(axis=1)):
        if share < 0.5:
            raise InputError(
                f"{path}, line {row.line}: the box {row.box.tolist()} lies outside {image}, {size[0]} x {size[1]} "
                "pixels. Is it of another size of this image?"
            )
    return boxes


def _key(path: str | Path) -> str:
    return unicodedata.normalize("NFC", utf8(path))


def _parts(path: str, with_ending: bool) -> list[str]:
    """Returns the parts of a path, the last one first, as they are compared: without case or an image's ending."""
    parts = [part for part in _key(path).replace("\\", "/").casefold().split("/")[::-1] if part not in ("", ".", "..")]
    if parts and not with_ending and parts[0].endswith(PHOTO_ENDINGS):
        parts[0] = parts[0].rpartition(".")[0]
    return parts
