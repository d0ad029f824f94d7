"""Writes the faces found in images and videos as json, jsonl, csv and pts; reads boxes from a csv (NumPy only)."""

import contextlib
import itertools
import json
import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import and_, eq
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asmnet_tf.config import ANGLES, FACE_FORMATS, PHOTO_ENDINGS
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.readers import pts_text
from asmnet_tf.faces.aligner import Face
from asmnet_tf.files import InputError, plain, read_csv, replacing, utf8, write_csv, write_text, writing

BOX_COLUMNS = ("x_min", "y_min", "x_max", "y_max")


class ResultFiles:
    """The results in a folder: first a journal, `<name>.partial.jsonl`, of one JSON line an image or frame, written as
    they come; in the end it makes the files, of any number of results in little memory.

    done: the images that have a result. Coordinates of json, jsonl and csv are image pixels from 0, those of .pts from
    1, as in 300W. Names that are not UTF-8 are escaped.

    Args:   images: paths; with those that an earlier run has done it goes on; videos, and images on which it was
            killed, are to be done again. None: the earlier run is not read. again: those that are done again anyway.
    Raises: InputError if the folder cannot be written to, or what is there is of other images or another model.
    """

    def __init__(
        self,
        folder: Path,
        formats: list[str],
        spec: DatasetSpec,
        name: str = "predictions",
        images: list | None = None,
        again: Sequence = (),
    ) -> None:
        self.folder, self.formats, self.spec = folder, set(formats), spec
        self.paths = {form: folder / f"{name}.{form}" for form in FACE_FORMATS} | {"pts": folder / "*.pts"}
        self.done: set[str] = set()
        self._journal = folder / f"{name}.partial.jsonl"
        earlier = next((path for path in (self._journal, self.paths["jsonl"]) if path.is_file()), None)
        if images is not None and earlier:
            with replacing(self._journal) as temporary, open(temporary, "wb") as file:
                file.writelines(self._kept(earlier, *({utf8(path) for path in ones} for ones in (images, again))))
        with writing(self._journal):
            self._file = open(self._journal, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(0 if images is None else None)

    def _kept(self, path: Path, images: set[str], again: set[str]) -> Iterator[bytes]:
        others = 0
        with open(path, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    name, points = entry["image"], {len(face["landmarks"]) for face in entry["faces"]}
                except (ValueError, LookupError, TypeError):  # torn, by a kill in the middle of it
                    continue
                if points - {self.spec.num_landmarks}:
                    raise InputError(f"{path}: is of another model, with {points.pop()} points. Choose another output.")
                if name in images and name not in self.done and name not in again:
                    self.done.add(name)
                    yield line.rstrip(b"\n") + b"\n"
                others += name not in images and "frame" not in entry
        if others and not self.done:
            raise InputError(f"{path}: is of other images. Name them as before, or choose another output.")
        if others:
            print(f"{path}: {others} results are of images that are not given now, left out", file=sys.stderr)

    def add(self, image: str, stem: str, size: Sequence[int], faces: list[tuple[int, Face]], frame: int = -1) -> None:
        """Writes the faces of an image, or of a frame of a video, to the journal, and with `pts` a file for each.

        Args:   image: as the user named it. stem: of the files that belong to it, relative to the output folder. size:
                width, height. faces: with their numbers. frame: from 0; -1 for an image.
        Raises: InputError, and it is not in the journal; also for a .pts that would be a photograph's annotation.
        """
        entry = {"image": utf8(image)} | ({} if frame < 0 else {"frame": frame})
        entry |= {"width": size[0], "height": size[1], "faces": []}
        for number, face in faces:
            entry["faces"].append({"face": number, "score": face.score, "quality": face.quality, "box": face.box})
            entry["faces"][-1] |= dict(zip(ANGLES, face.angles), landmarks=face.landmarks)
            if "pts" in self.formats:
                path = self.folder / (f"{stem}_{number}.pts" if frame < 0 else f"{stem}_{frame:06d}_{number}.pts")
                endings = (*PHOTO_ENDINGS, *map(str.upper, PHOTO_ENDINGS))  # A_1.JPG, too
                if any(path.with_suffix(ending).exists() for ending in endings):
                    raise InputError(f"{path}: would be the annotation of the photo beside it. Choose another output.")
                write_text(path, pts_text(face.landmarks))
        line, before = memoryview(f"{json.dumps(plain(entry, 4))}\n".encode()), os.fstat(self._file.fileno()).st_size
        with writing(self._journal):
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                self._file.truncate(before)
                raise
        self.done.add(utf8(image))

    def write(self, model: str, failed: Sequence[dict[str, str]] = (), unfinished: bool = False) -> list[Path]:
        """Makes predictions.json, .csv and .jsonl of the journal, which goes, or stays for an unfinished run.

        Args:    failed: `image` and `reason` of every input without a result, for the json.
        Returns: the files or, for .pts, their pattern.
        Raises:  InputError if a file cannot be written, after the others have been; the journal stays.
        """
        with contextlib.ExitStack() as stack:  # both are tried, whatever the first one raises
            if "csv" in self.formats:
                stack.callback(self._write_csv)
            if "json" in self.formats:
                stack.callback(self._write_json, model, failed)
        with writing(self.paths["jsonl"]):
            os.fsync(self._file.fileno())
            self._file.close()
            if "jsonl" in self.formats:
                self._journal.replace(self.paths["jsonl"])
            elif not unfinished:
                self._journal.unlink()
        return [path for form, path in self.paths.items() if form in self.formats]

    def _write_json(self, model: str, failed: Sequence[dict[str, str]]) -> None:
        count = self.spec.num_landmarks
        document = {
            "model": utf8(model),
            "points": f"{count} as in {self.spec.title}; image pixels, pixel centres at integers from 0",
            "point_names": self.spec.point_names or None,
            "quality": "probability that the NME is below 8 %, 0 for a yaw beyond training; null: not calibrated",
            "angles": "degrees; yaw > 0 towards the left edge of the image, pitch > 0 up, roll > 0 clockwise",
            "face": "number of a face in its image; in a video of one face for as long as it is followed (tracking.py)",
        }
        missing = [{key: utf8(value) for key, value in failure.items()} for failure in failed]
        with replacing(self.paths["json"]) as new, open(new, "wb") as file, open(self._journal, "rb") as lines:
            file.write(f'{json.dumps(document)[:-1]}, "results": ['.encode())
            for i, line in enumerate(lines):
                file.write(b",\n" * (i > 0) + line.rstrip())
            file.write(f'], "failed": {json.dumps(missing)}}}\n'.encode())

    def _write_csv(self) -> None:
        points = [f"{axis}{i}" for i in range(self.spec.num_landmarks) for axis in "xy"]
        with open(self._journal, "rb") as lines:
            rows = (_row(entry, face) for entry in map(json.loads, lines) for face in entry["faces"])
            header = ["image", "frame", "face", "score", "quality", *BOX_COLUMNS, *ANGLES, *points]
            write_csv(self.paths["csv"], header, rows)


def _row(entry: dict, face: dict) -> list:
    numbers = [face["score"], face.get("quality"), *face["box"], *map(face.get, ANGLES)]
    texts = ("" if value is None else f"{value:.4f}" for value in itertools.chain(numbers, *face["landmarks"]))
    return [entry["image"], entry.get("frame", ""), face["face"], *texts]


class BoxRow(NamedTuple):
    """A row of a boxes file. line: its number, from 1. image: as written there. box: float64 (4,).

    angle: degrees clockwise by which face and box are turned about the box's centre, NaN where the file does not tell.
    """

    line: int
    image: str
    box: np.ndarray
    angle: float


def read_boxes(path: Path) -> list[BoxRow]:
    """Reads one's own detector's boxes, a csv with the columns image, x_min, y_min, x_max, y_max, pixels from 0.

    A column `angle`, -360 to 360 degrees, may be there and be empty: see `BoxRow`. Raises: InputError naming the line.
    """
    rows = []
    for line, image, (*box, angle) in read_csv(path, "image", BOX_COLUMNS, optional="angle"):
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"{path}, line {line}: {box}, expected x_min < x_max and y_min < y_max.")
        if min(box[2] - box[0], box[3] - box[1]) < 2:
            told = "less than 2 pixels wide or high. Boxes are in pixels, not in shares of the image"
            raise InputError(f"{path}, line {line}: {box}, {told}.")
        if abs(angle) > 360:
            raise InputError(f"{path}, line {line}: angle {angle:g}, expected -360 to 360 degrees.")
        rows.append(BoxRow(line, image, np.array(box), angle))
    return rows


def match_boxes(path: Path, rows: list[BoxRow], images: list[Path], folders: list[Path]) -> tuple[dict, list[str]]:
    """Gives the rows of a boxes file to their images.

    By path first: as written, from the csv's folder, from one of `folders`, with `/` or `\\`. Then, among the images
    that no path names, by the last parts of the path, as many as agree; then so without the ending.

    Returns: image -> its rows; what there is to say, a line each.
    Raises:  InputError if a row may be of several images, or rows of several names of one; if none is of any image.
    """
    found: dict[str, Path | None] = {row.image: None for row in rows}
    lines = {row.image: row.line for row in reversed(rows)}

    def take(name: str, ones: list[Path]) -> None:
        if len(ones) > 1:
            raise InputError(f"{path}, line {lines[name]}: {name} may be {ones[0]} or {ones[1]}. Write its path.")
        found.update((name, image) for image in ones)

    places = {_key(place(image)): image for place in (os.path.realpath, os.path.abspath) for image in images}
    for name in found:
        for roots in ([Path()], [path.parent], folders):
            spelled = [root / text for root in roots for text in (name, name.replace("\\", "/"))]
            if not found[name]:
                take(name, sorted({places.get(_key(os.path.abspath(place))) for place in spelled} - {None}))
    by_path = {None, *found.values()}
    for with_ending in (True, False):
        free, names, known = defaultdict(list), {}, set(found.values())
        for image in images:
            if image not in known:
                parts = _parts(os.path.abspath(image), with_ending)
                free[parts[0]].append((parts, image))
        for name in (name for name, image in found.items() if not image):
            parts = _parts(name, with_ending)
            candidates = free.get(parts[0], []) if parts else []
            agreeing = [sum(itertools.accumulate(map(eq, parts, theirs), and_)) for theirs, _ in candidates]
            take(name, [image for n, (_, image) in zip(agreeing, candidates) if n == max(agreeing)])
            if candidates and names.setdefault(found[name], name) != name:
                told = f"{names[found[name]]} and {name} may be {found[name]}"
                raise InputError(f"{path}, line {lines[name]}: {told}. Write its path.")
    if rows and images and not any(found.values()):
        example = f"{rows[0].image}; {images[0]}"
        raise InputError(f"{path}: no row is of an image that was given ({example}). Write their paths.")

    matched: dict[Path, list[BoxRow]] = {}
    unmatched, repeated = [], []
    for row in rows:
        image = found[row.image]
        if image is None:
            unmatched.append(f"line {row.line}, {row.image}")
        elif any(np.array_equal([*row.box, row.angle], [*o.box, o.angle], True) for o in matched.get(image, ())):
            repeated.append(f"line {row.line}, {row.image}")
        else:
            matched.setdefault(image, []).append(row)
    told = {
        "told by the file name alone": [f"{name} is {found[name]}" for name in found if found[name] not in by_path],
        "row of no image that was given": unmatched,
        "row that repeats another, used once": repeated,
        "image without a row: no face is looked for there": [image for image in images if image not in matched],
    }
    return matched, [f"{path}: {len(all_)} x {text} (first: {all_[0]})" for text, all_ in told.items() if all_]


def boxes_inside(path: Path, rows: list[BoxRow], image: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns the boxes (N, 4) of an image of `size` (width, height). Raises: InputError for one mostly outside."""
    boxes = np.array([row.box for row in rows]).reshape(-1, 4)
    inside = np.clip(np.minimum(boxes[:, 2:], size) - np.maximum(boxes[:, :2], 0), 0, None)
    for row, share in zip(rows, (inside / (boxes[:, 2:] - boxes[:, :2])).prod(axis=1)):
        if share < 0.5:
            told = f"the box {row.box.tolist()} lies outside {image}, {size[0]} x {size[1]} pixels"
            raise InputError(f"{path}, line {row.line}: {told}. Is it of another size of this image?")
    return boxes


def _key(path: str | Path) -> str:
    return unicodedata.normalize("NFC", utf8(path))


def _parts(path: str, with_ending: bool) -> list[str]:
    """Returns the parts of a path, the last one first, as they are compared: without case or an image's ending."""
    parts = [part for part in _key(path).replace("\\", "/").casefold().split("/")[::-1] if part not in ("", ".", "..")]
    if parts and not with_ending and parts[0].endswith(PHOTO_ENDINGS):
        parts[0] = parts[0].rpartition(".")[0]
    return parts
