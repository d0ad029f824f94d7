"""Runs all benchmarks, one after the other, and prints one table of ratios (`make bench`; about half an hour).

    python tests/benchmarks/run_all.py [NAME ...]

Needs a quiet machine. Each benchmark is a process of its own; none asserts a time.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from harness import ROOT, Row, machine, table

BENCHMARKS = (
    *("training_step", "training_epoch", "release_loop", "asm_operator", "evaluation_speed", "single_face"),
    *("startup", "pca_million", "workers", "growth", "many_images"),
)


def main(names: list[str]) -> int:
    """Returns the exit code: 1 if a benchmark did not run."""
    print(f"{machine()}\n\n{table([])}", flush=True)
    failed = []
    for name in names or BENCHMARKS:
        start = time.perf_counter()
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        if result.returncode:
            failed.append(name)
            print(f"{name}: failed\n{result.stderr[-2000:]}", file=sys.stderr)
            continue
        rows = [Row(**row) for row in json.loads(result.stdout.strip().splitlines()[-1])]
        print("\n".join(table(rows).splitlines()[2:]), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
