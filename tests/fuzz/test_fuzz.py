"""Every reader on damaged files: a valid result or a one-line error, and never anything else (see worker.py).

500 files in the quick part, more than 20,000 in the slow one (`-m slow`). A file that fails is kept; what it showed is
mended and the file goes to `cases/`, where it is read for ever.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from readers import READERS

WORKER = Path(__file__).with_name("worker.py")
# read by libraries that trust a file: damaged, it may end the process, which is named and no failure
NATIVE = ("cofw_mat", "aflw2000_mat", "weights_h5", "release_h5", "tflite")
CASES = sorted((Path(__file__).parent / "cases").glob("*/*"))


def fuzz(sandbox: Path, kept: Path, counts: dict[str, int], seed: int) -> tuple[Counter, list[str]]:
    """Reads that many damaged files of each kind. Returns how many were read, and what went wrong."""
    environment = dict(os.environ)
    for name in ("HOME", "TMPDIR", "ASMNET_CACHE"):
        folder = sandbox / name
        folder.mkdir(parents=True)
        environment[name] = str(folder)
    left = {kind: (0, count) for kind, count in counts.items()}
    read, problems = Counter(), []

    def note(kind: str, i: int, problem: str) -> None:
        file = sandbox / kind / READERS[kind].name
        copy = kept / f"{kind}-{i}{file.suffix}"
        kept.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes() if file.exists() else b"")
        problems.append(f"{copy}: {problem}")

    while left:
        jobs = [f"{kind}:{first}:{count}" for kind, (first, count) in left.items()]
        command = [sys.executable, str(WORKER), str(sandbox), str(seed), *jobs]
        with (
            open(sandbox / "stderr", "w+", encoding="utf-8") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
        ):
            current = None
            for line in process.stdout:
                said = json.loads(line) if line.startswith("{") else {}
                if "start" in said:
                    current = said["start"]
                    kind, i = current
                    first, count = left[kind]
                    left[kind] = (i + 1, count - (i + 1 - first))
                    read[kind] += 1
                elif "problem" in said:
                    note(*said["problem"])
                elif "done" in said:
                    del left[said["done"]]
            process.wait()
            stderr.seek(0)
            words = stderr.read()[-2000:]
        if process.returncode:
            assert current is not None, words
            if current[0] in NATIVE:
                print(f"{current[0]}-{current[1]}: its library ended the process with {process.returncode}", flush=True)
            else:
                note(*current, f"ended the process with {process.returncode}: {words[-500:]}")
            left = {kind: (first, count) for kind, (first, count) in left.items() if count}
    return read, problems


def check(tmp_path: Path, counts: dict[str, int], seed: int) -> None:
    read, problems = fuzz(tmp_path / "sandbox", tmp_path / "kept", counts, seed)
    print(f"{sum(read.values())} damaged files: {dict(read)}")
    assert read == Counter(counts)
    assert not problems, "\n\n".join(problems)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sandbox"]


def test_500_damaged_files(tmp_path):
    counts = {kind: reader.quick for kind, reader in READERS.items()}
    assert sum(counts.values()) >= 500
    check(tmp_path, counts, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(tmp_path, kind):
    check(tmp_path, {kind: READERS[kind].slow}, seed=2)


def test_the_slow_part_reads_20_000_files():
    assert sum(reader.slow for reader in READERS.values()) >= 20_000
