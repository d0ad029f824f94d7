"""--mixed-precision and --xla end where plain float32 ends, as exactly as runs of several seeds agree.

A small network from random weights, and ASMNet from shipped ones: random ones would learn nothing in so few steps.
On a CPU XLA is tried with the small network only: compiling and running ASMNet's step takes more than ten minutes.
"""

import csv
from pathlib import Path

import pytest
from forked import Forked

SEEDS = 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "engines"),
    [(True, ("--mixed-precision", "--xla")), (False, ("--mixed-precision",))],
    ids=["small", "asmnet"],
)
def test_engines_stay_within_the_spread_of_seeds(faces_300w, shape_models, tmp_path, small, engines):
    """NME on held-out synthetic faces, mean of the last three epochs and of two seeds, with and without the engine."""
    forked = Forked()
    data = ("--dataset", "300w", "--data-dir", faces_300w, "--shape-model", shape_models / "300w_pca90.npz")
    flags = (*data, "--input-size", 32, "--batch-size", 8, "--epochs", 10, "--val-fraction", 0.25, "--output", tmp_path)
    flags = (*flags, "--validate-every", 1, "--threads", 2)
    flags = flags if small else (*flags, "--input-size", 64, "--weights", "asmnet_300w_112_mse", "--lr", 3e-4)

    def nme(*more) -> float:
        name = "_".join(str(word).strip("-") for word in more)
        assert forked.train([*flags, "--name", name, *more], tmp_path / f"{name}.txt", small) == 0
        with open(Path(tmp_path) / name / "log.csv", newline="") as file:
            return sum(float(row["val_nme_pct"]) for row in list(csv.DictReader(file))[-3:]) / 3

    plain = [nme("--seed", seed) for seed in range(SEEDS)]
    spread = max(plain) - min(plain)
    print(f"float32, seeds 0..{SEEDS - 1}: {', '.join(f'{value:.2f}' for value in plain)} %")
    for engine in engines:
        values = [nme("--seed", seed, engine) for seed in range(2)]
        print(f"{engine}, seeds 0 and 1: {values[0]:.2f}, {values[1]:.2f} %; spread {spread:.2f}", flush=True)
        assert abs(sum(values) - sum(plain[:2])) / 2 <= spread
