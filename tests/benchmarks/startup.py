"""Seconds until `--help` is printed: the scripts and the package import only the standard library before it."""

import subprocess
import sys

import harness
from harness import ROOT, Row

TURNS = 7


def rows() -> list[Row]:
    """Takes the median of several starts of each script."""
    commands = {f"`{name} --help`": [name, "--help"] for name in ("pca_builder.py", "train.py", "evaluate.py")}
    commands["`import asmnet_tf`"] = ["-c", "import asmnet_tf"]
    commands["the interpreter alone"] = ["-c", ""]

    def start(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    seconds = harness.interleave({name: lambda c=c: start(c) for name, c in commands.items()}, TURNS)
    detail = ", ".join(f"{name} {sorted(values)[TURNS // 2]:.3f} s" for name, values in seconds.items())
    return [Row("start-up", "", None, "< 0.3 s", detail)]


if __name__ == "__main__":
    harness.main(rows)
