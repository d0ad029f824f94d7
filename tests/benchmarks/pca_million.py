"""Eigen-shapes of 1,000,000 x 136 float32 against scikit-learn's PCA of the whole array (1 minute, 0.6 GB on disk).

Each run is a process of its own and starts at the file; importing is not counted. scikit-learn has to load the array
first: its time is given with and without that.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import Row
from peak_memory import watched_worker

ROWS, WIDTH, PERCENT, TURNS = 1_000_000, 136, 90.0, 5
SOLVERS = {"auto": TURNS, "covariance_eigh": TURNS, "full": 1}  # and how often each is run


def make_shapes(path: Path) -> None:
    """Writes the shapes: the standard deviations of the components fall from 0.05 to 0.0005 crop sides."""
    rng = np.random.default_rng(0)
    mixing = (rng.normal(size=(WIDTH, WIDTH)) * np.geomspace(0.05, 5e-4, WIDTH)[:, None] / 12).astype(np.float32)
    mean = np.tile(np.linspace(-0.4, 0.4, WIDTH // 2, dtype=np.float32), 2)
    shapes = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, WIDTH))
    for first in range(0, ROWS, 10_000):
        shapes[first : first + 10_000] = rng.standard_normal((10_000, WIDTH), np.float32) @ mixing + mean
    shapes.flush()


def work(way: str, path: Path) -> dict:
    """Runs one way. Returns its seconds, those of loading, the components kept and the largest eigenvalue."""
    if way == "ours":
        from asmnet_tf.config import DATASETS
        from asmnet_tf.shape_model import fit
        from asmnet_tf.training_shapes import FileShapes

        start = loaded = time.perf_counter()
        model = fit(FileShapes(path, DATASETS["300w"]).statistics(), [PERCENT], "300w", "square", 1.2)[0]
        kept, largest = model.num_components, model.eigenvalues[0]
    elif way == "script":
        import pca_builder

        start = loaded = time.perf_counter()
        with tempfile.TemporaryDirectory() as output:
            flags = ["--dataset", "300w", "--shapes", str(path), "--output", output]
            pca_builder.main(pca_builder.parse_args(flags))
        kept, largest = 0, 0.0
    else:
        from sklearn.decomposition import PCA

        start = time.perf_counter()
        shapes = np.load(path, allow_pickle=False)
        loaded = time.perf_counter()
        pca = PCA(n_components=PERCENT / 100, svd_solver=way).fit(shapes)
        kept, largest = pca.n_components_, pca.explained_variance_[0]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "loading": loaded - start, "kept": int(kept), "largest": float(largest)}


def rows() -> list[Row]:
    """One row for each solver of scikit-learn, one for memory; ratios are medians over turns."""
    with tempfile.TemporaryDirectory(prefix="pca-") as name:
        path = Path(name) / "shapes.npy"
        make_shapes(path)
        found: dict[str, list[dict]] = {way: [] for way in ("ours", "script", *SOLVERS)}
        for turn in range(TURNS):
            for way, times in {"ours": TURNS, "script": 1, **SOLVERS}.items():
                if turn < times:
                    found[way].append(watched_worker("pca_million.py", way, path))
    ours = found["ours"]
    what, result = f"`pca_builder --shapes`, {ROWS:,} x {WIDTH} float32: file to eigen-shapes", []
    for solver in SOLVERS:
        pairs = list(zip(ours, found[solver]))
        ratio = statistics.median(theirs["seconds"] / mine["seconds"] for mine, theirs in pairs)
        fit_alone = statistics.median(
            (theirs["seconds"] - theirs["loading"]) / mine["seconds"] for mine, theirs in pairs
        )
        detail = (
            f"{_median(ours, 'seconds'):.2f} against {_median(found[solver], 'seconds'):.2f} s (its fit alone: "
            f"{fit_alone:.2f}x); components {ours[0]['kept']} and {found[solver][0]['kept']}, largest eigenvalue "
            f"{ours[0]['largest']:.6g} and {found[solver][0]['largest']:.6g}; peak {_median(ours, 'peak_mb'):.0f} "
            f"and {_median(found[solver], 'peak_mb'):.0f} MB"
        )
        result.append(Row(what, f"scikit-learn PCA, svd_solver={solver!r}, whole array", ratio, "1", detail))
    whole = found["script"][0]
    detail = (
        f"{whole['seconds']:.1f} s with the ASM distance of every shape and the plots; peak {whole['peak_mb']:.0f} MB"
    )
    return [*result, Row("`pca_builder.py --shapes`, the whole script", "", None, "< 300 MB", detail)]


def _median(runs: list[dict], key: str) -> float:
    return statistics.median(run[key] for run in runs)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(work(sys.argv[-2], Path(sys.argv[-1]))))
    else:
        harness.main(rows)
