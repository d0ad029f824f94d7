"""Which of several methods is better on the same faces: `comparison.md`, made to be pasted (NumPy only)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from asmnet_tf import metrics
from asmnet_tf.tables import NOTE_BELOW_TABLE, md, md_table, number, plain_text, pose_cell, with_interval

if TYPE_CHECKING:
    from asmnet_tf.report import Faces, Method

ALL_PAIRS_UP_TO = 4  # methods; of more, the first is compared with each of the others


def compare(errors: dict[str, np.ndarray], subsets: dict[str, np.ndarray]) -> dict[str, list[dict]]:
    """Compares methods in pairs, in the order given; see `metrics.paired_bootstrap`.

    Args:    errors: method -> NME of each face, fractions (N,). subsets: name -> bool (N,).
    Returns: subset -> for each pair a, b, n, left_out, nme_difference_pct (A - B) with ci95, a_better_pct and
        b_better_pct; plain values, None where no face tells.
    """
    names = list(errors)
    pairs = list(itertools.combinations(names, 2))
    if len(names) > ALL_PAIRS_UP_TO:
        pairs = [pair for pair in pairs if pair[0] == names[0]]

    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    result: dict[str, list[dict]] = {}
    for subset, mask in subsets.items():
        result[subset] = []
        for a, b in pairs:
            found = metrics.paired_bootstrap(errors[a][mask], errors[b][mask])
            result[subset].append(
                {
                    "a": a,
                    "b": b,
                    "n": int(np.sum(mask)),
                    "left_out": found.left_out,
                    "nme_difference_pct": percent(found.difference),
                    "ci95": [percent(value) for value in found.interval],
                    "a_better_pct": percent(found.share_a_better),
                    "b_better_pct": percent(found.share_b_better),
                }
            )
    return result


def comparison_md(
    methods: Sequence[Method],
    faces: Faces,
    thresholds: Sequence[float],
    protocol: dict,
    scores: dict[str, dict[str, dict]],
    compared: dict[str, list[dict]],
) -> str:
    """Returns comparison.md: protocol, one line for each method, every number of every subset, the pairs.

    Args: scores: of `report.score`. compared: of `compare`.
    """
    subsets = {name: numbers["n"] for name, numbers in next(iter(scores.values())).items()}
    title = faces.spec.title if faces.spec else f"{faces.landmarks.shape[1]} points"
    parts = [f"# {title}: {len(methods)} methods on the same {len(faces.names)} faces", ""]
    parts += [_protocol_line(methods, thresholds, protocol), ""]

    header = ["NME % (faces scored)", "parameters", "multiply-adds", "input px", "crop"]
    header += [f"{subset} ({count})" for subset, count in subsets.items()]
    rows = [
        [
            method.name,
            *(_millions(method.info.get(key)) for key in ("parameters", "multiply_adds")),
            *(method.info.get(key, "-") for key in ("input_size", "crop")),
            *(f"{number(of['nme_pct'])} ({of['n_scored']})" for of in scores[method.name].values()),
        ]
        for method in methods
    ]
    parts += [*md_table(header, rows), "", "## Every subset", ""]
    parts += [*_subset_table(thresholds, scores, subsets), ""]
    parts += [f"{NOTE_BELOW_TABLE} Pose: mean absolute error in degrees, over all faces where no number is given.", ""]

    parts += ["## In pairs, on the same faces", "", *_pair_table(compared), ""]
    parts += [
        "NME A - B in percentage points: below 0, A is better. In brackets its 95 % interval, a paired bootstrap over "
        f"faces ({metrics.BOOTSTRAP_SAMPLES} draws), for each pair by itself. `lower NME` is open where the interval "
        f"holds 0. Neither is better on faces whose errors differ by less than {100 * metrics.TIE:g} points.",
        "",
    ]
    parts += [
        f"- {md(pair['a'])} and {md(pair['b'])}, {subset}: {pair['left_out']} of {pair['n']} faces have no landmarks "
        "of one or both. They are not in the difference; in the shares the method that found the face is better."
        for subset, pairs in compared.items()
        for pair in pairs
        if pair["left_out"]
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _protocol_line(methods: Sequence[Method], thresholds: Sequence[float], protocol: dict) -> str:
    words = {key: plain_text(value) for key, value in protocol.items() if value is not None and key != "thresholds"}
    crops = dict.fromkeys(str(method.info["crop"]) for method in methods if method.info.get("crop"))
    words["crop (side over that of the true landmarks' box)"] = ", ".join(crops) if crops else "the methods' own"
    words["FR and AUC at NME"] = ", ".join(f"{100 * t:g} %" for t in thresholds)
    return "Protocol: " + "; ".join(f"{md(key.replace('_', ' '))}: {md(value)}" for key, value in words.items()) + "."


def _millions(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.3f} M"


def _subset_table(thresholds: Sequence[float], scores: dict, subsets: dict[str, int]) -> list[str]:
    keys = {"nme_pct": "NME inter-ocular %", "nme_interpupil_pct": "NME inter-pupil %"}
    keys |= {f"{key}_pct@{t:.2f}": f"{key.upper()}@{t:.2f} %" for t in thresholds for key in ("fr", "auc")}
    poses = {"pose": "O_P yaw / pitch / roll", "pose_pnp": "PnP yaw / pitch / roll"}
    poses = {
        key: title
        for key, title in poses.items()
        if any(numbers[f"{key}_mae_deg"] for table in scores.values() for numbers in table.values())
    }
    rows = []
    for subset, count in subsets.items():
        for method, table in scores.items():
            numbers = table[subset]
            cells = [with_interval(numbers[key], numbers["ci95"][key]) for key in keys]
            cells += [pose_cell(numbers, key, " / ") for key in poses]
            rows.append([subset, method, count, numbers["n_scored"], *cells])
    return md_table(["subset", "method", "faces", "scored", *keys.values(), *poses.values()], rows)


def _pair_table(compared: dict[str, list[dict]]) -> list[str]:
    header = ["subset", "A", "B", "faces", "NME A - B", "A better on %", "B better on %", "lower NME"]
    rows = []
    for subset, pairs in compared.items():
        for pair in pairs:
            low, high = pair["ci95"]
            better = "-"
            if low is not None and (low > 0 or high < 0) and abs(pair["nme_difference_pct"]) > 100 * metrics.TIE:
                better = pair["b"] if low > 0 else pair["a"]
            difference = with_interval(pair["nme_difference_pct"], pair["ci95"], "+.2f")
            shares = [number(pair[key], 1) for key in ("a_better_pct", "b_better_pct")]
            rows.append([subset, pair["a"], pair["b"], pair["n"] - pair["left_out"], difference, *shares, better])
    return md_table(header, rows)
