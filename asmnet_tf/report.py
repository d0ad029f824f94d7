"""What an evaluation leaves behind: tables, CED and other curves, contact sheets (NumPy and Matplotlib only).

`metrics.py` computes every number; here they are only laid out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from asmnet_tf import comparison, metrics
from asmnet_tf.config import ANGLES, DatasetSpec
from asmnet_tf.files import InputError, make_folder, write_text
from asmnet_tf.geometry import crop_frame, crop_image, crop_to_image, invert, landmark_box, transform
from asmnet_tf.plots import draw_face, frame_face, line_style, new_figure, save_figure
from asmnet_tf.pose import draw_axes
from asmnet_tf.tables import (
    NOTE_BELOW_TABLE,
    cell,
    md,
    md_table,
    number,
    of_faces,
    plain,
    plain_text,
    pose_cell,
    with_interval,
    write_csv,
)

CED_STEP_PCT = 0.05  # grid of ced.csv and failure_rate.csv
SHEET_FACES = 12
SHEET_COLUMNS = 4
SHEET_SCALE = 1.6  # side of a tile over the longer side of the landmark box
TILE = 240  # pixels
CAPTION = 22
GREEN, RED = (0, 235, 0), (255, 45, 45)


@dataclass(frozen=True, eq=False)
class Method:
    """One model or prediction file, scored on one ordered list of N faces.

    name: in tables and legends, unique in a report. landmarks: (N, L, 2) predicted, image pixels; a face without a
    prediction is NaN and counts as a failure. pose: (N, 3) yaw, pitch, roll in degrees (`O_P` or the file's), or None.
    pose_pnp: (N, 3) degrees by PnP on `landmarks`, or None. info: any of parameters, multiply_adds, latency_ms, crop,
    input_size, format, file and more; plain values.
    """

    name: str
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    pose_pnp: np.ndarray | None = None
    info: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Faces:
    """The ground truth.

    spec: None where the point count is no known dataset's; then there is no normaliser and every NME is null.
    names: N sample names. landmarks: (N, L, 2) image pixels, finite. pose: (N, 3) degrees, rows may be NaN, or None.
    subsets: name -> bool (N,), in the order asked for; empty stands for one subset `all`. pose_from: what the pose is,
    in words.
    """

    spec: DatasetSpec | None
    names: list[str]
    landmarks: np.ndarray
    pose: np.ndarray | None = None
    subsets: dict[str, np.ndarray] = field(default_factory=dict)
    pose_from: str = ""


@dataclass(frozen=True, eq=False)
class _Measured:
    """Errors of one method: fractions of the inter-ocular or inter-pupil distance, degrees. NaN where unknown."""

    method: Method
    label: str  # the name, safe in a figure
    points: np.ndarray  # (N, L)
    nme: np.ndarray  # (N,)
    nme_interpupil: np.ndarray  # (N,)
    pose: np.ndarray | None  # (N, 3)
    pose_pnp: np.ndarray | None  # (N, 3)


# --- scores -----------------------------------------------------------------------------------------------------------


def score(methods: Sequence[Method], faces: Faces, thresholds: Sequence[float]) -> dict[str, dict[str, dict]]:
    """Scores every method on every subset.

    Args:    thresholds: of failure rate and AUC, NME as a fraction.
    Returns: {method: {subset: metrics.summarise(...)}}, n 0 and None for an empty subset.
    Raises:  InputError for two methods of one name, no faces, a face whose eyes are in one point, or predictions that
        do not fit the ground truth.
    """
    return _score(_measure(methods, faces), faces, thresholds)


def _measure(methods: Sequence[Method], faces: Faces) -> list[_Measured]:
    count = len(faces.names)
    if not count:
        raise InputError("no face to score. Is the data folder or the list of subsets right?")
    truth = np.asarray(faces.landmarks)
    if truth.ndim != 3 or len(truth) != count or not np.isfinite(truth).all():
        raise ValueError(f"ground truth of shape {truth.shape} for {count} faces; expected finite ({count}, L, 2)")
    if faces.spec is not None and truth.shape[1] != faces.spec.num_landmarks:
        raise ValueError(f"ground truth has {truth.shape[1]} points, {faces.spec.name} has {faces.spec.num_landmarks}")
    unknown = np.full(count, np.nan)
    lengths = pupil_lengths = unknown
    if faces.spec is not None:
        lengths = metrics.normaliser(truth, faces.spec)
        pupil_lengths = metrics.normaliser(truth, faces.spec, "inter-pupil")
        for i in np.flatnonzero(np.isnan(lengths) | np.isnan(pupil_lengths))[:1]:
            raise InputError(f"{faces.names[i]}: both eyes of its true landmarks are in one point. Remove this face.")
    measured: list[_Measured] = []
    for method in methods:
        if any(other.method.name == method.name for other in measured):
            raise InputError(f"two methods are called {method.name!r}. Give one of them another name.")
        if np.shape(method.landmarks) != truth.shape:
            raise InputError(
                f"{method.name}: landmarks of shape {np.shape(method.landmarks)}, the ground truth has {truth.shape}. "
                "Is it a model for this dataset?"
            )
        pose, pose_pnp = (
            None if angles is None or faces.pose is None else metrics.pose_errors(angles, faces.pose)
            for angles in (method.pose, method.pose_pnp)
        )
        measured.append(
            _Measured(
                method,
                _label(method.name),
                metrics.point_errors(method.landmarks, truth, lengths),
                metrics.nme(method.landmarks, truth, lengths),
                metrics.nme(method.landmarks, truth, pupil_lengths),
                pose,
                pose_pnp,
            )
        )
    return measured


def _subsets(faces: Faces) -> dict[str, np.ndarray]:
    return faces.subsets or {"all": np.ones(len(faces.names), bool)}


def _scored_faces(faces: Faces) -> np.ndarray:
    """Returns bool (N,): the faces of any subset asked for, all of them if those are empty."""
    chosen = np.any(list(_subsets(faces).values()), axis=0)
    return chosen if chosen.any() else np.ones(len(faces.names), bool)


def _score(measured: list[_Measured], faces: Faces, thresholds: Sequence[float]) -> dict[str, dict[str, dict]]:
    scores: dict[str, dict[str, dict]] = {}
    for one in measured:
        scores[one.method.name] = {}
        for subset, mask in _subsets(faces).items():
            numbers = metrics.summarise(
                one.nme[mask],
                one.nme_interpupil[mask],
                tuple(thresholds),
                None if one.pose is None else one.pose[mask],
                None if one.pose_pnp is None else one.pose_pnp[mask],
            )
            if faces.spec is None:  # without a normaliser no face has failed: there is nothing to compare with t
                for key in [key for key in numbers if "@" in key]:
                    numbers[key], numbers["ci95"][key] = None, [None, None]
                numbers["n_scored"] = None
            scores[one.method.name][subset] = numbers
    return scores


def json_line(scores: dict[str, dict[str, dict]]) -> str:
    """Returns the scores without their intervals as one line of JSON, numbers rounded to 6 decimals, never NaN."""
    short = {
        method: {
            subset: {key: value for key, value in numbers.items() if key != "ci95"}
            for subset, numbers in subsets.items()
        }
        for method, subsets in scores.items()
    }
    return json.dumps(plain(short, decimals=6), allow_nan=False)


def text_table(scores: dict[str, dict[str, dict]], thresholds: Sequence[float]) -> str:
    """Returns the scores as an aligned plain-text table for the terminal, without a newline at its end."""
    header = ["method", "subset", "faces", "scored", "NME %", "95 %", "pupil %"]
    header += [f"{name}@{t:.2f}" for t in thresholds for name in ("FR", "AUC")]
    rows_in = [(method, subset, numbers) for method, subsets in scores.items() for subset, numbers in subsets.items()]
    poses = [
        (title, key)
        for title, key in (("pose y/p/r deg", "pose"), ("PnP y/p/r deg", "pose_pnp"))
        if any(numbers[f"{key}_mae_deg"] for _, _, numbers in rows_in)
    ]
    header += [title for title, _ in poses]
    rows = [header]
    for method, subset, numbers in rows_in:
        low, high = numbers["ci95"]["nme_pct"]
        row = [_label(method, 32, escape=False), subset, str(numbers["n"]), number(numbers["n_scored"], 0)]
        row += [number(numbers["nme_pct"]), "-" if low is None else f"{low:.2f}..{high:.2f}"]
        row += [number(numbers["nme_interpupil_pct"])]
        row += [number(numbers[f"{key}_pct@{t:.2f}"]) for t in thresholds for key in ("fr", "auc")]
        rows.append(row + [pose_cell(numbers, key, "/") for _, key in poses])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
        for row in rows
    )


# --- the report -------------------------------------------------------------------------------------------------------


def write_report(
    output: str | Path,
    methods: Sequence[Method],
    faces: Faces,
    thresholds: Sequence[float],
    *,
    protocol: dict,
    image_reader: Callable[[int], np.ndarray] | None = None,
) -> dict[str, dict[str, dict]]:
    """Writes everything about an evaluation into folder `output` and returns the scores (see `score`).

    metrics.json, summary.md, per_image.csv; and where `faces.spec` gives a normaliser: ced, failure_rate and
    landmark_errors as .csv and .png, comparison.md for two methods or more, and with `image_reader` the sheets
    <method>_{best,median,worst}.png. Landmark errors and sheets are over the faces of all subsets together.

    Args:
        protocol: plain values that say how the numbers came about (crop, pose labels, data folder, command, ...).
        image_reader: face number -> its image, RGB uint8 (H, W, 3).
    Raises: InputError as `score`, for a file that cannot be written, and what `image_reader` raises.
    """
    output, thresholds = make_folder(output), tuple(thresholds)
    measured = _measure(methods, faces)
    scores = _score(measured, faces, thresholds)
    compared: dict[str, list[dict]] = {}
    if len(measured) > 1 and faces.spec is not None:
        compared = comparison.compare({one.method.name: one.nme for one in measured}, _subsets(faces))
    document = {
        "protocol": protocol,
        "thresholds": list(thresholds),
        "methods": {method.name: method.info for method in methods},
        "scores": scores,
        "comparisons": compared,
    }
    write_text(output / "metrics.json", json.dumps(plain(document), indent=1, allow_nan=False) + "\n")
    write_text(output / "summary.md", _summary_md(methods, faces, thresholds, protocol, scores))
    if compared:
        text = comparison.comparison_md(methods, faces, thresholds, protocol, scores, compared)
        write_text(output / "comparison.md", text)
    else:
        (output / "comparison.md").unlink(missing_ok=True)  # an earlier report's: it would pass for this one's
    _write_per_image(output / "per_image.csv", measured, faces)
    if faces.spec is None:
        return scores
    _write_curves(output, measured, faces, thresholds, scores)
    _write_landmark_errors(output, measured, faces)
    if image_reader is not None:
        _write_sheets(output, measured, faces, image_reader)
    return scores


def _write_per_image(path: Path, measured: list[_Measured], faces: Faces) -> None:
    count = len(faces.names)
    nothing = np.full((count, 3), np.nan)
    pose_gt = nothing if faces.pose is None else faces.pose
    lengths = np.full(count, np.nan)
    if faces.spec is not None:
        lengths = metrics.normaliser(faces.landmarks, faces.spec)
    header = ["method", "name", "subsets", "nme_pct", "nme_interpupil_pct", "interocular_px", "worst_landmark_pct"]
    header += [f"{angle}_{kind}_deg" for kind in ("pred", "pnp", "gt") for angle in ANGLES]
    member = {subset: np.asarray(mask) for subset, mask in _subsets(faces).items()}

    def rows() -> Iterable[list]:
        for one in measured:
            pose_pred = nothing if one.method.pose is None else one.method.pose
            pose_pnp = nothing if one.method.pose_pnp is None else one.method.pose_pnp
            for i, name in enumerate(faces.names):
                numbers = [one.nme[i] * 100, one.nme_interpupil[i] * 100, lengths[i], one.points[i].max() * 100]
                numbers += [*pose_pred[i], *pose_pnp[i], *pose_gt[i]]
                inside = ";".join(subset for subset, mask in member.items() if mask[i])
                yield [one.method.name, name, inside, *map(cell, numbers)]

    write_csv(path, header, rows())


# --- curves -----------------------------------------------------------------------------------------------------------


def _grid(thresholds: Sequence[float]) -> np.ndarray:
    """Returns NME fractions from 0 to the largest threshold, at least 10 %, rounded so that 8 % is exactly 0.08."""
    last = max(10.0, *(100 * t for t in thresholds)) if thresholds else 10.0
    return np.round(np.arange(math.ceil(last / CED_STEP_PCT - 1e-6) + 1) * CED_STEP_PCT / 100, 6)


def _write_curves(
    output: Path, measured: list[_Measured], faces: Faces, thresholds: Sequence[float], scores: dict
) -> None:
    grid = _grid(thresholds)
    shares = {
        (subset, one.method.name): metrics.ced(one.nme[mask], grid) * 100
        for subset, mask in _subsets(faces).items()
        for one in measured
        if mask.any()
    }
    for stem, column, to_pct in (
        ("ced", "faces_pct", lambda share: share),
        ("failure_rate", "fr_pct", lambda share: 100 - share),
    ):
        rows = (
            [subset, method, f"{100 * t:.2f}", cell(value)]
            for (subset, method), share in shares.items()
            for t, value in zip(grid, to_pct(share))
        )
        write_csv(output / f"{stem}.csv", ["subset", "method", "threshold_pct", column], rows)
        save_figure(_curves_figure(stem, grid, shares, measured, faces, thresholds, scores), output / f"{stem}.png")


def _curves_figure(
    stem: str,
    grid: np.ndarray,
    shares: dict[tuple[str, str], np.ndarray],
    measured: list[_Measured],
    faces: Faces,
    thresholds: Sequence[float],
    scores: dict,
) -> Figure:
    subsets = _subsets(faces)
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}.get(len(subsets), 4)
    rows = math.ceil(len(subsets) / columns)
    single = len(subsets) == 1
    below = len(measured) > 4  # inside, a long legend would hide the curves
    room = 0.2 * (len(measured) + 1) if below else 0.0
    figure = new_figure((7.5, 5.2 + room) if single else (4.6 * columns, (4.0 + room) * rows))
    title = faces.spec.title if faces.spec else ""
    for k, (subset, mask) in enumerate(subsets.items()):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.set_title(f"{title} {subset}, {int(mask.sum())} faces", fontsize=10)
        axes.set_xlim(0, 100 * grid[-1])
        axes.set_xlabel("NME [% inter-ocular]" if stem == "ced" else "threshold on the NME [% inter-ocular]")
        axes.set_ylabel("faces with at most this NME [%]" if stem == "ced" else "failure rate [%]")
        axes.grid(True, which="major", alpha=0.3)
        for t in thresholds:
            axes.axvline(100 * t, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        if not mask.any():
            axes.text(0.5, 0.5, "no faces", transform=axes.transAxes, ha="center", va="center", color="0.4")
            axes.set_yticks([])
            continue
        lowest = 100.0
        for j, one in enumerate(measured):
            share = shares[subset, one.method.name]
            failing = np.where(share < 100 - 1e-9, 100 - share, np.nan)  # a logarithmic axis has no 0
            lowest = np.nanmin([lowest, *failing])
            curve = share if stem == "ced" else failing
            axes.plot(
                100 * grid,
                curve,
                **line_style(j),
                label=_legend(one.label, stem, scores[one.method.name][subset], thresholds),
            )
        if stem == "ced":
            axes.set_ylim(0, 101)
        else:  # the differences are in the last few per cent
            axes.set_yscale("log")
            axes.set_ylim(min(10.0, 0.7 * lowest), 120)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if measured:
            last = f", AUC@{max(thresholds):.2f}" if thresholds else ""
            rates = ", ".join(f"FR@{t:.2f}" for t in thresholds)
            size = 8 if single else 7
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)} if below else {"loc": "best"}
            heading = f"NME (faces scored / all){last} [%]" if stem == "ced" else f"{rates} [%]" if rates else None
            axes.legend(**place, title=heading, title_fontsize=size, fontsize=size, framealpha=0.85)
    return figure


def _legend(label: str, stem: str, numbers: dict, thresholds: Sequence[float]) -> str:
    if stem == "ced":
        values = [f"{number(numbers['nme_pct'])} ({numbers['n_scored']} / {numbers['n']})"]
        values += [number(numbers[f"auc_pct@{max(thresholds):.2f}"], 1)] if thresholds else []
    else:
        values = [number(numbers[f"fr_pct@{t:.2f}"]) for t in thresholds]
    return f"{label}: {', '.join(values)}" if values else label


# --- landmarks --------------------------------------------------------------------------------------------------------


def _mean_rows(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the mean (L,) of those rows (bool (N,)) of a table (N, L) that are finite; NaN if none is."""
    total, count = np.zeros(table.shape[1]), 0
    for first in range(0, len(table), 4096):  # a copy of the rows chosen would be as large as the table
        chunk = table[first : first + 4096][rows[first : first + 4096]]
        chunk = chunk[np.isfinite(chunk).all(axis=1)]
        total, count = total + chunk.sum(axis=0), count + len(chunk)
    return total / count if count else np.full(table.shape[1], np.nan)


def _write_landmark_errors(output: Path, measured: list[_Measured], faces: Faces) -> None:
    scored = _scored_faces(faces)
    means = [_mean_rows(one.points, scored) * 100 for one in measured]
    header = ["landmark", *(one.method.name for one in measured)]
    rows = ([i, *(cell(mean[i]) for mean in means)] for i in range(faces.landmarks.shape[1]))
    write_csv(output / "landmark_errors.csv", header, rows)

    # the outline is that of some thousand faces at most: more look the same
    truth = np.asarray(faces.landmarks[np.flatnonzero(scored)[:4096]], np.float64)
    lengths = metrics.normaliser(truth, faces.spec)[:, None, None]
    shapes = ((truth - truth.mean(axis=1, keepdims=True)) / lengths).reshape(len(truth), -1)
    face = _mean_rows(shapes, np.ones(len(shapes), bool)).reshape(-1, 2)
    columns = max(1, min(4, len(measured)))
    rows_of_faces = math.ceil(len(measured) / columns)
    figure = new_figure((max(9.0, 3.6 * columns), 3.6 + 3.6 * rows_of_faces))
    grid = figure.add_gridspec(1 + rows_of_faces, columns)
    axes = figure.add_subplot(grid[0, :])
    for k, (indices, _) in enumerate(faces.spec.contours):
        if k % 2 == 0 and indices == tuple(range(indices[0], indices[-1] + 1)):
            axes.axvspan(indices[0] - 0.5, indices[-1] + 0.5, color="0.93", zorder=0)
    for j, (one, mean) in enumerate(zip(measured, means)):
        axes.plot(mean, **line_style(j), marker="o", markersize=3, label=one.label)
    axes.set_xlim(-0.5, len(face) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("landmark, counted from 0 (bands: contours)")
    axes.set_ylabel("mean error [% inter-ocular]")
    axes.set_title(f"{faces.spec.title}, {int(scored.sum())} faces", fontsize=10)
    axes.grid(True, axis="y", alpha=0.3)
    if measured:
        axes.legend(fontsize=8, ncols=min(3, len(measured)), framealpha=0.85)
    finite = [mean[np.isfinite(mean)] for mean in means if np.isfinite(mean).any()]
    top = float(np.concatenate(finite).max()) if finite else 1.0
    panels, circles = [], None
    for j, (one, mean) in enumerate(zip(measured, means)):
        axes = figure.add_subplot(grid[1 + j // columns, j % columns])
        panels.append(axes)
        draw_face(axes, face, faces.spec, color="0.7", linewidth=0.8)
        radii = np.where(np.isfinite(mean), mean, 0.0) / 100
        circles = PatchCollection([Circle(point, radius) for point, radius in zip(face, radii)], cmap="viridis_r")
        circles.set_array(np.where(np.isfinite(mean), mean, 0.0))
        circles.set_clim(0, top)
        circles.set_alpha(0.75)
        axes.add_collection(circles)
        frame_face(axes, face, top / 100)
        over = f"{int(metrics.scored(one.nme[scored]).sum())} / {int(scored.sum())} faces"
        axes.set_title(f"{one.label}\nmean {number(float(mean.mean()))} % ({over})", fontsize=9)
    if circles is not None:
        bar = figure.colorbar(circles, ax=panels, shrink=0.8, pad=0.01)
        bar.set_label("mean error [% inter-ocular], radius to scale", fontsize=8)
    save_figure(figure, output / "landmark_errors.png")


# --- contact sheets ---------------------------------------------------------------------------------------------------


def _write_sheets(
    output: Path, measured: list[_Measured], faces: Faces, image_reader: Callable[[int], np.ndarray]
) -> None:
    scored = np.flatnonzero(_scored_faces(faces))
    tiles: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # methods often share their worst faces

    def tile(i: int) -> tuple[np.ndarray, np.ndarray]:
        if i not in tiles:
            frame = crop_frame(landmark_box(np.asarray(faces.landmarks[i], np.float64)), "square", SHEET_SCALE)
            tiles[i] = crop_image(image_reader(i), frame, TILE), invert(crop_to_image(frame, TILE))
        return tiles[i]

    stems = file_names([one.method.name for one in measured])
    for one, stem in zip(measured, stems):
        order = scored[np.argsort(one.nme[scored], kind="stable")]  # without a prediction (NaN): last
        middle = max(0, (len(order) - SHEET_FACES) // 2)
        choices = {
            "best": order[:SHEET_FACES],
            "median": order[middle : middle + SHEET_FACES],
            "worst": order[::-1][:SHEET_FACES],
        }
        for kind, chosen in choices.items():
            pictures = [_annotated(*tile(int(i)), one.method, faces, int(i)) for i in chosen]
            captions = [f"{number(100 * one.nme[i])} %   {_short(faces.names[i])}" for i in chosen]
            title = f"{one.label}: {kind} {len(chosen)} of {len(order)} faces by NME (inter-ocular)"
            _save_sheet(pictures, captions, title, output / f"{stem}_{kind}.png")


def _annotated(pixels: np.ndarray, image_to_tile: np.ndarray, method: Method, faces: Faces, i: int) -> np.ndarray:
    picture = pixels.copy()
    for landmarks, colour in ((faces.landmarks[i], GREEN), (method.landmarks[i], RED)):
        points = transform(image_to_tile, np.asarray(landmarks, np.float64))
        points = points[np.isfinite(points).all(axis=1) & (np.abs(points) < 2 * TILE).all(axis=1)]
        for x, y in np.round(points * 16).astype(int).tolist():  # 4 fractional bits
            cv2.circle(picture, (x, y), 21, colour, -1, cv2.LINE_AA, shift=4)
    predicted = method.pose if method.pose is not None else method.pose_pnp
    for angles, x in ((predicted, 24), (faces.pose, TILE - 25)):
        if angles is not None and np.isfinite(angles[i]).all():
            draw_axes(picture, angles[i], np.array([x, TILE - 25]), 19)
    return picture


def _save_sheet(pictures: list[np.ndarray], captions: list[str], title: str, path: Path) -> None:
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    head, step, gap = 44, TILE + CAPTION, 4
    width, height = max(columns * (TILE + gap) + gap, 2 * TILE), rows * step + head
    figure = Figure((width / 100, height / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, **style) -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=size, va="top", **style)

    write(gap, 4, title, 10)
    write(gap, 24, "ground truth", 8, color="#00a000")
    write(gap + 90, 24, "prediction", 8, color="#e02020")
    write(gap + 170, 24, "axes: predicted pose left, ground truth right", 8, color="0.3")
    for k, (picture, caption) in enumerate(zip(pictures, captions)):
        x, y = gap + (k % columns) * (TILE + gap), head + (k // columns) * step
        figure.figimage(picture, x, height - y - TILE, origin="upper")
        write(x + 2, y + TILE + 3, caption, 8)
    save_figure(figure, path, dpi=100)


def file_names(names: Sequence[str]) -> list[str]:
    """Returns a file name stem for each method name: letters, digits, `.`, `_`, `-` only, and no two alike.

    They differ in more than case, since some file systems do not see it.
    """
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:60] or "method"
        stem, k = base, 1
        while stem.lower() in taken:
            k += 1
            stem = f"{base}-{k}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems


# --- summary.md -------------------------------------------------------------------------------------------------------


def _summary_md(
    methods: Sequence[Method],
    faces: Faces,
    thresholds: Sequence[float],
    protocol: dict,
    scores: dict,
) -> str:
    title = faces.spec.title if faces.spec else f"{faces.landmarks.shape[1]} points"
    parts = [f"# {title}: {len(methods)} method{'' if len(methods) == 1 else 's'} on {len(faces.names)} faces", ""]
    parts += [f"- {md(key)}: {md(plain_text(value))}" for key, value in protocol.items()]
    if protocol:
        parts.append("")
    parts += ["## Landmarks", ""]
    if faces.spec is None:
        parts += ["Which points are eye corners is unknown for this point count: no normaliser, hence no NME.", ""]
    keys = ["nme_pct", "nme_interpupil_pct"] + [f"{k}_pct@{t:.2f}" for t in thresholds for k in ("fr", "auc")]
    header = ["method", "subset", "faces", "scored", "NME inter-ocular %", "NME inter-pupil %"]
    header += [f"{k}@{t:.2f} %" for t in thresholds for k in ("FR", "AUC")]
    rows = [
        [method, subset, numbers["n"], number(numbers["n_scored"], 0)]
        + [with_interval(numbers[key], numbers["ci95"][key]) for key in keys]
        for method, subsets in scores.items()
        for subset, numbers in subsets.items()
    ]
    parts += [*md_table(header, rows), "", NOTE_BELOW_TABLE, ""]
    parts += _pose_md(scores)
    parts += _models_md(methods)
    parts += _published_md(faces, scores)
    return "\n".join(parts).rstrip("\n") + "\n"


def _pose_md(scores: dict) -> list[str]:
    rows = []
    for method, subsets in scores.items():
        for subset, numbers in subsets.items():
            for source, key in (("O_P", "pose"), ("PnP on landmarks", "pose_pnp")):
                if numbers[f"{key}_mae_deg"]:
                    mae, intervals = numbers[f"{key}_mae_deg"], numbers["ci95"][f"{key}_mae_deg"]
                    cells = [with_interval(mae[angle], intervals[angle]) for angle in ANGLES]
                    rows.append([method, subset, numbers["n"], numbers[f"{key}_n_scored"], source, *cells])
    if not rows:
        return []
    header = ["method", "subset", "faces", "scored", "pose from", *(f"{angle} MAE deg" for angle in ANGLES)]
    return ["## Head pose", "", *md_table(header, rows), ""]


def _models_md(methods: Sequence[Method]) -> list[str]:
    columns = {
        "parameters": ("parameters", lambda v: f"{v / 1e6:.3f} M"),
        "multiply_adds": ("multiply-adds", lambda v: f"{v / 1e6:.1f} M"),
        "latency_ms": ("latency ms", lambda v: f"{v:.2f}"),
        "forward_passes": ("forward passes", str),
        "crop": ("crop", str),
        "input_size": ("input px", str),
        "format": ("format", str),
        "convention": ("convention", str),
        "file": ("file", str),
    }
    present = [key for key in columns if any(method.info.get(key) is not None for method in methods)]
    if not present:
        return []
    rows = [
        [method.name, *("-" if method.info.get(key) is None else columns[key][1](method.info[key]) for key in present)]
        for method in methods
    ]
    return ["## Models", "", *md_table(["method", *(columns[key][0] for key in present)], rows), ""]


def _published_md(faces: Faces, scores: dict) -> list[str]:
    """Published numbers beside ours, for the subsets of which every face is there, and a note for the others."""
    spec = faces.spec
    if spec is None or not spec.published:
        return []
    notes, complete = [], []
    for subset, mask in _subsets(faces).items():
        count, official = int(mask.sum()), spec.subset_counts.get(subset)
        if official is None or count != official:
            of = "" if official is None else f" of {official}"
            notes.append(
                f"- {subset}: {count}{of} faces; published numbers are not comparable because they are means over "
                f"{'another set of faces' if official is None else f'all {official} faces'}."
            )
        elif not any(subset in row for table in spec.published.values() for row in table.values()):
            notes.append(f"- {subset}: all {official} faces are here, but no number was published for it.")
        else:
            complete.append(subset)
    parts = ["## Beside the published numbers", ""]
    nme_table = spec.published.get("nme_pct", {})
    columns = [subset for subset in complete if any(subset in row for row in nme_table.values())]
    if columns:
        rows = [
            [f"{name} (published)", *(number(row.get(subset)) for subset in columns)] for name, row in nme_table.items()
        ]
        rows += [
            [name, *(number(subsets[subset]["nme_pct"]) + of_faces(subsets[subset]) for subset in columns)]
            for name, subsets in scores.items()
        ]
        parts += ["NME, % inter-ocular, over all faces of the subset where no number is given.", ""]
        parts += [*md_table(["method", *columns], rows), ""]
    pose_table = spec.published.get("pose_mae_deg", {})
    rows, ours = [], []
    for subset in complete:
        listed = [(name, row[subset]) for name, row in pose_table.items() if subset in row]
        if not listed:
            continue
        rows += [[f"{name} (published)", subset, *map(number, angles)] for name, angles in listed]
        for name, subsets in scores.items():
            for source, key in (("O_P", "pose"), ("PnP", "pose_pnp")):
                numbers = subsets[subset]
                if mae := numbers[f"{key}_mae_deg"]:
                    over = subset + of_faces(numbers, f"{key}_n_scored")
                    ours.append([f"{name} ({source})", over, *(number(mae[angle]) for angle in ANGLES)])
    if rows:
        header = ["method", "subset", *(f"{angle} MAE deg" for angle in ANGLES)]
        parts += md_table(header, rows + ours)
        parts += [
            "",
            "The two do not measure the same: published pose errors are against HopeNet's predictions, ours against "
            "this run's labels (PnP on the annotated landmarks, unless a label file was given).",
            "",
        ]
    return parts + notes


# --- common to all ----------------------------------------------------------------------------------------------------


def _label(name: str, length: int = 40, escape: bool = True) -> str:
    """Returns a method name fit for a legend: one line, not too long, no math, not hidden by a leading underscore."""
    name = re.sub(r"\s+", " ", name).strip() or "(no name)"
    if len(name) > length:
        name = name[: length - 1] + "…"
    if escape:
        name = name.replace("$", r"\$")
        name = f" {name}" if name.startswith("_") else name
    return name


def _short(name: str, length: int = 26) -> str:
    """Returns the end of a sample name, which tells faces apart."""
    return (name if len(name) <= length else "…" + name[1 - length :]).replace("$", r"\$")
