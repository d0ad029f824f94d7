"""All drawing: evaluations, training runs and shape models (NumPy, OpenCV and Matplotlib only).

Figures are drawn by Agg without pyplot, so nothing depends on a display, and every file appears whole or not at all.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from asmnet_tf.config import ANGLES
from asmnet_tf.data.geometry import crop_frame, crop_image, crop_to_image, invert, landmark_box, transform
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.records import Faces, Measured, Method, file_names, number, one_line
from asmnet_tf.faces.overlay import draw_axes
from asmnet_tf.files import replacing, utf8
from asmnet_tf.shape.shape_model import ShapeModel

DPI = 200
MAX_MODES = 5
SHEET_FACES = 12
SHEET_COLUMNS = 4
SHEET_SCALE = 1.6  # side of a tile over the longer side of the landmark box
TILE, CAPTION, HEAD, GAP = 240, 22, 44, 4  # pixels of a contact sheet
GREEN, RED = (0, 235, 0), (255, 45, 45)
_LINES = ("-", "--", "-.", ":")
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")
_COLOURS += ("#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")


# --- what all figures share -------------------------------------------------------------------------------------------


def draw_face(axes, points: np.ndarray, spec: DatasetSpec, **style) -> None:
    """Draws points (L, 2) along the spec's contours, or as dots where there are none."""
    for indices, closed in spec.contours:
        axes.plot(*points[[*indices, indices[0]] if closed else list(indices)].T, **style)
    dots = np.delete(points, [i for indices, _ in spec.contours for i in indices], axis=0)
    axes.plot(*dots.T, linestyle="none", marker=".", markersize=3, color=style.get("color"))


def frame_face(axes, points: np.ndarray, margin: float) -> None:
    """Fits equal axes, y downwards, around points (..., 2) and removes the ticks."""
    box = landmark_box(points.reshape(-1, 2))
    axes.set(xlim=(box[0] - margin, box[2] + margin), ylim=(box[3] + margin, box[1] - margin))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def save_figure(figure: Figure, path: Path, also: str = "png") -> Path:
    """Writes a figure as PNG and beside it as `also`, pdf or svg; returns `path`. Raises: InputError if it cannot."""
    for ending in dict.fromkeys(("png", also)):
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(ending)
        fonts = rc_context({"pdf.fonttype": 42, "svg.hashsalt": "asmnet"})  # 42: publishers refuse Type 3
        with replacing(path.with_suffix(f".{ending}")) as temporary, warnings.catch_warnings(), fonts:
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script the font lacks shows boxes
            figure.savefig(temporary, dpi=DPI, format=ending, metadata=undated)
    return path


def new_axes(figure: Figure, *place, title: str = "", **settings):
    """Returns new axes with a title, a grid and these `settings`."""
    axes = figure.add_subplot(*place, **settings)
    axes.set_title(title.replace("$", r"\$"), fontsize=10)
    axes.grid(True, alpha=0.3)
    return axes


def legend_below(axes, **style) -> None:
    """Puts the legend under the axes and their label, where it hides no curve."""
    below = axes.transAxes + ScaledTranslation(0, -0.52, axes.figure.dpi_scale_trans)
    style = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below, "borderaxespad": 0} | style
    axes.legend(**{"fontsize": 8, "title_fontsize": 8} | style)


def label(name: str) -> str:
    """Returns a name fit for a figure: one line, not too long, no math, not hidden by a leading underscore."""
    name = one_line(name, 40).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def line_style(j: int, width: float = 1.6) -> dict:
    """Returns colour and line style of method `j`: the same in every figure."""
    return {"color": _COLOURS[j % len(_COLOURS)], "linestyle": _LINES[j % len(_LINES)], "linewidth": width}


# --- evaluation -------------------------------------------------------------------------------------------------------


def curves_figure(
    stem: str, grid: np.ndarray, shares: dict, faces: Faces, scores: dict, thresholds: Sequence[float]
) -> Figure:
    """Draws the CED curves (stem `ced`) or failure rates of all methods, one panel for each subset.

    Args: grid: NME fractions (T,). shares: (subset, method) -> per cent of its faces with at most that NME (T,).
    """
    is_ced, count = stem == "ced", len(faces.masks)
    columns = {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}.get(count, 4)
    rows, room = math.ceil(count / columns), 0.2 * (len(scores) + 1)
    size = (7.5, 5.0 + room) if count == 1 else (4.6 * columns, (4.0 + room) * rows)
    figure = Figure(size, layout="constrained")
    for k, (subset, mask) in enumerate(faces.masks.items()):
        axes = new_axes(figure, rows, columns, k + 1, title=f"{faces.spec.title} {subset}, {mask.sum()} faces")
        axes.set_xlabel(f"{'' if is_ced else 'threshold on the '}NME [% {faces.spec.unit}]")
        axes.set(xlim=(0, 100 * grid[-1]), ylabel="faces with at most this NME [%]" if is_ced else "failure rate [%]")
        for t in thresholds:
            axes.axvline(100 * t, color="0.5", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
            place = {"xy": (100 * t, 0.02), "va": "bottom"} if is_ced else {"xy": (100 * t, 0.93), "va": "top"}
            text = {"xytext": (-2, 0), "textcoords": "offset points", "rotation": 90, "ha": "right", "fontsize": 7}
            axes.annotate(f"threshold {100 * t:g} %", xycoords=("data", "axes fraction"), **place, **text, color="0.35")
        if not mask.any():
            axes.text(0.5, 0.5, "no faces", transform=axes.transAxes, ha="center", va="center", color="0.4")
            axes.set_yticks([])
            continue
        lowest = 100.0
        for j, name in enumerate(scores):
            share = shares[subset, name]
            failing = np.where(share < 100 - 1e-9, 100 - share, np.nan)  # a logarithmic axis has no 0
            lowest = np.nanmin([lowest, *failing])
            told = _legend(name, is_ced, scores[name][subset], thresholds)
            axes.plot(100 * grid, share if is_ced else failing, **line_style(j), label=told)
        if is_ced:
            axes.set_ylim(0, 101)
        else:  # the differences are in the last few per cent
            axes.set(yscale="log", ylim=(min(10.0, 0.7 * lowest), 120))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        rates = ", ".join(f"FR@{t:.2f}" for t in thresholds)
        told = f"NME (faces scored / all), AUC@{max(thresholds):.2f}" if is_ced else rates
        legend_below(axes, title=f"{told} [%]")
    return figure


def _legend(name: str, is_ced: bool, numbers: dict, thresholds: Sequence[float]) -> str:
    values = [number(numbers[f"fr_pct@{t:.2f}"]) for t in thresholds]
    if is_ced:
        values = [f"{number(numbers['nme_pct'])} ({numbers['n_scored']} / {numbers['n']})"]
        values.append(number(numbers[f"auc_pct@{max(thresholds):.2f}"], 1))
    return f"{label(name)}: {', '.join(values)}"


def landmark_errors_figure(measured: Sequence[Measured], means: Sequence[np.ndarray], faces: Faces) -> Figure:
    """Draws the mean error of every landmark: as curves, and as circles on the mean face of each method.

    A method with more than three times the error of the middle one does not set the scale, or it would flatten the
    others: it is cut off, and its highest error named.

    Args: means: for each method (L,), per cent of the inter-ocular distance.
    """
    spec = faces.spec
    truth = np.asarray(faces.landmarks[:4096], np.float64)  # the outline of more faces looks the same
    face = ((truth - truth.mean(axis=1, keepdims=True)) / metrics.normaliser(truth, spec)[:, None, None]).mean(axis=0)
    highest = [float(np.max(mean, where=np.isfinite(mean), initial=0.0)) for mean in means]
    positive = [value for value in highest if value] or [1.0]
    limit = 3 * sorted(positive)[(len(positive) - 1) // 2]
    top = max(value for value in positive if value <= limit)
    columns = min(4, len(measured))
    rows = math.ceil(len(measured) / columns)
    figure = Figure((max(9.0, 3.6 * columns), 3.8 + 3.6 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns)
    curves = new_axes(figure, grid[0, :], title=f"{spec.title}, {len(faces.names)} faces", ylim=(0, 1.05 * top))
    curves.grid(False, axis="x")
    curves.set(xlim=(-0.5, len(face) - 0.5), xlabel="landmark, counted from 0 (bands: contours)")
    curves.set_ylabel(f"mean error [% {spec.unit}]")
    for k, (indices, _) in enumerate(spec.contours):
        if k % 2 == 0 and indices == tuple(range(indices[0], indices[-1] + 1)):
            curves.axvspan(indices[0] - 0.5, indices[-1] + 0.5, color="0.93", zorder=0)
    for j, (one, mean) in enumerate(zip(measured, means)):
        beyond = f" (up to {highest[j]:.0f} %)" if highest[j] > top else ""
        curves.plot(mean, **line_style(j), marker="o", markersize=3, label=label(one.method.name) + beyond)
        axes = figure.add_subplot(grid[1 + j // columns, j % columns])
        draw_face(axes, face, spec, color="0.7", linewidth=0.8)
        sizes = np.minimum(np.nan_to_num(mean), top)
        discs = [Circle(*place) for place in zip(face, sizes / 100)]
        circles = axes.add_collection(PatchCollection(discs, cmap="viridis_r", alpha=0.75, array=sizes, clim=(0, top)))
        frame_face(axes, face, top / 100)
        over = f"{metrics.scored(one.nme).sum()} / {len(faces.names)} faces"
        axes.set_title(f"{label(one.method.name)}\nmean {number(float(mean.mean()))} % ({over})", fontsize=9)
    legend_below(curves, ncols=columns)
    extend = "max" if max(highest) > top else "neither"
    bar = figure.colorbar(circles, ax=figure.axes[1:], shrink=0.8, pad=0.01, extend=extend)
    bar.set_label(f"mean error [% {spec.unit}], radius to scale", fontsize=8)
    return figure


def contact_sheets(measured: Sequence[Measured], faces: Faces, image_reader: Callable) -> Iterator[tuple[str, Figure]]:
    """Yields (<method>_{best,median,worst}, the picture of these faces) for every method."""

    @functools.cache  # methods often share their worst faces
    def tile(i: int) -> tuple[np.ndarray, np.ndarray]:
        frame = crop_frame(landmark_box(np.asarray(faces.landmarks[i], np.float64)), "square", SHEET_SCALE)
        return crop_image(image_reader(i), frame, TILE), invert(crop_to_image(frame, TILE))

    for one, stem in zip(measured, file_names([one.method.name for one in measured])):
        order = np.argsort(one.nme, kind="stable")  # without a prediction (NaN): last
        middle = max(0, (len(order) - SHEET_FACES) // 2)
        for kind, chosen in {"best": order, "median": order[middle:], "worst": order[::-1]}.items():
            chosen = chosen[:SHEET_FACES].tolist()
            pictures = [_annotated(*tile(i), one.method, faces, i) for i in chosen]
            captions = [f"{number(100 * one.nme[i])} %   {_short(faces.names[i])}" for i in chosen]
            title = f"{label(one.method.name)}: {kind} {len(chosen)} of {len(order)} faces by NME ({faces.spec.unit})"
            yield f"{stem}_{kind}", _sheet(pictures, captions, title)


def _annotated(pixels: np.ndarray, image_to_tile: np.ndarray, method: Method, faces: Faces, i: int) -> np.ndarray:
    picture = pixels.copy()
    for landmarks, colour in ((faces.landmarks[i], GREEN), (method.landmarks[i], RED)):
        points = transform(image_to_tile, np.asarray(landmarks, np.float64))
        points = points[(np.abs(points) < 2 * TILE).all(axis=1)]  # NaN is not
        for x, y in np.round(points * 16).astype(int).tolist():  # 4 fractional bits
            cv2.circle(picture, (x, y), 21, colour, -1, cv2.LINE_AA, shift=4)
    predicted = method.pose if method.pose is not None else method.pose_pnp
    for angles, x in ((predicted, 24), (faces.pose, TILE - 25)):
        if angles is not None and np.isfinite(angles[i]).all():
            draw_axes(picture, angles[i], np.array([x, TILE - 25]), 19)
    return picture


def _sheet(pictures: list[np.ndarray], captions: list[str], title: str) -> Figure:
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    page = np.full((rows * (TILE + CAPTION) + HEAD, max(columns * (TILE + GAP) + GAP, 2 * TILE), 3), 255, np.uint8)
    figure = Figure((page.shape[1] / DPI, page.shape[0] / DPI))  # a pixel of a tile is one of the file
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for k, (picture, caption) in enumerate(zip(pictures, captions)):
        x, y = GAP + (k % columns) * (TILE + GAP), HEAD + (k // columns) * (TILE + CAPTION)
        page[y : y + TILE, x : x + TILE] = picture
        axes.text(x + 2, y + TILE + 3, caption, fontsize=4, va="top")
    axes.imshow(page, interpolation="none")
    axes.text(GAP, 4, title, fontsize=5, va="top")
    axes.text(GAP, 24, "ground truth", fontsize=4, va="top", color="#00a000")
    axes.text(GAP + 90, 24, "prediction", fontsize=4, va="top", color="#e02020")
    axes.text(GAP + 170, 24, "axes: predicted pose left, ground truth right", fontsize=4, va="top", color="0.3")
    return figure


def _short(name: str, length: int = 26) -> str:
    """Returns the end of a sample name, which tells faces apart."""
    name = utf8(name)
    return (name if len(name) <= length else "…" + name[1 - length :]).replace("$", r"\$")


# --- training and the shape model -------------------------------------------------------------------------------------


def training_curves(rows: Sequence[dict], output_png: Path) -> None:
    """Draws the numbers of a run over its epochs; rows: those of log.csv, at least one, None where one is not known."""
    log = {column: np.array([row[column] for row in rows], np.float64) for column in rows[0]}
    epoch = log["epoch"]
    figure = Figure((12.0, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[2, 1])
    marker = {"marker": "o", "markersize": 3} if len(epoch) < 40 else {}
    margin = max(0.5, 0.02 * np.ptp(epoch))
    span = epoch.min() - margin, epoch.max() + margin

    def panel(place, title: str, columns: dict[str, str], *, log_axis=False, clip=False, **style) -> None:
        axes, lowest = new_axes(figure, place, title=title, xlim=span, xlabel="epoch"), []
        for j, (column, told) in enumerate(columns.items()):
            values = log[column]
            known = np.isfinite(values) & ((values > 0) | (not log_axis))
            if known.any():  # validation may run every few epochs: join what is there
                axes.plot(epoch[known], values[known], **line_style(j, 1.3), **marker, **style, label=told)
                lowest.append(values[known].min())
        if not lowest:
            axes.text(0.5, 0.5, "not in this log", transform=axes.transAxes, ha="center", va="center", color="0.4")
        elif log_axis:
            axes.set_yscale("log")
        else:
            top = axes.get_ylim()[1]
            # not clipped, the first epochs would flatten the rest
            axes.set_ylim(0, (clip and min(top, 3.5 * max(0.0, *lowest))) or top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(columns) > 1 and lowest:
            legend_below(axes, ncols=len(columns), handlelength=1.9, columnspacing=0.9)

    losses = {"loss": "total", "loss_landmarks": "landmarks", "loss_asm": "ASM term", "loss_pose": "pose"}
    panel(grid[0, 0], "training loss", losses, log_axis=True)
    panel(grid[0, 1], "validation NME [%]", {"val_nme_pct": "NME"}, clip=True)
    panel(grid[0, 2], "validation pose error [deg]", {f"val_{angle}_deg": angle for angle in ANGLES}, clip=True)
    panel(grid[1, 0], "alpha, weight of the ASM term", {"alpha": "alpha"}, drawstyle="steps-mid")
    panel(grid[1, 1], "learning rate", {"lr": "learning rate"})
    panel(grid[1, 2], "speed [images / s]", {"images_per_s": "images / s"})
    save_figure(figure, output_png)


def shape_model_plots(output_dir: Path, model: ShapeModel, smoothing: dict, spec: DatasetSpec) -> None:
    """Draws a shape model of all eigen-shapes: <name of spec>_{modes,variance,smoothing}.png.

    Args: smoothing: pca_percent, marked on the variance curve, too -> (N,), see `metrics.smoothing_distance`.
    """
    drawn = {"modes": _modes_figure(model, spec), "variance": _variance_figure(model.eigenvalues, sorted(smoothing))}
    for kind, figure in (drawn | {"smoothing": _smoothing_figure(smoothing, spec)}).items():
        save_figure(figure, output_dir / f"{spec.name}_{kind}.png")


def _modes_figure(model: ShapeModel, spec: DatasetSpec) -> Figure:
    mean, shares = model.mean_shape.reshape(-1, 2), 100 * model.eigenvalues / model.eigenvalues.sum()
    modes, steps = min(MAX_MODES, model.num_components), np.arange(-3, 4)
    figure = Figure((1.5 * len(steps) + 0.5, 1.75 * modes + 0.5), layout="constrained")
    moves = (model.eigenvectors * np.sqrt(model.eigenvalues)).T[:modes, None] * steps[:, None]  # (modes, steps, 2L)
    shapes = (model.mean_shape + moves).reshape(modes, len(steps), -1, 2)
    for k in range(modes):
        for j, step in enumerate(steps):
            axes = figure.add_subplot(modes, len(steps), k * len(steps) + j + 1)
            if step:
                draw_face(axes, mean, spec, color="0.82", linewidth=0.7)
            colour = "black" if step == 0 else _COLOURS[0] if step < 0 else _COLOURS[1]
            draw_face(axes, shapes[k, j], spec, color=colour, linewidth=1.0)
            frame_face(axes, shapes, 0.02)  # one scale for all drawings
            if k == 0:
                axes.set_title("mean" if step == 0 else rf"{step:+d} $\sqrt{{\lambda}}$".replace("-", "−"), fontsize=9)
            if j == 0:
                axes.set_ylabel(f"mode {k + 1}\n{shares[k]:.1f} %", fontsize=9)
    return figure


def _variance_figure(eigenvalues: np.ndarray, marks: Sequence[float]) -> Figure:
    total = np.cumsum(eigenvalues / eigenvalues.sum()) * 100
    figure = Figure((7.0, 4.6), layout="constrained")
    axes = new_axes(figure, xscale="log", xlabel="number of components K", ylabel="variance explained [%]")
    axes.plot(np.arange(1, len(total) + 1), total, color=_COLOURS[0], marker="o", markersize=3, linewidth=1.5)
    for j, percent in enumerate(marks):
        needed = min(int(np.searchsorted(total, percent - 1e-7)) + 1, len(total))
        told = f"{percent:g} %: {needed} component{'' if needed == 1 else 's'}"
        axes.plot(needed, total[needed - 1], "D", color=_COLOURS[(j + 1) % len(_COLOURS)], markersize=7, label=told)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlim=(0.9, max(len(total), 2) * 1.1), ylim=(max(0.0, min(total[0], 100.0) - 8), 102))
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def _smoothing_figure(smoothing: dict[float, np.ndarray], spec: DatasetSpec) -> Figure:
    figure = Figure((7.0, 4.6), layout="constrained")
    axes = new_axes(figure, ylabel="shapes [% per bin]")
    axes.set_xlabel(f"distance that ASM moves a shape [% {spec.unit}, mean over landmarks]")
    known = {percent: values[np.isfinite(values)] for percent, values in sorted(smoothing.items())}
    moved = {percent: 100 * values for percent, values in known.items() if len(values)}
    everything = np.concatenate([*moved.values(), np.empty(0)])
    # the few odd shapes far out would squeeze the rest; they are counted in the last bin
    last = max(float(np.quantile(everything, 0.998)) * 1.05, 1e-3) if len(everything) else 1.0
    bins = np.linspace(0, last, 61)
    for j, (percent, values) in enumerate(moved.items()):
        mean = values.mean()
        told = f"{percent:g} %: mean {mean:.2f}, median {np.median(values):.2f}, max {values.max():.2f}"
        shares, values = np.full(len(values), 100 / len(values)), np.minimum(values, last * (1 - 1e-9))
        axes.hist(values, bins, weights=shares, histtype="step", label=told, **line_style(j))
        axes.axvline(mean, color=line_style(j)["color"], linewidth=0.8, linestyle=":")
    axes.set_xlim(0, last)
    if len(everything):
        axes.legend(title="pca_percent", fontsize=9)
    return figure
