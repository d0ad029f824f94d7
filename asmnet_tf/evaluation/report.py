"""What an evaluation leaves behind: scores, tables, `summary.md` and `report.html` (figures.py draws).

`metrics.py` computes every number; here they are only laid out.
"""

import base64
import html
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from asmnet_tf.config import ANGLES
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.records import Faces, Measured, Method, number, one_line
from asmnet_tf.files import InputError, make_folder, plain, utf8, write_csv, write_text

ALL_PAIRS_UP_TO = 4  # methods; of more, the first is compared with each of the others
CED_STEP_PCT = 0.05  # grid of ced.csv and failure_rate.csv
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 92rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
div { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; white-space: nowrap }
th { border-bottom: 2px solid #888 }
img { max-width: min(100%, 60rem); display: block; margin: 1rem 0 }
"""
# (h1 | h2 | p, text), (list, texts), (table, (header, rows)) or, in HTML only, (png | jpeg, path of a .png)
Block = tuple[str, object]


# --- scores -----------------------------------------------------------------------------------------------------------


def measure(methods: Sequence[Method], faces: Faces) -> list[Measured]:
    """Returns the errors of every method on every face.

    Raises: InputError for no faces, two methods of one name, eyes in one point, or predictions of another shape.
    """
    count = len(faces.names)
    if not count:
        raise InputError("no face to score. Is the data folder or the list of subsets right?")
    truth, expected = np.asarray(faces.landmarks), (count, faces.spec.num_landmarks, 2)
    if truth.shape != expected or not np.isfinite(truth).all():
        raise ValueError(f"ground truth of shape {truth.shape}, {faces.spec.name} needs finite {expected}")
    lengths, pupil_lengths = (metrics.normaliser(truth, faces.spec, k) for k in ("inter-ocular", "inter-pupil"))
    for i in np.flatnonzero(np.isnan(lengths) | np.isnan(pupil_lengths))[:1]:
        raise InputError(f"{faces.names[i]}: both eyes of its true landmarks are in one point. Remove this face.")
    nothing = np.full((count, 3), np.nan)
    labels, measured = nothing if faces.pose is None else faces.pose, []
    for method in methods:
        if any(other.method.name == method.name for other in measured):
            raise InputError(f"two methods are called {method.name!r}. Give one of them another name.")
        if np.shape(method.landmarks) != truth.shape:
            told = f"landmarks of shape {np.shape(method.landmarks)}, the ground truth has {truth.shape}"
            raise InputError(f"{method.name}: {told}. Is it a model for this dataset?")
        poses = (nothing if angles is None else angles for angles in (method.pose, method.pose_pnp))
        points = metrics.point_errors(method.landmarks, truth, lengths)
        nme = points.mean(axis=1)
        pose_errors = (metrics.pose_errors(angles, labels) for angles in poses)
        measured.append(Measured(method, points, nme, nme * (lengths / pupil_lengths), *pose_errors))
    return measured


def score(measured: Sequence[Measured], faces: Faces, thresholds: Sequence[float]) -> dict[str, dict[str, dict]]:
    """Returns {method: {subset: metrics.summarise(...)}}; thresholds: of failure rate and AUC, NME as a fraction."""

    def summary(one: Measured, mask: np.ndarray) -> dict:
        nme, pupil, pose, pnp = (errors[mask] for errors in (one.nme, one.nme_interpupil, one.pose, one.pose_pnp))
        return metrics.summarise(nme, pupil, thresholds, pose, pnp)

    return {one.method.name: {key: summary(one, mask) for key, mask in faces.masks.items()} for one in measured}


def compare(errors: dict[str, np.ndarray], subsets: dict[str, np.ndarray]) -> dict[str, list[dict]]:
    """Compares methods in pairs on the same faces; of many methods the first with each of the others.

    Args:    errors: method -> NME of each face, fractions (N,). subsets: name -> bool (N,).
    Returns: subset -> for each pair a, b and what `metrics.paired_bootstrap` says of it.
    """
    pairs = list(itertools.combinations(errors, 2))
    pairs = pairs if len(errors) <= ALL_PAIRS_UP_TO else pairs[: len(errors) - 1]
    return {
        subset: [{"a": a, "b": b} | metrics.paired_bootstrap(errors[a][mask], errors[b][mask]) for a, b in pairs]
        for subset, mask in subsets.items()
        if pairs
    }


def _each(scores: dict[str, dict[str, dict]]) -> list[tuple[str, str, dict]]:
    return [(method, subset, numbers) for method, subsets in scores.items() for subset, numbers in subsets.items()]


def json_line(scores: dict[str, dict[str, dict]]) -> str:
    """Returns the scores without their intervals as one line of JSON, numbers rounded to 6 decimals, never NaN."""
    short = plain(scores, decimals=6)
    for _, _, numbers in _each(short):
        del numbers["ci95"]
    return json.dumps(short, allow_nan=False)


def text_table(scores: dict[str, dict[str, dict]], thresholds: Sequence[float]) -> str:
    """Returns the scores as an aligned plain-text table for the terminal, without a newline at its end."""
    header = ["method", "subset", "faces", "scored", "NME %", "95 %", "pupil %"]
    header += [f"{name}@{t:.2f}" for t in thresholds for name in ("FR", "AUC")]
    poses = {"pose": "pose y/p/r deg", "pose_pnp": "PnP y/p/r deg"}
    poses = {key: title for key, title in poses.items() if any(row[-1][f"{key}_mae_deg"] for row in _each(scores))}
    rows = [[*header, *poses.values()]]
    for method, subset, numbers in _each(scores):
        low, high = numbers["ci95"]["nme_pct"]
        row = [one_line(method, 32), subset, str(numbers["n"]), str(numbers["n_scored"]), number(numbers["nme_pct"])]
        row += ["-" if low is None else f"{low:.2f}..{high:.2f}", number(numbers["nme_interpupil_pct"])]
        row += [number(numbers[f"{key}_pct@{t:.2f}"]) for t in thresholds for key in ("fr", "auc")]
        for key in poses:
            mae = numbers[f"{key}_mae_deg"]
            row.append("/".join(map(number, mae.values())) + _of_faces(numbers, f"{key}_n_scored") if mae else "-")
        rows.append(row)
    columns = (f"{{:{'<' if i < 2 else '>'}{max(map(len, column))}}}" for i, column in enumerate(zip(*rows)))
    line = "  ".join(columns)
    return "\n".join(line.format(*row) for row in rows)


# --- the report -------------------------------------------------------------------------------------------------------


def write_report(
    output: str | Path,
    methods: Sequence[Method],
    faces: Faces,
    thresholds: Sequence[float],
    *,
    protocol: dict,
    image_reader: Callable[[int], np.ndarray] | None = None,
    also: str = "png",
) -> dict[str, dict[str, dict]]:
    """Writes everything about an evaluation into folder `output` and returns the scores (see `score`).

    metrics.json, summary.md, report.html (one file, figures inside), per_image.csv, ced, failure_rate and
    landmark_errors as .csv and .png, and with `image_reader` the sheets <method>_{best,median,worst}.png.

    Args:   protocol: plain values that say how the numbers came about. image_reader: face number -> its image, RGB
            uint8 (H, W, 3). also: `pdf` or `svg`, to write each figure in this format, too.
    Raises: InputError as `measure`, for a file that cannot be written, and what `image_reader` raises.
    """
    output, measured = make_folder(output), measure(methods, faces)
    scores = score(measured, faces, thresholds)
    compared = compare({one.method.name: one.nme for one in measured}, faces.masks)
    document = {"protocol": protocol, "thresholds": thresholds, "methods": {m.name: m.info for m in methods}}
    document |= {"scores": scores, "comparisons": compared}
    write_text(output / "metrics.json", json.dumps(plain(document), indent=1, allow_nan=False) + "\n")
    rows = _per_image(measured, faces)
    write_csv(output / "per_image.csv", next(rows), rows)
    first = _landmark_blocks(faces, thresholds, protocol, scores)
    rest = _pair_blocks(compared) + _pose_blocks(scores) + _model_blocks(methods) + _published_blocks(faces, scores)
    write_text(output / "summary.md", _markdown(first + rest))
    pictures = _write_figures(output, measured, faces, thresholds, scores, image_reader, also)
    curves, sheets = (("png", path) for path in pictures[:3]), (("jpeg", path) for path in pictures[3:])
    write_text(output / "report.html", _html([*first, *curves, *rest, *sheets]))
    return scores


def _per_image(measured: list[Measured], faces: Faces) -> Iterator[list]:
    """Yields the header and the rows of per_image.csv."""
    nothing = np.full((len(faces.names), 3), np.nan)
    lengths = metrics.normaliser(faces.landmarks, faces.spec)
    header = ["method", "name", "subsets", "nme_pct", "nme_interpupil_pct", "interocular_px", "worst_landmark_pct"]
    yield header + [f"{angle}_{kind}_deg" for kind in ("pred", "pnp", "gt") for angle in ANGLES]
    for one in measured:
        poses = (nothing if pose is None else pose for pose in (one.method.pose, one.method.pose_pnp, faces.pose))
        worst = one.points.max(axis=1)
        table = np.column_stack([one.nme * 100, one.nme_interpupil * 100, lengths, worst * 100, *poses])
        for name, inside, numbers in zip(faces.names, zip(*faces.masks.values()), table):
            yield [one.method.name, name, ";".join(itertools.compress(faces.masks, inside)), *map(cell, numbers)]


def _grid(thresholds: Sequence[float]) -> np.ndarray:
    """Returns NME fractions from 0 to the largest threshold, at least 10 %, rounded so that 8 % is exactly 0.08."""
    last = max(10.0, *(100 * t for t in thresholds))
    return np.round(np.arange(math.ceil(last / CED_STEP_PCT - 1e-6) + 1) * CED_STEP_PCT / 100, 6)


def _write_figures(output: Path, measured, faces: Faces, thresholds, scores, image_reader, also: str) -> list[Path]:
    """Writes the curves as .csv and all figures; returns the .png files, the sheets last."""
    from asmnet_tf.evaluation import figures  # Matplotlib: not for those who only want scores

    grid = _grid(thresholds)
    shares, drawn = {}, {}
    for subset, mask in faces.masks.items():
        if mask.any():
            shares |= {(subset, one.method.name): metrics.ced(one.nme[mask], grid) * 100 for one in measured}
    for stem, column in (("ced", "faces_pct"), ("failure_rate", "fr_pct")):
        rows = (
            [subset, method, f"{100 * t:.2f}", cell(value if stem == "ced" else 100 - value)]
            for (subset, method), share in shares.items()
            for t, value in zip(grid, share)
        )
        write_csv(output / f"{stem}.csv", ["subset", "method", "threshold_pct", column], rows)
        drawn[stem] = figures.curves_figure(stem, grid, shares, faces, scores, thresholds)
    means = []
    for one in measured:  # by `where`: a copy of the rows chosen would be as large as the table
        rows = metrics.scored(one.nme)
        means.append(100 * np.sum(one.points, axis=0, where=rows[:, None]) / (rows.sum() or np.nan))
    header = ["landmark", *(one.method.name for one in measured)]
    write_csv(output / "landmark_errors.csv", header, ([i, *map(cell, row)] for i, row in enumerate(zip(*means))))
    drawn["landmark_errors"] = figures.landmark_errors_figure(measured, means, faces)
    sheets = () if image_reader is None else figures.contact_sheets(measured, faces, image_reader)
    drawn = itertools.chain(drawn.items(), sheets)  # the sheets one by one, as they are written
    return [figures.save_figure(figure, output / f"{stem}.png", also) for stem, figure in drawn]


# --- what the report says ---------------------------------------------------------------------------------------------


def _landmark_blocks(faces: Faces, thresholds: Sequence[float], protocol: dict, scores: dict) -> list[Block]:
    title = f"{faces.spec.title}: {len(scores)} method{'s' * (len(scores) > 1)} on {len(faces.names)} faces"
    said = {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in plain(protocol).items()}
    blocks = [("h1", title), ("list", [f"{key}: {value}" for key, value in said.items()]), ("h2", "Landmarks")]
    keys = ["nme_pct", "nme_interpupil_pct"] + [f"{k}_pct@{t:.2f}" for t in thresholds for k in ("fr", "auc")]
    header = ["method", "subset", "faces", "scored", "NME inter-ocular %", "NME inter-pupil %"]
    if not faces.spec.outer_eye_corners:
        header[-2:] = ["NME % of the box's diagonal", "the same"]
    header += [f"{k}@{t:.2f} %" for t in thresholds for k in ("FR", "AUC")]
    rows = [
        [*names, numbers["n"], numbers["n_scored"], *(_with_interval(numbers[k], numbers["ci95"][k]) for k in keys)]
        for *names, numbers in _each(scores)
    ]
    note = (
        "In brackets: 95 % bootstrap interval over faces. NME is over the faces scored; a face without a prediction is "
        "a failure in FR, AUC and CED."
    )
    return [*blocks, ("table", (header, rows)), ("p", note)]


def _pair_blocks(compared: dict[str, list[dict]]) -> list[Block]:
    header = ["subset", "A", "B", "faces", "NME A - B", "A better on %", "B better on %", "lower NME"]
    rows, lost = [], []
    for subset, pairs in compared.items():
        for pair in pairs:
            a, b, n, left_out, (low, high) = (pair[key] for key in ("a", "b", "n", "left_out", "ci95"))
            clear = low is not None and (low > 0 or high < 0) and abs(pair["nme_difference_pct"]) > 100 * metrics.TIE
            better = "-" if not clear else b if low > 0 else a
            difference = _with_interval(pair["nme_difference_pct"], pair["ci95"], "+.2f")
            shares = [number(pair[key], 1) for key in ("a_better_pct", "b_better_pct")]
            rows.append([subset, a, b, n - left_out, difference, *shares, better])
            if left_out:
                told = "They are not in the difference; in the shares the method that found the face is better."
                lost.append(f"{a} and {b}, {subset}: {left_out} of {n} faces have no landmarks of one or both. {told}")
    note = (
        "NME A - B in percentage points: below 0, A is better. In brackets its 95 % interval, a paired bootstrap over "
        f"faces ({metrics.BOOTSTRAP_SAMPLES} draws), for each pair by itself. The lower NME is open where the interval "
        f"holds 0. Neither is better on faces whose errors differ by less than {100 * metrics.TIE:g} points."
    )
    blocks = [("h2", "In pairs, on the same faces"), ("table", (header, rows)), ("p", note), ("list", lost)]
    return blocks if rows else []


def _pose_blocks(scores: dict) -> list[Block]:
    rows = []
    for *names, numbers in _each(scores):
        for source, key in (("O_P", "pose"), ("PnP on landmarks", "pose_pnp")):
            if mae := numbers[f"{key}_mae_deg"]:
                cells = [_with_interval(mae[angle], numbers["ci95"][f"{key}_mae_deg"][angle]) for angle in ANGLES]
                rows.append([*names, numbers["n"], numbers[f"{key}_n_scored"], source, *cells])
    header = ["method", "subset", "faces", "scored", "pose from", *(f"{angle} MAE deg" for angle in ANGLES)]
    return [("h2", "Head pose"), ("table", (header, rows))] if rows else []


def _model_blocks(methods: Sequence[Method]) -> list[Block]:
    titles = {"parameters": "parameters", "multiply_adds": "multiply-adds", "latency_ms": "latency ms"}
    titles |= {"forward_passes": "forward passes", "input_size": "input px"}
    titles |= {key: key for key in ("crop", "format", "convention", "file")}
    forms = {"parameters": lambda v: f"{v / 1e6:.3f} M", "multiply_adds": lambda v: f"{v / 1e6:.1f} M"}
    forms["latency_ms"] = "{:.2f}".format
    infos = [{key: forms.get(key, str)(v) for key, v in m.info.items() if v is not None} for m in methods]
    present = [key for key in titles if any(key in info for info in infos)]
    rows = [[m.name, *(info.get(key, "-") for key in present)] for m, info in zip(methods, infos)]
    return [("h2", "Models"), ("table", (["method", *map(titles.get, present)], rows))] if present else []


def _published_blocks(faces: Faces, scores: dict) -> list[Block]:
    """Published numbers beside ours, for the subsets of which every face is there, and a note for the others."""
    spec = faces.spec
    if not spec.published:
        return []
    notes, complete = [], []
    for subset, mask in faces.masks.items():
        count, official = int(mask.sum()), spec.subset_counts.get(subset)
        if count != official:
            of, whole = ("", "another set of") if official is None else (f" of {official}", f"all {official}")
            reason = f"published numbers are not comparable because they are means over {whole} faces."
            notes.append(f"{subset}: {count}{of} faces; {reason}")
        elif not any(subset in row for table in spec.published.values() for row in table.values()):
            notes.append(f"{subset}: all {official} faces are here, but no number was published for it.")
        else:
            complete.append(subset)
    blocks: list[Block] = [("h2", "Beside the published numbers")]
    nme_table = spec.published.get("nme_pct", {})
    columns = [subset for subset in complete if any(subset in row for row in nme_table.values())]
    if columns:
        rows = [[f"{name} (published)", *(number(row.get(s)) for s in columns)] for name, row in nme_table.items()]
        for name, subsets in scores.items():
            rows.append([name, *(number(subsets[s]["nme_pct"]) + _of_faces(subsets[s], "n_scored") for s in columns)])
        blocks.append(("p", "NME, % inter-ocular, over all faces of the subset where no number is given."))
        blocks.append(("table", (["method", *columns], rows)))
    rows, ours = [], []
    for subset in complete:
        listed = {name: row[subset] for name, row in spec.published.get("pose_mae_deg", {}).items() if subset in row}
        rows += [[f"{name} (published)", subset, *map(number, angles)] for name, angles in listed.items()]
        for name, subsets in scores.items() if listed else ():
            for source, key in (("O_P", "pose"), ("PnP", "pose_pnp")):
                if mae := subsets[subset][f"{key}_mae_deg"]:
                    over = subset + _of_faces(subsets[subset], f"{key}_n_scored")
                    ours.append([f"{name} ({source})", over, *(number(mae[angle]) for angle in ANGLES)])
    if rows:
        note = (
            "The two do not measure the same: published pose errors are against HopeNet's predictions, ours against "
            "this run's labels (PnP on the annotated landmarks, unless a label file was given)."
        )
        header = ["method", "subset", *(f"{angle} MAE deg" for angle in ANGLES)]
        blocks += [("table", (header, rows + ours)), ("p", note)]
    return [*blocks, ("list", notes)]


# --- text, Markdown and HTML ------------------------------------------------------------------------------------------


def cell(value: float) -> str:
    """Returns a csv cell: six decimals, empty where the number is unknown."""
    return f"{value:.6f}" if np.isfinite(value) else ""


def _with_interval(value: float | None, interval: Sequence[float | None], form: str = ".2f") -> str:
    """Returns `value [low, high]`, the value alone where there is no interval, `-` where it is unknown."""
    if value is None or interval[0] is None:
        return "-" if value is None else f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def _of_faces(numbers: dict, key: str) -> str:
    """Returns ` (553 of 554)`, how many faces a mean of `metrics.summarise` is over; nothing where it is over all."""
    return "" if numbers[key] == numbers["n"] else f" ({numbers[key]} of {numbers['n']})"


def md_table(header: Sequence, rows: Iterable[Sequence]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = [list(map(_md, header)), ["---"] * len(header), *(list(map(_md, row)) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _md(text) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|").strip()


def _markdown(blocks: Sequence[Block]) -> str:
    parts = []
    for kind, content in blocks:
        if kind == "table":
            parts.append(md_table(*content))
        elif kind == "list":
            parts.append([f"- {_md(item)}" for item in content])
        else:
            parts.append([{"h1": "# ", "h2": "## ", "p": ""}[kind] + _md(content)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _html(blocks: Sequence[Block]) -> str:
    def tags(name: str, values: Iterable) -> str:
        return "".join(f"<{name}>{html.escape(utf8(value))}</{name}>" for value in values)

    parts = []
    for kind, content in blocks:
        if kind == "table":
            rows = [tags("th", content[0]), *(tags("td", cells) for cells in content[1])]
            parts.append("<div><table>\n" + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</table></div>")
        elif kind == "list":
            parts.append("<ul>" + tags("li", content) + "</ul>")
        elif kind in ("png", "jpeg"):
            data = content.read_bytes()
            if kind == "jpeg":  # photographs: a fifth of the bytes
                data = cv2.imencode(".jpg", cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[1]
            data = base64.b64encode(data).decode("ascii")
            parts.append(f'<img alt="{content.stem}" src="data:image/{kind};base64,{data}">')
        else:
            parts.append(tags(kind, [content]))
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8">{tags("title", [blocks[0][1]])}\n'
    return f"{head}<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
