"""The paper's experiment from its committed runs: one row each, paired differences, and the figure of the model card.

    python tests/benchmarks/paper_experiment.py --output asmnet_tf/assets/paper_experiment.png

Reads log.csv and per_image.csv of asmnet_tf/pretrained/runs/paper_NETWORK_SETTING_seedN. The figure: held-out NME over
epochs, mean over seeds with a band from the lowest to the highest; the CED on the full test set of all seeds together;
NME on it of ASMNet by the variance that the shape model keeps. A difference is A - B of runs of the same seed, which
see the same batches in the same order and jump together; its interval resamples faces and seeds. Of two or three seeds
it is too narrow rather than too wide: the differences by seed stand beside it, also those of the mean of the last ten
validations, which jump less than one.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2]))
from asmnet_tf.config import ALPHAS, ANGLES
from asmnet_tf.data.sidecars import FOLDER
from asmnet_tf.evaluation import figures, metrics
from asmnet_tf.network.loss import alpha_at

RUN = re.compile(r"paper_(?P<network>asmnet|mnv2)_(?P<setting>[a-z0-9]+)_seed(?P<seed>\d+)")
SETTINGS = ("mse", "asm80", "asm90", "asm97", "asm100")
LABELS = {"mse": "no ASM term", "asm100": "ASM(G) = G, the control"}
DRAWS = 2000


class Run:
    """What a run left: `validations` (epoch, NME in %), `errors` (N,) in %, `pose` (N, 3) in degrees, `subsets`."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        log, faces = (list(csv.DictReader((folder / name).open())) for name in ("log.csv", "per_image.csv"))
        self.epochs = len(log)
        validated = [(row["epoch"], row["val_nme_pct"]) for row in log if row["val_nme_pct"]]
        self.validations = np.array(validated, float)
        self.faces, self.errors = [row["name"] for row in faces], np.array([row["nme_pct"] for row in faces], float)
        angles = [[[row[f"{angle}_{kind}_deg"] for angle in ANGLES] for row in faces] for kind in ("pred", "gt")]
        self.pose = metrics.pose_errors(*(np.array(values, float) for values in angles))
        self.subsets = [set(row["subsets"].split(";")) for row in faces]

    def mean(self, subset: str) -> float:
        """Returns the mean NME in % on a subset."""
        return float(self.errors[[subset in names for names in self.subsets]].mean())

    def row(self) -> str:
        """Returns the run's row of the table in the model card."""
        last = self.validations[-10:, 1]
        nme = " | ".join(f"{self.mean(subset):.2f}" for subset in ("common", "challenging", "full", "lfpw"))
        pose = " / ".join(f"{value:.2f}" for value in np.nanmean(self.pose, axis=0))
        held_out = f"{last[-1]:.2f}, {last.mean():.2f} ({min(last):.2f} to {max(last):.2f})"
        return f"| `{self.name}` | {nme} | {pose} | {held_out} |"


def difference(a: list[Run], b: list[Run]) -> str:
    """Returns A - B on the seeds of both: NME on full with its interval, by seed, held out by seed; pose error."""
    theirs = {run.name[-1]: run for run in b}
    pairs = [(run, theirs[run.name[-1]]) for run in a if run.name[-1] in theirs]
    rng, told = np.random.default_rng(0), []
    for values in (lambda run: run.errors, lambda run: np.nanmean(run.pose, axis=1)):
        away = np.stack([values(x) - values(y) for x, y in pairs])  # (seeds, faces)
        seeds, faces = (rng.integers(0, count, (DRAWS, count)) for count in away.shape)
        draws = [away[rows][:, columns].mean() for rows, columns in zip(seeds, faces)]
        low, high = np.percentile(draws, (2.5, 97.5))
        told.append(f"{away.mean():+.2f} ({low:+.2f} to {high:+.2f})")
    for value in (lambda run: run.errors.mean(), lambda run: run.validations[-10:, 1].mean()):
        told.append(", ".join(f"{value(x) - value(y):+.2f}" for x, y in pairs))
    return " | ".join([told[0], *told[2:], told[1]])


def draw(groups: dict[tuple[str, str], list[Run]], output: Path) -> None:
    """Draws the figure of all settings."""
    figure = Figure((15, 4.6), layout="constrained")
    left, right, last = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    thresholds = np.linspace(0, 15, 301)
    for j, ((network, setting), runs) in enumerate(groups.items()):
        seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        style = figures.line_style(j) | {
            "label": f"{network}, {LABELS.get(setting, f'ASM of {setting[3:]} %')} ({seeds})"
        }
        curves = np.stack([run.validations[:, 1] for run in runs])
        epochs = runs[0].validations[:, 0]
        left.plot(epochs, curves.mean(axis=0), **style)
        left.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=style["color"], linewidth=0)
        errors = np.concatenate([run.errors for run in runs])
        right.plot(thresholds, 100 * metrics.ced(errors, thresholds), **style)
        if network == "asmnet":
            means, kept = [run.mean("full") for run in runs], setting.removeprefix("asm")
            dots, place = {"color": style["color"]}, "none" if setting == "mse" else f"{kept} %"
            last.plot([place] * len(means), means, "o", **dots)
            last.plot(place, np.mean(means), "_", markersize=24, **dots)
    length = next(iter(groups.values()))[0].epochs
    for epoch in range(1, length):
        if alpha_at(epoch, length) != alpha_at(epoch - 1, length):
            left.axvline(epoch, color="#888888", linewidth=0.8, linestyle=":")
            told = f" alpha {alpha_at(epoch, length):g}"
            left.text(epoch, 0.98, told, transform=left.get_xaxis_transform(), va="top", color="#666666", fontsize=8)
    left.set(
        xlabel="epoch", ylabel="NME on held-out faces, %", ylim=(5, 14), title=f"Training, alpha {ALPHAS[0]:g} at first"
    )
    right.set(xlabel="NME, %", ylabel="faces, %", xlim=(2, 15), ylim=(0, 100), title="CED, 300W full")
    last.set(xlabel="variance that the shape model keeps", ylabel="NME on 300W full, %")
    last.set(title="Seeds (dots) and their mean")
    last.margins(x=0.15)
    for axes in (left, right, last):
        axes.grid(alpha=0.3)
    right.legend(loc="lower right", fontsize=8)
    figures.save_figure(figure, output)


def main() -> None:
    """Prints both tables and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the figure, .png")
    args = parser.parse_args()

    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for folder in sorted((FOLDER / "runs").iterdir()):
        if found := RUN.fullmatch(folder.name):
            groups[found["network"], found["setting"]].append(Run(folder))
    groups = {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], SETTINGS.index(key[1])))}
    print("| run | common 554 | challenging 135 | full 689 | LFPW 224 | `O_P` on full | held out: last, last ten |")
    print("|---|---|---|---|---|---|---|")
    for runs in groups.values():
        print(*(run.row() for run in runs), sep="\n")
    print("\n| A - B | NME on full, 95 % | by seed | held out, last ten, by seed | mean of the three angles, degrees |")
    print("|---|---|---|---|---|")
    keys = list(groups)
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            assert groups[a][0].faces == groups[b][0].faces, "runs of other faces"
            print(f"| {' '.join(b)} - {' '.join(a)} | {difference(groups[b], groups[a])} |")
    draw(groups, args.output)


if __name__ == "__main__":
    main()
