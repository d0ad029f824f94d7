"""`predict` on a folder of photographs: two processes against one, the memory of many images, a kill and --resume.

    python tests/benchmarks/many_images.py [IMAGES]         # default 1000; nothing is drawn
    python tests/benchmarks/many_images.py 10000 --memory   # one run of two processes, 128 px: memory on the way

The images are 200 rendered faces, 320 px, under many names. The ratio is images/s of the whole command, start and end
included; the two ways take turns, and each also tells its processor time, which another load does not change. Memory
is that of all processes of the command together.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import harness
import numpy as np
from harness import ROOT, Row
from peak_memory import anonymous_mb

from asmnet_tf.synthetic.renderer import render_face

IMAGES, RENDERED, TURNS, FEW = 1000, 200, 2, 1000


def make_folder(folder: Path, faces: Path, count: int) -> Path:
    """Makes a folder of so many JPEGs, hard links to those in `faces`."""
    folder.mkdir()
    for i in range(count):
        os.link(faces / f"{i % RENDERED}.jpg", folder / f"{i:06d}.jpg")
    return folder


def predict(images: Path, output: Path, *flags: object, kill_at: int = 0) -> dict[str, float]:
    """Runs the command. Returns seconds, seconds of processors, peak MB, and that of the first FEW images.

    Args: kill_at: kill -9 the process, not its workers, once so many images are done.
    """
    command = [sys.executable, "-m", "asmnet_tf.predict", images, "--no-draw", "--output", output, *flags]
    before, start, peak, early, lines = sum(os.times()[2:4]), time.perf_counter(), 0.0, 0.0, 0
    journal = output / "predictions.partial.jsonl"
    with subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            try:
                pids = [process.pid, *map(int, children.read_text().split())]
            except OSError:  # it has just ended
                continue
            peak = max(peak, sum(map(anonymous_mb, pids)))
            if (kill_at or lines < FEW) and journal.is_file():
                lines, early = journal.read_bytes().count(b"\n"), peak
            if kill_at and lines >= kill_at:
                process.kill()
            time.sleep(0.05)
    if process.returncode not in (0, -signal.SIGKILL if kill_at else 0):
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    cpu = sum(os.times()[2:4]) - before
    return {"seconds": time.perf_counter() - start, "cpu": cpu, "peak_mb": peak, "early_mb": early}


def memory_rows(count: int) -> list[Row]:
    """One run over so many images of 128 px."""
    with tempfile.TemporaryDirectory(prefix="many-") as name:
        folder = Path(name)
        for i in range(RENDERED):
            cv2.imwrite(str(folder / f"{i}.jpg"), render_face(0, i, size=128).image[..., ::-1])
        many = make_folder(folder / str(count), folder, count)
        run = predict(many, folder / "out", "--workers", 2, "--format", "json", "csv", "jsonl")
        lines = len((folder / "out/predictions.jsonl").read_text().splitlines())
    if lines != count:
        raise SystemExit(f"{lines} results of {count} images")
    detail = f"{run['peak_mb']:.0f} against {run['early_mb']:.0f} MB; {count / run['seconds']:.1f} images/s"
    what = f"{count:,} images of 128 px, memory of 2 processes"
    return [Row(what, f"its first {FEW:,}", run["early_mb"] / run["peak_mb"], "about 1", detail)]


def rows() -> list[Row]:
    """Raises: SystemExit if an image is there twice or missing after a kill, or is another than of one process."""
    count = int(next((argument for argument in sys.argv[1:] if argument.isdecimal()), IMAGES))
    if "--memory" in sys.argv:
        return memory_rows(count)
    with tempfile.TemporaryDirectory(prefix="many-") as name:
        folder = Path(name)
        for i in range(RENDERED):
            cv2.imwrite(str(folder / f"{i}.jpg"), render_face(0, i, size=320).image[..., ::-1])
        few, many = (make_folder(folder / str(n), folder, n) for n in (count // 10, count))
        runs: dict[int, list[dict]] = {1: [], 2: []}
        for _ in range(TURNS):
            for workers, done in runs.items():
                done.append(predict(many, folder / f"out{workers}", "--workers", workers, "--format", "json", "jsonl"))
        small = {workers: predict(few, folder / "few", "--workers", workers) for workers in runs}
        killed = predict(many, folder / "killed", "--workers", 2, kill_at=count // 2)
        resumed = predict(many, folder / "killed", "--workers", 2, "--resume")
        lines = [(folder / out / "predictions.jsonl").read_text().splitlines() for out in ("out1", "out2", "killed")]
        if not lines[0] == lines[1] == lines[2] or len({json.loads(line)["image"] for line in lines[2]}) != count:
            raise SystemExit("after kill -9 and --resume, or of two processes: not the results of one")
    ratio = float(np.median([one["seconds"] / two["seconds"] for one, two in zip(*runs.values())]))
    speed = [f"{count / np.median([run['seconds'] for run in done]):.1f}" for done in runs.values()]
    cpu = [f"{1e3 * np.median([run['cpu'] for run in done]) / count:.1f}" for done in runs.values()]
    detail = f"{speed[1]} against {speed[0]} images/s; {cpu[1]} against {cpu[0]} ms of a processor an image"
    result = [Row(f"{count:,} images, 2 processes", "1 process", ratio, "1.7", detail)]
    for workers, done in runs.items():
        peak, before = max(run["peak_mb"] for run in done), small[workers]["peak_mb"]
        what = f"{count:,} images, memory of {workers} process{'es' * (workers > 1)}"
        detail = f"{peak:.0f} against {before:.0f} MB"
        result.append(Row(what, f"{count // 10:,} images", before / peak, "about 1", detail))
    detail = f"killed after {killed['seconds']:.0f} s, the rest took {resumed['seconds']:.0f} s; every image once"
    return [*result, Row(f"{count:,} images, kill -9 and --resume", "", None, "every image once", detail)]


if __name__ == "__main__":
    harness.main(rows)
