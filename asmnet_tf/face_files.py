"""Writes the faces found in images and videos as `.json`, `.csv` and `.pts`; reads boxes from a csv (NumPy only)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asmnet_tf.config import ANGLES, FACE_FORMATS, DatasetSpec
from asmnet_tf.datasets import pts_text
from asmnet_tf.files import InputError, write_text
from asmnet_tf.tables import plain, read_csv, write_csv

if TYPE_CHECKING:
    from asmnet_tf.aligner import Face

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
    folder: Path, results: list[Result], formats: Iterable[str], model: str, spec: DatasetSpec
) -> list[Path]:
    """Writes predictions.json, predictions.csv and, with `pts`, `<stem>_<number>.pts` for every face.

    Coordinates of json and csv are image pixels from 0, those of .pts from 1, as in 300W. Returns the files or, for
    .pts, their pattern. Raises: InputError if one cannot be written.
    """
    written = []
    for form in (form for form in FACE_FORMATS if form in formats):
        path = folder / f"predictions.{form}"
        if form == "json":
            write_text(path, json.dumps(plain(_document(results, model, spec), 4)) + "\n")
        elif form == "csv":
            points = [f"{axis}{i}" for i in range(spec.num_landmarks) for axis in "xy"]
            header = ["image", "frame", "face", "score", *BOX_COLUMNS, *ANGLES, *points]
            write_csv(path, header, (row for result in results for row in _rows(result)))
        else:
            path = folder / "*.pts"
            for result in results:
                frame = "" if result.frame is None else f"_{result.frame:06d}"
                for number, face in result.faces:
                    write_text(folder / f"{result.stem}{frame}_{number}.pts", pts_text(face.landmarks))
        written.append(path)
    return written


def _document(results: list[Result], model: str, spec: DatasetSpec) -> dict:
    return {
        "model": model,
        "points": f"{spec.num_landmarks} as in {spec.title}; image pixels, pixel centres at integers from 0",
        "angles": "degrees; yaw > 0 towards the left edge of the image, pitch > 0 up, roll > 0 clockwise",
        "results": [
            {
                "image": result.image,
                **({} if result.frame is None else {"frame": result.frame}),
                "width": result.size[0],
                "height": result.size[1],
                "faces": [
                    {"face": number, "score": face.score, "box": face.box, **dict(zip(ANGLES, face.angles)),
                     "landmarks": face.landmarks}
                    for number, face in result.faces
                ],
            }
            for result in results
        ],
    }  # fmt: skip


def _rows(result: Result) -> Iterable[list]:
    frame = "" if result.frame is None else result.frame
    for number, face in result.faces:
        numbers = (face.score, *face.box, *face.angles, *face.landmarks.reshape(-1))
        yield [result.image, frame, number, *(f"{value:.4f}" for value in numbers)]


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Reads one's own detector's boxes, a csv with the columns image, x_min, y_min, x_max, y_max, pixels from 0.

    Returns: image -> float64 (N, 4). Raises: InputError naming the line that cannot be used.
    """
    boxes: dict[str, list[list[float]]] = {}
    for line, image, box in read_csv(path, "image", BOX_COLUMNS):
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"{path}, line {line}: {box}, expected x_min < x_max and y_min < y_max.")
        boxes.setdefault(image, []).append(box)
    return {image: np.array(rows) for image, rows in boxes.items()}


def boxes_of(boxes: dict[str, np.ndarray], image: Path) -> np.ndarray:
    """Returns the boxes (N, 4) of an image: by its path, else by its file name; (0, 4) where it has none."""
    names = (str(image), image.as_posix(), image.name)
    return next((boxes[name] for name in names if name in boxes), np.empty((0, 4)))
