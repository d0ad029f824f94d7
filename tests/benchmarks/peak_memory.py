"""Runs a worker process and watches its memory: anonymous pages alone, since the system takes back those of files."""

import json
import subprocess
import sys
import time
from pathlib import Path

from harness import ROOT


def anonymous_mb(pid: int) -> float:
    """Returns the anonymous memory of a process, MB; 0 where it has ended or the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6
    except (OSError, StopIteration):
        return 0.0


def watched_worker(script: str, *arguments: object) -> dict:
    """As `harness.worker`; the result also has `peak_mb`, sampled every 10 ms over the life of the process."""
    command = [sys.executable, str(Path(__file__).with_name(script)), "--worker", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, anonymous_mb(process.pid))
            time.sleep(0.01)
        out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{err[-2000:]}")
    return {**json.loads(out.strip().splitlines()[-1]), "peak_mb": peak}
