"""The training loop: one `tf.function` step under a tf.distribute strategy, state on disk by epoch (TensorFlow).

A run folder holds args.json, log.csv, curves.png, best.keras, last.keras (each with its side-car), state.npz (all that
`--resume` needs) and tensorboard/.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf import cli, metrics, models
from asmnet_tf.config import ANGLES, POSE_RANGE_DEG, DatasetSpec, Recipe, crop_scale
from asmnet_tf.datasets import Sample
from asmnet_tf.files import InputError, make_folder, read_arrays, replacing, write_text
from asmnet_tf.geometry import crop_frame, landmark_box, normalise
from asmnet_tf.input_pipeline import FacePatches, TrainingBatches
from asmnet_tf.losses import MultiTaskLoss, alpha_at
from asmnet_tf.model_files import compiled
from asmnet_tf.plots import training_curves
from asmnet_tf.pose import angles_to_unit
from asmnet_tf.prediction import predict
from asmnet_tf.twins import TrainingTwin

LOG_COLUMNS = (
    *("epoch", "loss", "loss_landmarks", "loss_asm", "loss_pose", "alpha", "lr", "images_per_s", "seconds"),
    *("val_nme_pct", "val_yaw_deg", "val_pitch_deg", "val_roll_deg"),
)
STATISTICS_IMAGES = 640  # training images that batch-norm statistics are re-estimated from, before a validation
FINAL_STATISTICS_IMAGES = 2560  # ... and after the last one
VALIDATIONS = 30  # per run, about; each costs the forward passes of the statistics


@dataclass(frozen=True)
class Schedule:
    """The learning rate by step: warm-up, then constant with inverse-time decay (paper) or cosine to zero."""

    lr: float
    kind: str
    steps: int
    warmup_steps: int
    inverse_time_decay: float

    def at(self, step: int) -> float:
        """Returns the learning rate of `step`, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.lr / (1 + self.inverse_time_decay * step)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + float(np.cos(np.pi * min(1.0, progress))))


@dataclass(frozen=True)
class Plan:
    """What a run does, beside its data, model and loss."""

    epochs: int
    schedule: Schedule
    alphas: tuple[float, float, float]
    alpha_length: int  # what the epoch is compared with by `alpha_at`: the epochs, or the release's steps per epoch
    weight_decay: float
    ema: float  # momentum of the weights' moving average, which is then what is validated and saved; 0: none
    validate_every: int  # epochs; the last one is always validated
    mixed_precision: bool


class Trainer:
    """Trains a model on TrainingBatches and validates on FacePatches after each epoch.

    Args:
        model: a functional Keras model with the outputs O_L and O_P; it is what gets saved.
        validation: held-out faces, or None: then the last epoch's model is also the best.
        folder: the run folder. sidecar: what is written beside each saved model.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: TrainingBatches,
        validation: FacePatches | None,
        loss: MultiTaskLoss,
        plan: Plan,
        spec: DatasetSpec,
        folder: Path,
        sidecar: dict,
    ) -> None:
        self.model, self.batches, self.validation = model, batches, validation
        self.loss, self.plan, self.spec = loss, plan, spec
        self.folder, self.sidecar = folder, sidecar
        self.strategy = tf.distribute.get_strategy()
        self.twin = TrainingTwin(model)
        self.optimizer = _build_optimizer(plan, model)
        self.alpha = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="alpha")
        self.infer = compiled(model)
        self.epoch = 0
        self.best_nme = float("inf")
        self.rows: list[dict] = []
        self.step = tf.function(self._step)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs one optimiser step on every replica; returns the scalars of `MultiTaskLoss`, averaged."""

        def replica(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                landmarks, pose = self.twin.model(tf.cast(batch["image"], tf.float32), training=True)
                losses = self.loss(landmarks, pose, batch, self.alpha)
                # heads' L2 where --l2-heads is above zero; the release builds it but never adds it (paper.md 4)
                total = losses["loss"] + (tf.add_n(self.model.losses) if self.model.losses else 0.0)
                scaled = self.optimizer.scale_loss(total)
            variables = self.model.trainable_variables
            gradients = tape.gradient(scaled, variables)
            self.optimizer.apply(gradients, variables)
            return losses

        per_replica = self.strategy.run(replica, args=(batch,))
        return {k: self.strategy.reduce(tf.distribute.ReduceOp.MEAN, v, axis=None) for k, v in per_replica.items()}

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains from `self.epoch` to the plan's last epoch.

        Raises: InputError where the loss is not finite; best.keras, last.keras and the state stay those of the last
            good epoch.
        """
        writer = tf.summary.create_file_writer(str(make_folder(self.folder / "tensorboard")))
        stream = self.batches.iterate(self.epoch)
        for epoch in range(self.epoch, self.plan.epochs):
            row = self._train_epoch(epoch, stream)
            if not all(np.isfinite(w).all() for w in self.model.get_weights()):
                raise InputError(f"{self.folder}: weights are not finite after epoch {epoch + 1}. Try a lower --lr.")
            self.epoch = epoch + 1
            last = self.epoch == self.plan.epochs
            if last or self.epoch % self.plan.validate_every == 0:
                with self._averaged_weights():
                    self._reestimate(epoch, FINAL_STATISTICS_IMAGES if last else STATISTICS_IMAGES)
                    row |= self._validate()
                    self._save_models(row)
            else:
                row |= {key: None for key in LOG_COLUMNS if key.startswith("val_")}
            self.rows.append(row)
            self._save_log()
            self._save_state()  # last: what it describes is on disk by now
            _write_summaries(writer, row)
            print(_epoch_line(row, self.plan.epochs), flush=True)

    def _train_epoch(self, epoch: int, stream: Iterator[dict[str, tf.Tensor]]) -> dict:
        self.alpha.assign(alpha_at(epoch, self.plan.alpha_length, self.plan.alphas))
        steps, first = self.batches.steps_per_epoch, epoch * self.batches.steps_per_epoch
        sums: dict[str, float] = {}
        start = time.perf_counter()
        timed = None  # the first step of a run builds the graph, so it does not count in images/s
        with tqdm(range(steps), f"epoch {epoch + 1}/{self.plan.epochs}", unit="step", disable=None, leave=False) as bar:
            for i in bar:
                lr = self.plan.schedule.at(first + i)
                self.optimizer.learning_rate.assign(lr)
                losses = {k: float(v) for k, v in self.step(next(stream)).items()}
                if not all(np.isfinite(v) for v in losses.values()):
                    saved = (self.folder / "last.keras").exists()
                    raise InputError(
                        f"{self.folder}: loss became {losses['loss']} in epoch {epoch + 1}, step {i + 1}. "
                        f"{'The last good model is last.keras. ' if saved else ''}Try a lower --lr."
                    )
                for k, v in losses.items():
                    sums[k] = sums.get(k, 0.0) + v
                if timed is None:
                    timed = time.perf_counter()
                if i % 10 == 0:
                    bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
        now = time.perf_counter()
        rate = (steps - 1) * self.batches.batch_size / (now - timed) if steps > 1 else 0.0
        return {
            "epoch": epoch + 1,
            **{k: v / steps for k, v in sums.items()},
            "alpha": float(self.alpha.numpy()),
            "lr": lr,
            "images_per_s": rate,
            "seconds": now - start,
        }

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Puts the weights' moving averages in the place of the weights for a while, if the plan has any."""
        if not self.plan.ema:
            yield
            return
        variables = self.model.trainable_variables
        weights = [v.numpy() for v in variables]
        self.optimizer.finalize_variable_values(variables)
        try:
            yield
        finally:
            for variable, weight in zip(variables, weights):
                variable.assign(weight)

    def _reestimate(self, epoch: int, images: int) -> None:
        steps = min(self.batches.steps_per_epoch, max(1, images // self.batches.batch_size))
        chosen = (self.batches.batch(epoch, step)[0] for step in range(steps))
        self.twin.reestimate_statistics(tf.cast(image, tf.float32) for image in chosen)

    def _validate(self) -> dict:
        if self.validation is None:
            return {key: None for key in LOG_COLUMNS if key.startswith("val_")}
        landmarks_gt = np.stack([s.landmarks for s in self.validation.samples])
        landmarks, poses = predict(self.infer, self.validation, progress="validate")
        errors = metrics.nme(landmarks, landmarks_gt, metrics.normaliser(landmarks_gt, self.spec))
        angles = np.nanmean(metrics.pose_errors(poses, self.validation.poses), axis=0)
        return {
            "val_nme_pct": float(np.nanmean(errors) * 100),
            **{f"val_{name}_deg": float(a) for name, a in zip(ANGLES, angles)},
        }

    # --- what is on disk ----------------------------------------------------------------------------------------------

    def _save_models(self, row: dict) -> None:
        """Writes last.keras and, where it is the best so far, best.keras."""
        nme = row["val_nme_pct"]
        sidecar = self.sidecar | {"epoch": self.epoch, "val_nme_pct": nme}
        if nme is None or nme < self.best_nme:
            self.best_nme = float("inf") if nme is None else nme
            models.save_model(self.model, self.folder / "best.keras", sidecar)
        models.save_model(self.model, self.folder / "last.keras", sidecar)

    def _save_log(self) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, LOG_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({k: "" if v is None else v for k, v in r.items()} for r in self.rows)
        write_text(self.folder / "log.csv", text.getvalue())
        if self.rows[-1]["val_nme_pct"] is not None or self.epoch == self.plan.epochs:  # drawing takes a second
            training_curves(self.folder / "log.csv", self.folder / "curves.png")

    def best_line(self) -> str:
        """Returns the best validation NME as text."""
        return f"{self.best_nme:.2f} %" if np.isfinite(self.best_nme) else "not measured: no face was held out"

    def _variables(self) -> list[tf.Variable]:
        return [*self.model.variables, *self.optimizer.variables]

    def _save_state(self) -> None:
        progress = {"epoch": self.epoch, "best_nme": self.best_nme, "rows": self.rows}
        arrays = {f"v{i}": np.asarray(v) for i, v in enumerate(self._variables())}
        with replacing(self.folder / "state.npz") as temporary:
            np.savez(temporary, progress=json.dumps(progress), **arrays)

    def resume(self) -> None:
        """Loads state.npz of the run folder; without one the run starts at its first epoch, and that is said.

        Raises: InputError if it is damaged or of another model.
        """
        path = self.folder / "state.npz"
        again = "Start again under another --name."
        try:
            content = read_arrays(path)
        except FileNotFoundError as error:
            left = [name for name in ("best.keras", "last.keras", "log.csv") if (self.folder / name).exists()]
            if left:
                raise InputError(f"{path}: missing, but {left[0]} is there; the run cannot go on. {again}") from error
            print(f"{path}: no epoch was saved yet, so the run starts at the first", file=sys.stderr)
            return
        try:
            progress = json.loads(str(content["progress"]))
            variables = self._variables()
            values = [content[f"v{i}"] for i in range(len(variables))]
            epoch, best, rows = int(progress["epoch"]), float(progress["best_nme"]), list(progress["rows"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: damaged state ({str(error)[:80]}). {again}") from error
        fits = all(v.shape == tuple(ours.shape) and v.dtype.kind in "fiu" for v, ours in zip(values, variables))
        if not fits or epoch != len(rows):
            raise InputError(f"{path}: state of another model or optimiser, or damaged. {again}")
        self.epoch, self.best_nme, self.rows = epoch, best, rows
        for variable, value in zip(variables, values):
            variable.assign(value)


# --- what train.py asks for -------------------------------------------------------------------------------------------


def prepare(seed: int, mixed_precision: bool) -> None:
    """Seeds Python, NumPy and TensorFlow; sets the global dtype policy."""
    keras.utils.set_random_seed(seed)
    if mixed_precision:
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        keras.mixed_precision.set_global_policy("mixed_float16" if has_gpu else "mixed_bfloat16")


def start_at_mean(model: keras.Model, samples: list[Sample], crop: str) -> None:
    """Lets a model start at the mean shape and pose of the training samples; see `models.start_at_mean`."""
    landmarks = np.stack([sample.landmarks for sample in samples]).astype(np.float64)
    shapes = normalise(landmarks, crop_frame(landmark_box(landmarks), crop))
    poses = angles_to_unit(np.stack([sample.pose for sample in samples]))
    models.start_at_mean(model, shapes.mean(axis=0), np.nanmean(poses, axis=0))


def make_plan(args: argparse.Namespace, recipe: Recipe, steps_per_epoch: int) -> Plan:
    """Returns the plan of a run from the arguments of train.py."""
    warmup = min(recipe.warmup_epochs, args.epochs / 5)  # short runs must not spend themselves warming up
    schedule = Schedule(
        lr=args.lr,
        kind=recipe.schedule,
        steps=args.epochs * steps_per_epoch,
        warmup_steps=round(warmup * steps_per_epoch),
        inverse_time_decay=recipe.inverse_time_decay,
    )
    alpha_length = steps_per_epoch if args.alpha_schedule == "release" else args.epochs
    return Plan(
        epochs=args.epochs,
        schedule=schedule,
        alphas=tuple(args.alpha),
        alpha_length=alpha_length,
        weight_decay=args.weight_decay,
        ema=args.ema,
        validate_every=args.validate_every or max(1, round(args.epochs / VALIDATIONS)),
        mixed_precision=args.mixed_precision,
    )


def make_sidecar(args: argparse.Namespace, spec: DatasetSpec) -> dict:
    """Returns what a user of the saved model must know: written as JSON beside it."""
    return {
        "architecture": args.arch,
        "dataset": spec.name,
        "num_landmarks": spec.num_landmarks,
        "input_size": args.input_size,
        "input": "RGB pixels 0..255",
        "crop": args.crop,
        "crop_scale": crop_scale(args.crop),
        "landmarks": "O_L: (p - centre) / size of the crop, x0, y0, x1, ...",
        "pose": "O_P: yaw, pitch, roll over pose_range_deg",
        "pose_range_deg": POSE_RANGE_DEG,
        "recipe": args.recipe,
        "loss": args.loss,
        "landmark_loss": args.landmark_loss,
        "seed": args.seed,
        "commit": cli.commit(),
    }


_FREE_ON_RESUME = {
    *("resume", "output", "name", "data_dir", "shape_model", "weights", "pose_labels", "cache", "cache_dir"),
}


def check_flags(folder: Path, args: argparse.Namespace) -> None:
    """Raises: InputError if a run is resumed with other flags than args.json has: the result would be neither run's."""
    path = folder / "args.json"
    try:
        flags = json.loads(path.read_text(encoding="utf-8"))["flags"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}). Start again under another --name.") from error
    for key, value in json.loads(json.dumps(vars(args), default=str)).items():
        if key not in _FREE_ON_RESUME and key in flags and flags[key] != value:
            flag = "--" + key.replace("_", "-")
            raise InputError(f"{path}: the run has {flag} {flags[key]}, now it is {value}. Resume with the same flags.")


def write_arguments(folder: Path, args: argparse.Namespace, counts: dict) -> None:
    """Writes args.json: flags, versions, commit, counts. A resumed run adds to what the first one wrote."""
    path = folder / "args.json"
    values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    versions |= {"numpy": np.__version__, "opencv": cv2.__version__}
    record = {"flags": values, "counts": counts, "versions": versions, "commit": cli.commit(), "command": sys.argv}
    record |= {"cpus": os.cpu_count(), "gpus": len(tf.config.list_physical_devices("GPU"))}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        record["resumed_from"] = [*earlier.pop("resumed_from", []), earlier]
    except (OSError, ValueError, AttributeError):
        pass  # a new run
    write_text(path, json.dumps(record, indent=2) + "\n")


def _build_optimizer(plan: Plan, model: keras.Model) -> keras.optimizers.Optimizer:
    average = {"use_ema": bool(plan.ema), "ema_momentum": plan.ema or 0.99}
    if plan.weight_decay:
        optimizer = keras.optimizers.AdamW(plan.schedule.lr, weight_decay=plan.weight_decay, **average)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    else:
        optimizer = keras.optimizers.Adam(plan.schedule.lr, **average)
    if plan.mixed_precision:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def _write_summaries(writer: tf.summary.SummaryWriter, row: dict) -> None:
    """Writes scalars for TensorBoard. `tf.summary.scalar` would need the tensorboard package just to say so."""
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})
    with writer.as_default(step=row["epoch"]):
        for key, value in row.items():
            if key != "epoch" and value is not None:
                tf.summary.write(key, tf.constant(value, tf.float32), metadata=metadata)
    writer.flush()


def _epoch_line(row: dict, epochs: int) -> str:
    line = (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.5f} (landmarks {row['loss_landmarks']:.5f}, asm "
        f"{row['loss_asm']:.5f}, pose {row['loss_pose']:.5f}), alpha {row['alpha']:g}, lr {row['lr']:.2e}, "
        f"{row['images_per_s']:.1f} images/s, {row['seconds']:.0f} s"
    )
    if row["val_nme_pct"] is None:
        return line
    angles = " / ".join(f"{row[f'val_{name}_deg']:.2f}" for name in ANGLES)
    return f"{line}; val NME {row['val_nme_pct']:.2f} %, yaw / pitch / roll {angles} deg"
