"""Numbers as text: Markdown tables, csv files, JSON values (NumPy only)."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from asmnet_tf.config import ANGLES
from asmnet_tf.files import InputError, parse_numbers, read_text, replacing

NOTE_BELOW_TABLE = (
    "In brackets: 95 % bootstrap interval over faces. NME is over the faces scored; a face without a prediction is a "
    "failure in FR, AUC and CED."
)


def number(value: float | None, decimals: int = 2) -> str:
    """Returns a number with a fixed count of decimals, `-` where it is unknown."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.{decimals}f}"


def cell(value: float) -> str:
    """Returns a csv cell: six decimals, empty where the number is unknown."""
    return f"{value:.6f}" if np.isfinite(value) else ""


def with_interval(value: float | None, interval: Sequence[float | None], form: str = ".2f") -> str:
    """Returns `value [low, high]`, the value alone where there is no interval, `-` where it is unknown."""
    if value is None or interval[0] is None:
        return "-" if value is None else f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def of_faces(numbers: dict, key: str = "n_scored") -> str:
    """Returns ` (553 of 554)`, how many faces a mean of `metrics.summarise` is over; nothing where it is over all."""
    return "" if numbers[key] == numbers["n"] else f" ({numbers[key]} of {numbers['n']})"


def pose_cell(numbers: dict, key: str, between: str) -> str:
    """Returns the three pose errors of `pose` or `pose_pnp` as text, and how many faces they are over where not all."""
    mae = numbers[f"{key}_mae_deg"]
    return between.join(number(mae[angle]) for angle in ANGLES) + of_faces(numbers, f"{key}_n_scored") if mae else "-"


def plain(value, decimals: int | None = None):
    """Returns a value as JSON has it: NumPy numbers and arrays, paths and tuples converted, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): plain(item, decimals) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item, decimals) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if decimals is None else round(value, decimals)
    return str(value) if isinstance(value, Path) else value


def plain_text(value) -> str:
    """Returns text as it is and anything else as JSON."""
    value = plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def md(text) -> str:
    """Returns what fits in one cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|").strip()


def md_table(header: Sequence, rows: Sequence[Sequence]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [list(map(md, header)), ["---"] * len(header), *(list(map(md, row)) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a csv file; see `files.replacing`."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: str | Path, name: str, numbers: Sequence[str]) -> Iterator[tuple[int, str, list[float]]]:
    """Yields line number, the text of column `name` and the finite numbers of columns `numbers` of every row of a csv.

    Commas, semicolons or tabs part the columns, whose names may be in any case; further columns are let be. A decimal
    comma is read where it cannot be anything else.

    Raises: InputError naming the line that cannot be used.
    """
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Give a csv file.") from error
    separator = max(",;\t", key=next(filter(str.strip, lines), "").count)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
    columns: list[str] = []
    wanted = [name, *numbers]
    seen: set[str] = set()
    try:
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            if not columns:
                columns = [field.strip().casefold() for field in row]
                if not set(wanted) <= set(columns):
                    raise InputError(f"{path}: columns {', '.join(row)[:80]}, expected {', '.join(wanted)}.")
                places = [columns.index(column) for column in wanted]
                continue
            if len(row) < len(columns) or any(map(str.strip, row[len(columns) :])):
                hint = " (a comma as decimal point? Then part the columns by semicolons)" if separator == "," else ""
                raise ValueError(f"{len(row)} fields for {len(columns)} columns{hint}")
            text, *fields = (row[place].strip() for place in places)
            seen |= {mark for mark in ",." if mark in "".join(fields)}
            if len(seen) == 2:
                raise ValueError("a comma as decimal point in one number, a point in another")
            values = parse_numbers(fields)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{', '.join(fields)[:40]!r} has a number that is not finite")
            yield reader.line_num, text, values
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}, line {reader.line_num}: {error}; expected {', '.join(wanted)}.") from error
    if not columns:
        raise InputError(f"{path}: columns none, expected {', '.join(wanted)}.")
