"""Numbers as text: Markdown tables and their cells (NumPy only)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from asmnet_tf.config import ANGLES
from asmnet_tf.files import plain

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
