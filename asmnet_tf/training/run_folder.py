"""A run folder: args.json, log.csv, curves.png, state.npz; what a resume checks before it goes on.

Beside these it holds best.keras and last.keras, each with its side-car, and tensorboard/. What happens when

- a run is killed (`kill -9`, power, memory): nothing but the epoch it fell into is lost, for state.npz is written last;
  `--resume` repeats that epoch with the same faces, augmentation and dropout;
- SIGTERM or Ctrl-C comes: the step is finished and saved, exit code 0 or 130; a second one ends it at once;
- it must be the same to the last bit: `--deterministic` from the start, which fixes and records TensorFlow's threads;
- a phase ends: the next goes on with its weights (their averages, if there are) and a new optimiser; best.keras begins
  anew with another input size, for it is a model of the last one. A signal between phases ends the run, nothing lost;
- the last phase ends: before its last validation the heads are fitted in closed form, where the recipe has it so;
- `--resume` comes with other flags, faces, labels, shape model or start weights (compared by content): refused by name;
- a second process wants the folder: refused, naming the first; a lock that a killed run left does not count;
- the disk is full: one line, exit code 2, every file whole and of an earlier epoch;
- loss or gradient is not finite: the run ends at that step, last.keras is the last good model;
- a face cannot be used: the run ends with its name, or `--on-bad-sample skip` lists it in skipped.csv.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asmnet_tf.config import ANGLES, POSE_RANGE_DEG, crop_scale
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.readers import Sample
from asmnet_tf.data.sidecars import find_model, read_sidecar
from asmnet_tf.files import InputError, make_folder, owned, read_arrays, read_json, replacing, sweep, write_text
from asmnet_tf.shape.shape_model import ShapeModel

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

LOG_COLUMNS = (
    *("epoch", "loss", "loss_landmarks", "loss_asm", "loss_pose", "alpha", "lr", "images_per_s", "seconds"),
    *("val_nme_pct", "val_yaw_deg", "val_pitch_deg", "val_roll_deg"),
)
TELLING_FACES = 20  # fewer held-out faces tell little
_AGAIN = "Start again under another --name."
_FREE_ON_RESUME = {
    *("resume", "output", "name", "data_dir", "shape_model", "weights", "pose_labels", "cache", "cache_dir", "extra"),
    *("strategy", "devices", "scale_lr"),  # --lr is recorded as it is after scaling
}


@contextlib.contextmanager
def open_run(output: Path, name: str, resume: bool) -> Iterator[Path]:
    """Keeps the run folder for this process, from before the data are read.

    Raises: InputError if another process trains there; for a new run if there is one, to resume if there is none.
    """
    folder = output / name
    if resume and not folder.is_dir():
        there = sorted(path.parent.relative_to(output).as_posix() for path in output.rglob("args.json"))
        raise InputError(f"{folder}: no such run to resume. In {output} there are: {', '.join(there) or 'none'}.")
    make_folder(output)
    with owned(folder, "another --name"):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names and not resume:
            raise InputError(f"{folder}: this run exists. Go on with --resume or choose another --name.")
        if names and not names & {"args.json", "state.npz"}:
            raise InputError(f"{folder}: no run of train.py, it holds {', '.join(sorted(names)[:3])}.")
        yield folder


# --- what it is made from ---------------------------------------------------------------------------------------------


def make_sidecar(flags: Mapping[str, object], spec: DatasetSpec, commit: str, has_pose: bool = True) -> dict:
    """Returns what a user of the saved model must know, written as JSON beside it. flags: those of train.py.

    Says where the start weights may have learned from faces that this run holds out; `--split val` refuses it then.
    """
    hold_out, weights = {"by": "description" if "val" in spec.split_names else "photograph"}, str(flags["weights"])
    hold_out["fraction"] = flags["val_fraction"]
    theirs = {} if weights in ("none", "imagenet") else read_sidecar(find_model(weights))
    if flags["val_fraction"] and theirs.get("dataset") == spec.name and theirs.get("hold_out") != hold_out:
        hold_out["seen_by"] = Path(weights).name
        told = f"may have learned from {spec.title} faces that this run holds out: NME on these may be too low"
        print(f"{weights}: {told}", file=sys.stderr)
    return {
        "architecture": flags["arch"],
        "dataset": spec.name,
        "num_landmarks": spec.num_landmarks,
        "input": "RGB pixels 0..255",
        "crop_scale": crop_scale(flags["crop"]),
        "landmarks": "O_L: (p - centre) / size of the crop, x0, y0, x1, ...",
        "pose": "O_P: yaw, pitch, roll over pose_range_deg" if has_pose else None,
        "pose_range_deg": POSE_RANGE_DEG,
        **{key: flags[key] for key in ("head", "input_size", "crop", "recipe", "loss", "landmark_loss", "seed")},
        **({"right_px": spec.right_px} if spec.right_px else {}),
        "hold_out": hold_out,
        **({} if spec.is_known else {"description": spec.description}),
        "commit": commit,
    }


def content_hashes(
    samples: Sequence[Sample],
    pose_labels: Path | None,
    shape_model: ShapeModel | None,
    weights: str,
    spec: DatasetSpec,
) -> dict[str, str]:
    """Returns what a run is made from, as `sha256:...` or in a word: a file that was moved is still the same."""

    def sha256(*parts: object) -> str:
        whole = hashlib.sha256()
        for part in parts:
            whole.update(part.encode(errors="surrogateescape") if isinstance(part, str) else np.ascontiguousarray(part))
        return f"sha256:{whole.hexdigest()}"

    poses, model = (s.pose for s in samples if s.pose is not None), shape_model
    layout = spec.flip_map, spec.outer_eye_corners, spec.rigid_points, spec.right_px
    return {
        "dataset": sha256(json.dumps(layout)),
        "faces": sha256(*(part for s in samples for part in (s.name, s.landmarks))),
        "pose_labels": sha256(*poses) if pose_labels else "none",
        "shape_model": sha256(model.mean_shape, model.eigenvectors, model.eigenvalues) if model else "none",
        "weights": weights if weights in ("none", "imagenet") else sha256(np.fromfile(find_model(weights), np.uint8)),
    }


def check_flags(folder: Path, flags: Mapping[str, object], content: Mapping[str, str] | None = None) -> None:
    """Raises: InputError if a run is resumed with other flags or content than args.json has: it would be neither."""
    path = folder / "args.json"
    try:
        record = read_json(path)
        had, had_content = dict(record["flags"]), dict(record.get("content", {}))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}). {_AGAIN}") from error
    weights = {had_content.get("weights"), (content or {}).get("weights")} - {None}
    if len(weights) == 2 and "none" in weights:  # the phases follow from it, and so do --epochs and --lr
        told = f"the run has --weights {had.get('weights')}, now it is {flags['weights']}"
        raise InputError(f"{path}: {told}. Resume with the same flags.")
    if had.get("epochs", flags["epochs"]) != flags["epochs"] and (folder / "last.keras").is_file():
        told = f"the run has --epochs {had['epochs']}, now it is {flags['epochs']}"
        on = f"Resume with the same, or begin another run: --weights {folder / 'last.keras'} --name NEW."
        raise InputError(f"{path}: {told}, and the learning rate follows from it. {on}")
    free = _FREE_ON_RESUME if flags["deterministic"] else {*_FREE_ON_RESUME, "threads"}
    for key, value in json.loads(json.dumps(dict(flags), default=str)).items():
        if key not in free and key in had and had[key] != value:
            flag = "--" + key.replace("_", "-")
            raise InputError(f"{path}: the run has {flag} {had[key]}, now it is {value}. Resume with the same flags.")
    for key, value in (content or {}).items():
        if had_content.get(key, value) != value:
            what = "the faces of the data" if key == "faces" else "--" + key.replace("_", "-")
            told = f"{had_content[key]!s:.15}, now {value:.15}"
            raise InputError(f"{path}: {what} changed since the run began ({told}). Resume with what it began with.")


def write_arguments(folder: Path, flags: Mapping[str, object], counts: dict, **more: object) -> None:
    """Writes args.json: flags, counts, versions, machine. A resumed run adds to what the first one wrote.

    Args:   more: what else it records: content, commit, workers, replicas.
    Raises: InputError if a run is resumed with other counts: its order of the faces would be another.
    """
    import cv2
    import keras
    import tensorflow as tf

    path = folder / "args.json"
    record = {"flags": dict(flags), "counts": counts, **more, "command": sys.argv}
    record["versions"] = {module.__name__: module.__version__ for module in (tf, keras, np)}
    record["versions"] |= {"opencv": cv2.__version__, "python": platform.python_version()}
    record |= {"cpus": os.cpu_count(), "gpus": len(tf.config.list_physical_devices("GPU"))}
    try:
        earlier = read_json(path)
        had = {key: earlier["counts"].get(key, value) for key, value in counts.items()}
        record["resumed_from"] = [*earlier.pop("resumed_from", []), earlier]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        had = counts  # a new run
    if had != counts:
        raise InputError(f"{path}: the run has {had}, now it is {counts}. Resume with the same data.")
    write_text(path, json.dumps(record, indent=2, default=str) + "\n")


# --- how far it has come ----------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run has come: what state.npz holds beside the variables."""

    epoch: int = 0  # epochs that are done
    step: int = 0  # steps that are done of the next one
    sums: dict[str, float] = field(default_factory=dict)  # of the losses of these steps
    timed: tuple[int, float] = (0, 0.0)  # steps of this epoch and their seconds, without the one that builds the graph
    best_nme: float = math.inf
    rows: list[dict] = field(default_factory=list)  # of log.csv


_KINDS = {"epoch": int, "step": int, "sums": dict, "best_nme": float, "rows": list}  # of what state.npz has of these
_KINDS["timed"] = lambda pair: (int(pair[0]), float(pair[1]))


def variables_by_path(model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, keras.Variable]:
    """Returns the variables of a model and, if there is one, its optimizer by their paths.

    Keras counts the names it gives itself (dense_1) over all that a process builds; here they begin anew.
    """
    parts = [*model.layers, optimizer, getattr(optimizer, "inner_optimizer", None)]
    own = {type(part).__name__.lower() for part in parts} | {"seedgenerator"}
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    found = {}
    for variable in (*model.variables, *getattr(optimizer, "variables", ())):
        owner, _, rest = variable.path.partition("/")
        base = re.sub(r"_\d+$", "", owner)
        if owner not in names and base.replace("_", "") in own:
            counts[base] = counts.get(base, -1) + 1
            names[owner] = f"{base}_{counts[base]}" if counts[base] else base
        of = next((name for name in names if rest.startswith(f"{name}_")), None)  # what an optimizer keeps of it
        rest = rest if of is None else names[of] + rest.removeprefix(of)
        found[f"{names.get(owner, owner)}/{rest}"] = variable
    return found


def save_state(folder: Path, progress: Progress, variables: dict[str, keras.Variable]) -> None:
    """Writes state.npz: all that `load_state` needs. Raises: InputError if it cannot be written."""
    arrays = {path: np.asarray(variable) for path, variable in variables.items()}
    with replacing(folder / "state.npz") as temporary:
        np.savez(temporary, progress=json.dumps(asdict(progress)), **arrays)


def load_state(folder: Path, epochs: int, is_chief: bool = True) -> tuple[Progress, dict[str, np.ndarray]]:
    """Returns what state.npz holds; without one the run starts at its first epoch, and that is said.

    Raises: InputError if it is damaged or has more than `epochs`.
    """
    path = folder / "state.npz"
    if is_chief:
        sweep(folder)
    try:
        stored = read_arrays(path)
    except FileNotFoundError as error:
        left = [name for name in ("best.keras", "last.keras", "log.csv") if (folder / name).exists()]
        if left:
            raise InputError(f"{path}: missing, but {left[0]} is there; the run cannot go on. {_AGAIN}") from error
        print(f"{path}: no epoch was saved yet, so the run starts at the first", file=sys.stderr)
        return Progress(), {}
    if "v0" in stored:
        anew = f"Go on from its weights: --weights {folder / 'last.keras'} --name NEW."
        raise InputError(f"{path}: of an earlier version, which numbered the variables. {anew}")
    try:
        read = json.loads(str(stored.pop("progress")))
        progress = Progress(**{key: kind(read[key]) for key, kind in _KINDS.items()})
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: damaged state ({str(error)[:80]}). {_AGAIN}") from error
    rows = progress.rows
    fits = all(isinstance(row, dict) and set(row) == set(LOG_COLUMNS) for row in rows)
    fits = fits and all(value is None or isinstance(value, int | float) for row in rows for value in row.values())
    fits = fits and [row["epoch"] for row in rows if row["epoch"] != 0] == [*range(1, progress.epoch + 1)]
    if not fits or not all(v.dtype.kind in "fiu" and np.isfinite(v).all() for v in stored.values()):
        raise InputError(f"{path}: damaged state. {_AGAIN}")
    if progress.epoch > epochs:
        raise InputError(f"{path}: {progress.epoch} epochs are done, --epochs is {epochs}. {_AGAIN}")
    if progress.epoch == epochs and is_chief:
        told = f"{folder}: all {epochs} epochs are done, nothing is left to resume."
        print(f"{told} Train on with --weights {folder / 'last.keras'} --name NEW")
    return progress, stored


def assign_variables(folder: Path, variables: dict[str, keras.Variable], stored: dict[str, np.ndarray]) -> None:
    """Assigns the arrays of state.npz. Raises: InputError if it is of another model: then it names what differs."""
    differs = [f"{name} is new" for name in variables if name not in stored]
    differs += [f"{name} is not in this model" for name in stored if name not in variables]
    both = [(name, stored[name].shape, tuple(v.shape)) for name, v in variables.items() if name in stored]
    differs += [f"{name} is {came}, here {expected}" for name, came, expected in both if came != expected]
    if differs:
        more, path = f" and {len(differs) - 3} more" if len(differs) > 3 else "", folder / "state.npz"
        raise InputError(f"{path}: state of another model or optimizer ({'; '.join(differs[:3])}{more}). {_AGAIN}")
    for name, variable in variables.items():
        variable.assign(stored[name])


# --- what a person reads ----------------------------------------------------------------------------------------------


def write_log(folder: Path, rows: Sequence[dict], draw: bool) -> None:
    """Writes the rows, one an epoch with LOG_COLUMNS, to log.csv; with `draw`, a second's work, also curves.png."""
    from asmnet_tf.evaluation import figures

    lines = [",".join("" if row[column] is None else str(row[column]) for column in LOG_COLUMNS) for row in rows]
    write_text(folder / "log.csv", "\n".join([",".join(LOG_COLUMNS), *lines, ""]))
    if draw:
        figures.training_curves(rows, folder / "curves.png")


def write_summaries(writer: tf.summary.SummaryWriter, row: dict) -> None:
    """Writes scalars for TensorBoard. `tf.summary.scalar` would need the tensorboard package just to say so."""
    import tensorflow as tf

    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})
    try:
        with writer.as_default(step=row["epoch"]):
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    tf.summary.write(key, tf.constant(value, tf.float32), metadata=metadata)
        writer.flush()
    except tf.errors.OpError as error:  # a full disk, in TensorFlow's words
        raise InputError(f"tensorboard: cannot be written ({type(error).__name__}). Is the disk full?") from error


def epoch_line(row: dict, epochs: int) -> str:
    """Returns a row of the log as a line of text."""
    if not row["epoch"]:
        return f"epoch 0, the weights it starts from: {_validation_words(row)}"
    terms = ", ".join(f"{name} {row[f'loss_{name}']:.5f}" for name in ("landmarks", "asm", "pose"))
    line = f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.5f} ({terms}), alpha {row['alpha']:g}, "
    line += f"lr {row['lr']:.2e}, {row['images_per_s']:.1f} images/s, {row['seconds']:.0f} s"
    return line if row["val_nme_pct"] is None else f"{line}; {_validation_words(row)}"


def _validation_words(row: dict) -> str:
    angles = [row[f"val_{name}_deg"] for name in ANGLES]
    told = "" if None in angles else f", yaw / pitch / roll {' / '.join(f'{angle:.2f}' for angle in angles)} deg"
    return f"val NME {row['val_nme_pct']:.2f} %{told}"


def best_line(rows: Sequence[dict], faces: int) -> str:
    """Returns the best NME on so many held-out faces as text, that of the weights it began with, what is odd in it."""
    scored = [(row["val_nme_pct"], row["epoch"]) for row in rows if row["val_nme_pct"] is not None]
    if not scored:
        return "no validation NME: no face was held out"
    (first, first_epoch), (last, last_epoch), (best, epoch) = scored[0], scored[-1], min(scored)
    line = f"best validation NME {best:.2f} % (epoch {epoch}) on {faces} held-out faces"
    if epoch and not first_epoch:
        line += f", {first:.2f} % before"
    if faces < TELLING_FACES:
        line += ", which tell little: see --val-fraction"
    if not epoch:
        line += "; no epoch was better than the weights it started from, and best.keras holds these"
    if last > first:
        told = f"{last:.2f} % after epoch {last_epoch}, {first:.2f} % after epoch {first_epoch}"
        line += f"; training ended worse than it began: {told}. Try a lower --lr"
    return line
