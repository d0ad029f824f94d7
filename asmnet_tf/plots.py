"""Figures of training runs and shape models, and what all figures share (NumPy and Matplotlib only).

Figures are drawn by Agg without pyplot, so nothing depends on a display, and every file appears whole or not at all.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asmnet_tf.config import ANGLES, DatasetSpec
from asmnet_tf.files import InputError, make_folder, read_text, replacing
from asmnet_tf.geometry import landmark_box

DPI = 110
PCA_MARKS = (85.0, 90.0, 95.0, 97.0, 99.0)  # of the variance curve, where the caller asks for none
MAX_MODES = 5
_LINES = ("-", "--", "-.", ":")
_LOG_COLUMNS = ("epoch", "loss", "loss_landmarks", "loss_asm", "loss_pose", "alpha", "lr", "val_nme_pct")
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#17becf",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
)


# --- what all figures share -------------------------------------------------------------------------------------------


def draw_face(axes, points: np.ndarray, spec: DatasetSpec | None, **style) -> None:
    """Draws points (L, 2) along the spec's contours, or as dots where there are none."""
    if spec is None or len(points) != spec.num_landmarks:
        axes.plot(points[:, 0], points[:, 1], linestyle="none", marker=".", markersize=3, color=style.get("color"))
        return
    for indices, closed in spec.contours:
        line = points[[*indices, indices[0]] if closed else list(indices)]
        axes.plot(line[:, 0], line[:, 1], **style)
    drawn = {i for indices, _ in spec.contours for i in indices}
    for i in set(range(len(points))) - drawn:
        axes.plot(*points[i], marker=".", markersize=3, color=style.get("color"))


def frame_face(axes, points: np.ndarray, margin: float) -> None:
    """Fits equal axes, y downwards, around points (..., 2) and removes the ticks."""
    box = landmark_box(points.reshape(-1, 2))
    low, high = box[:2] - margin, box[2:] + margin
    if np.isfinite(box).all():
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(high[1], low[1])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def new_figure(size: tuple[float, float]) -> Figure:
    """Returns an empty figure of `size` inches that Agg draws: no pyplot, no display."""
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes a figure as PNG. Raises: InputError if the file cannot be written."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script the font lacks shows boxes
        figure.savefig(temporary, dpi=dpi, format="png")


def line_style(j: int, width: float = 1.6) -> dict:
    """Returns colour and line style of method `j`: the same in every figure."""
    return {"color": _COLOURS[j % len(_COLOURS)], "linestyle": _LINES[j % len(_LINES)], "linewidth": width}


# --- training and the shape model -------------------------------------------------------------------------------------


def training_curves(log_csv: str | Path, output_png: str | Path) -> None:
    """Draws losses, validation NME and pose error, alpha and learning rate over the epochs of `log.csv`.

    Args:   log_csv: columns epoch, loss, loss_landmarks, loss_asm, loss_pose, alpha, lr, images_per_s, seconds,
                val_nme_pct, val_yaw_deg, val_pitch_deg, val_roll_deg; cells may be empty.
    Raises: InputError for a log that cannot be read, lacks a column, holds no epoch or text for a number.
    """
    log = _read_log(Path(log_csv))
    epoch = log["epoch"]
    figure = new_figure((12.0, 5.6))
    grid = figure.add_gridspec(2, 3, height_ratios=[2, 1])
    marker = {"marker": "o", "markersize": 3} if len(epoch) < 40 else {}

    def panel(place, title: str, columns: dict[str, str], *, log_axis=False, step=False, clip=False) -> None:
        axes = figure.add_subplot(place)
        drawn, lowest = 0, 0.0
        for j, (column, label) in enumerate(columns.items()):
            values = log.get(column, np.full(len(epoch), np.nan))
            if log_axis:
                values = np.where(values > 0, values, np.nan)
            known = np.isfinite(values)
            if known.any():  # validation may run every few epochs: join what is there
                style = {"drawstyle": "steps-mid"} if step else {}
                axes.plot(epoch[known], values[known], **line_style(j, 1.3), **marker, **style, label=label)
                drawn, lowest = drawn + 1, max(lowest, values[known].min())
        if log_axis and drawn:
            axes.set_yscale("log")
        if not drawn:
            axes.text(0.5, 0.5, "not in this log", transform=axes.transAxes, ha="center", va="center", color="0.4")
        elif not log_axis:
            top = axes.get_ylim()[1]
            if clip:  # the first epochs would flatten the rest
                top = min(top, 3.5 * lowest) or top
            axes.set_ylim(0, top)
        low, high = np.nanmin(epoch), np.nanmax(epoch)
        margin = max(0.5, 0.02 * (high - low))
        axes.set_xlim(low - margin, high + margin)
        if high > low:
            axes.xaxis.get_major_locator().set_params(integer=True)
        else:
            axes.set_xticks([low])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(True, alpha=0.3)
        if len(columns) > 1 and drawn:
            axes.legend(fontsize=8, framealpha=0.85)

    losses = {"loss": "total", "loss_landmarks": "landmarks", "loss_asm": "ASM term", "loss_pose": "pose"}
    panel(grid[0, 0], "training loss", losses, log_axis=True)
    panel(grid[0, 1], "validation NME [% inter-ocular]", {"val_nme_pct": "NME"}, clip=True)
    panel(grid[0, 2], "validation pose error [deg]", {f"val_{angle}_deg": angle for angle in ANGLES}, clip=True)
    panel(grid[1, 0], "alpha, weight of the ASM term", {"alpha": "alpha"}, step=True)
    panel(grid[1, 1], "learning rate", {"lr": "learning rate"})
    panel(grid[1, 2], "speed [images / s]", {"images_per_s": "images / s"})
    save_figure(figure, Path(output_png))


def _read_log(path: Path) -> dict[str, np.ndarray]:
    try:
        reader = csv.DictReader(read_text(path).split("\n"))
        columns = list(reader.fieldnames or ())
        rows = list(reader)
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: training log cannot be read ({error}). Is it the log.csv of a run?") from error
    missing = [column for column in _LOG_COLUMNS if column not in columns]
    if missing or not rows:
        came = f"no column {missing[0]}" if missing else "no epoch in it"
        raise InputError(f"{path}: {came}. Is it the log.csv of a run?")
    log = {}
    for column in columns:
        try:
            log[column] = np.array([float(row[column] or "nan") for row in rows])
        except ValueError as error:
            raise InputError(f"{path}, column {column}: {error}. Is it the log.csv of a run?") from error
    known = np.isfinite(log["epoch"])
    if not known.any():
        raise InputError(f"{path}: no epoch in it. Is it the log.csv of a run?")
    return {column: values[known] for column, values in log.items()}


def shape_model_plots(
    output_dir: str | Path,
    prefix: str,
    mean_shape: np.ndarray,
    eigenvectors: np.ndarray,
    eigenvalues: np.ndarray,
    explained_ratio_all: np.ndarray,
    smoothing: dict[float, np.ndarray],
    spec: DatasetSpec | None,
) -> list[Path]:
    """Draws a shape model: <prefix>_modes.png, <prefix>_variance.png and, for any `smoothing`, <prefix>_smoothing.png.

    Args:
        mean_shape: (2L,) network units, x0, y0, x1, ... eigenvectors: (2L, K), largest first. eigenvalues: (K,).
        explained_ratio_all: (2L,) or fewer, share of the variance of every component, largest first.
        smoothing: pca_percent -> (N,) how far ASM moves each real shape, mean over its landmarks, as a fraction of the
            inter-ocular distance; its keys are also marked on the variance curve.
        spec: gives the contours; None draws dots.
    Returns: the files written.
    Raises:  InputError if a file cannot be written.
    """
    output_dir, prefix = make_folder(output_dir), str(prefix)
    files = [output_dir / f"{prefix}_modes.png", output_dir / f"{prefix}_variance.png"]
    save_figure(_modes_figure(mean_shape, eigenvectors, eigenvalues, explained_ratio_all, spec), files[0])
    save_figure(_variance_figure(np.asarray(explained_ratio_all, np.float64), sorted(smoothing) or PCA_MARKS), files[1])
    if smoothing:
        files.append(output_dir / f"{prefix}_smoothing.png")
        save_figure(_smoothing_figure(smoothing), files[2])
    return files


def _modes_figure(mean_shape, eigenvectors, eigenvalues, explained_ratio_all, spec: DatasetSpec | None) -> Figure:
    mean_shape, eigenvectors = np.asarray(mean_shape, np.float64), np.asarray(eigenvectors, np.float64)
    deviations = np.sqrt(np.maximum(np.asarray(eigenvalues, np.float64), 0.0))
    modes, steps = min(MAX_MODES, eigenvectors.shape[1]), np.arange(-3, 4)
    figure = new_figure((1.5 * len(steps) + 0.5, 1.75 * max(modes, 1) + 0.5))
    moves = steps[:, None] * (eigenvectors[:, :modes] * deviations[:modes]).T[:, None]  # (modes, steps, 2L)
    shapes = (mean_shape + moves).reshape(modes, len(steps), -1, 2)
    mean = mean_shape.reshape(-1, 2)
    around = np.concatenate([shapes.reshape(-1, 2), mean])  # one scale for all drawings
    for k in range(modes):
        for j, step in enumerate(steps):
            axes = figure.add_subplot(modes, len(steps), k * len(steps) + j + 1)
            if step:
                draw_face(axes, mean, spec, color="0.82", linewidth=0.7)
            colour = "black" if step == 0 else _COLOURS[0] if step < 0 else _COLOURS[1]
            draw_face(axes, shapes[k, j], spec, color=colour, linewidth=1.0)
            frame_face(axes, around, 0.02)
            if k == 0:
                axes.set_title("mean" if step == 0 else rf"{step:+d} $\sqrt{{\lambda}}$".replace("-", "−"), fontsize=9)
            if j == 0:
                axes.set_ylabel(f"mode {k + 1}\n{100 * float(explained_ratio_all[k]):.1f} %", fontsize=9)
    if not modes:
        draw_face(axes := figure.add_subplot(), mean, spec, color="black", linewidth=1.0)
        frame_face(axes, mean, 0.02)
    return figure


def _variance_figure(ratios: np.ndarray, marks: Sequence[float]) -> Figure:
    total = np.cumsum(ratios) * 100
    count = np.arange(1, len(total) + 1)
    figure = new_figure((7.0, 4.6))
    axes = figure.add_subplot()
    axes.plot(count, total, color=_COLOURS[0], marker="o", markersize=3, linewidth=1.5)
    for j, percent in enumerate(marks):
        needed = min(int(np.searchsorted(total, percent - 1e-7)) + 1, len(total))
        plural = "" if needed == 1 else "s"
        axes.plot(
            needed,
            total[needed - 1],
            color=_COLOURS[(j + 1) % len(_COLOURS)],
            linestyle="none",
            marker="D",
            markersize=7,
            label=f"{percent:g} %: {needed} component{plural}",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlim(0.9, max(len(total), 2) * 1.1)
    axes.set_ylim(max(0.0, min(total[0], 100.0) - 8), 102)
    axes.set_xlabel("number of components K")
    axes.set_ylabel("variance explained [%]")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def _smoothing_figure(smoothing: dict[float, np.ndarray]) -> Figure:
    figure = new_figure((7.0, 4.6))
    axes = figure.add_subplot()
    moved = {percent: 100 * np.asarray(smoothing[percent], np.float64) for percent in sorted(smoothing)}
    moved = {percent: values[np.isfinite(values)] for percent, values in moved.items()}
    everything = np.concatenate(list(moved.values()))
    # the few odd shapes far out would squeeze the rest; they are counted in the last bin
    last = max(float(np.quantile(everything, 0.998)) * 1.05, 1e-3) if len(everything) else 1.0
    bins = np.linspace(0, last, 61)
    for j, (percent, values) in enumerate(moved.items()):
        if not len(values):
            continue
        style = line_style(j)
        axes.hist(
            np.minimum(values, last * (1 - 1e-9)),
            bins,
            weights=np.full(len(values), 100 / len(values)),
            histtype="step",
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.6,
            label=f"{percent:g} %: mean {values.mean():.2f}, median {np.median(values):.2f}, max {values.max():.2f}",
        )
        axes.axvline(values.mean(), color=style["color"], linewidth=0.8, linestyle=":")
    axes.set_xlim(0, last)
    axes.set_xlabel("distance that ASM moves a shape [% inter-ocular, mean over landmarks]")
    axes.set_ylabel("shapes [% per bin]")
    axes.grid(True, alpha=0.3)
    if len(everything):
        axes.legend(title="pca_percent", fontsize=9)
    return figure
