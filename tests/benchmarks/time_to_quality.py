"""Minutes of training until the error on held-out faces reaches a mark: speed and learning in one number.

    python tests/benchmarks/time_to_quality.py MOBILENET.h5 --data-dir data/300w

Runs `train.py --dataset 300w --weights MOBILENET.h5 --input-size 112 --epochs N` and reads its log.csv. Counted are the
epochs' own seconds; start-up, decoding and validations are not. The first round's runs of 60 epochs had 4.2 % after
48: the rate falls to 0 over N epochs, so most is gained in the last ones, and N belongs to the number.
"""

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ROOT, machine


def minutes_to(log: Path, nme_pct: float) -> tuple[int, float] | None:
    """Returns the first epoch with such an error and the minutes of all up to it; None where there is none."""
    with open(log, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = itertools.accumulate(float(row["seconds"]) for row in rows)
    reached = (bool(row["val_nme_pct"]) and float(row["val_nme_pct"]) <= nme_pct for row in rows)
    return next(((int(r["epoch"]), s / 60) for r, s, ok in zip(rows, seconds, reached) if ok), None)


def main() -> None:
    """Trains, then prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="MobileNetV2 weights of ImageNet")
    parser.add_argument("--data-dir", type=Path, default=Path("data/300w"))
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--nme", type=float, default=4.2, help="%% of the inter-ocular distance (4.2)")
    parser.add_argument("--log", type=Path, help="of a run that is there; nothing is trained")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset", "300w", "--data-dir", args.data_dir, "--weights", args.weights, "--input-size", 112]
        flags += ["--epochs", args.epochs, "--validate-every", 1, "--output", folder, "--name", "run"]
        if not args.log:
            subprocess.run([sys.executable, ROOT / "train.py", *map(str, flags)], check=True)
        reached = minutes_to(args.log or Path(folder) / "run/log.csv", args.nme)
    told = f"{reached[1]:.1f} minutes, {reached[0]} epochs" if reached else "not reached"
    print(f"{machine()}\nheld-out NME of {args.nme:g} %: {told}")


if __name__ == "__main__":
    main()
