"""Eigen-shapes of 1,000,000 x 136 float32 in a file: the whole script; in memory against from disk (0.6 GB on disk).

Each run is a process of its own; importing is not counted. In memory scikit-learn's PCA fits, from disk IncrementalPCA
with all components, which is what a file beyond memory gets.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import Row
from peak_memory import watched_worker

ROWS, FEWER, WIDTH = 1_000_000, 100_000, 136


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
    """Runs one way. Returns its seconds and the eigenvalues."""
    import pca_builder
    from asmnet_tf.shape import training_shapes

    training_shapes.MEMORY_SHARE = 0.0 if way == "disk" else 1.0
    with tempfile.TemporaryDirectory() as output:
        flags = ["--dataset", "300w", "--shapes", str(path), "--pca-percent", "100", "--output", output]
        if way != "script":
            flags += ["--limit", str(FEWER)]
        args = pca_builder.parse_args(flags)
        start = time.perf_counter()
        pca_builder.main(args)
        seconds = time.perf_counter() - start
        with np.load(Path(output) / "300w_pca100.npz", allow_pickle=False) as file:
            return {"seconds": seconds, "eigenvalues": file["eigenvalues"].tolist()}


def rows() -> list[Row]:
    """One row for the two ways, one for the million."""
    with tempfile.TemporaryDirectory(prefix="pca-") as name:
        path = Path(name) / "shapes.npy"
        make_shapes(path)
        memory, disk, script = (watched_worker("pca_million.py", way, path) for way in ("memory", "disk", "script"))
    values, others = np.array(memory["eigenvalues"]), np.array(disk["eigenvalues"])
    detail = (
        f"{memory['seconds']:.1f} against {disk['seconds']:.1f} s, peak {memory['peak_mb']:.0f} and "
        f"{disk['peak_mb']:.0f} MB; eigenvalues differ by {np.abs(others - values).max():.1e}"
    )
    what = f"`pca_builder.py --shapes`, {{:,}} x {WIDTH} float32, with ASM distances and plots"
    ratio = disk["seconds"] / memory["seconds"]
    return [
        Row(what.format(FEWER), "the same from disk, as beyond memory", ratio, "", detail),
        Row(what.format(ROWS), "", None, "", f"{script['seconds']:.1f} s; peak {script['peak_mb']:.0f} MB"),
    ]


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(work(sys.argv[-2], Path(sys.argv[-1]))))
    else:
        harness.main(rows)
