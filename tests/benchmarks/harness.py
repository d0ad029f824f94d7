"""What the benchmark scripts share: interleaved timing, worker processes, and one table of ratios.

A benchmark module has `rows() -> list[Row]` and ends with `main(rows)`. Two things are always timed in turns, so that
what else the machine does hits both; the ratio is the median over the turns of (slower way / our way).
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ASMNET_DATA", ROOT / "../shared/data"))
sys.path.insert(0, str(ROOT))

# what the scripts set for themselves (asmnet_tf.cli.run) ...
OURS = {"TF_CPU_ALLOCATOR_USE_BFC": "true", "TF_ENABLE_ONEDNN_OPTS": "1"}
# ... and what a TensorFlow program gets that sets nothing
DEFAULT = dict.fromkeys(OURS)


@dataclass(frozen=True)
class Row:
    """One comparison: `ratio` is how many times faster `what` is than `against`; None where there is no ratio."""

    what: str
    against: str
    ratio: float | None
    target: str
    detail: str


def use(environment: dict[str, str | None]) -> None:
    """Sets TensorFlow's environment; call it before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def interleave(cases: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, np.ndarray]:
    """Times all cases in turns. Returns seconds (repeats,) for each."""
    for _ in range(warm_up):
        for call in cases.values():
            call()
    seconds = {name: np.empty(repeats) for name in cases}
    for turn in range(repeats):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            seconds[name][turn] = time.perf_counter() - start
    return seconds


def worker(script: str, *arguments: object) -> dict:
    """Runs a benchmark script as a worker process; returns the JSON object of its last line."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--worker", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


class Worker:
    """A benchmark script that stays alive in a process of its own and measures once for each `ask`.

    So ways that need other environments of TensorFlow still take short turns. The script calls `serve` in it.
    """

    def __init__(self, script: str, *arguments: object):
        self.command = [sys.executable, str(Path(__file__).with_name(script)), "--worker", *map(str, arguments)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
        self.errors.close()

    def ask(self) -> dict:
        """Returns what one measurement found. Raises: SystemExit if the worker ended."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: said below
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{' '.join(self.command)} ended:\n{self.errors.read()[-2000:]}")
        return json.loads(line)


def serve(measure: Callable[[], dict]) -> None:
    """Answers every `Worker.ask` with the JSON of `measure()` until the asking process is done."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def machine() -> str:
    """Returns processor, cores, versions and devices in one line."""
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    names = ("tensorflow", "keras", "numpy", "opencv-python", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}, {cores} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| what | against | ratio | must reach | measured |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}x"
        lines.append(f"| {row.what} | {row.against} | {ratio} | {row.target} | {row.detail} |")
    return "\n".join(lines)


def main(rows: Callable[[], list[Row]]) -> None:
    """Runs one benchmark from the command line: a table, or with --json one line of JSON for `run_all.py`."""
    result = rows()
    print(json.dumps([asdict(row) for row in result]) if "--json" in sys.argv else f"{machine()}\n\n{table(result)}")
