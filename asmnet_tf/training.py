"""The training loop: one `tf.function` step under a tf.distribute strategy, state on disk by epoch (TensorFlow).

A run folder holds args.json, log.csv, curves.png, best.keras, last.keras (each with its side-car), state.npz (all that
`--resume` needs) and tensorboard/. A kill at any moment loses at most the epoch it falls into: state.npz is written
last, and the epoch is repeated as it was, for batches depend on (seed, epoch, step) alone and dropout's seeds are among
the variables of the state.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import re
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf import cli, metrics, models
from asmnet_tf.config import ANGLES, POSE_RANGE_DEG, DatasetSpec, Recipe, crop_scale
from asmnet_tf.datasets import Sample
from asmnet_tf.distribution import Replicas, set_threads
from asmnet_tf.engine import keras
from asmnet_tf.files import InputError, make_folder, read_arrays, read_json, replacing, sweep, write_text
from asmnet_tf.geometry import crop_frame, landmark_box, normalise
from asmnet_tf.input_pipeline import FacePatches, TrainingBatches
from asmnet_tf.losses import MultiTaskLoss, alpha_at
from asmnet_tf.model_files import compiled
from asmnet_tf.model_zoo import find_model
from asmnet_tf.plots import training_curves
from asmnet_tf.pose import angles_to_unit
from asmnet_tf.prediction import predict
from asmnet_tf.shape_model import ShapeModel
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
    xla: bool = False


class Trainer:
    """Trains a model on TrainingBatches and validates on FacePatches after each epoch.

    Args:
        model: a functional Keras model with the outputs O_L and O_P; it is what gets saved. Made in the scope of the
            strategy of `replicas`.
        validation: held-out faces, of several workers this one's part, or None: where no worker has any, the last
            epoch's model is also the best.
        folder: the run folder. sidecar: what is written beside each saved model.
        replicas: on which devices of which workers; only the chief writes.
    Raises: InputError for fewer images in a step than replicas.
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
        replicas: Replicas | None = None,
    ) -> None:
        self.model, self.batches, self.validation = model, batches, validation
        self.loss, self.plan, self.spec = loss, plan, spec
        self.folder, self.sidecar = folder, sidecar
        self.replicas = replicas or Replicas()
        self.strategy = self.replicas.strategy
        if batches is not None and batches.batch_size < self.replicas.count:
            raise InputError(
                f"--batch-size {batches.batch_size}: fewer images than the {self.replicas.count} replicas. Use more."
            )
        if plan.xla and self.replicas.count > 1:
            raise InputError("--xla: for one replica only; leave it out or take --strategy one.")
        with self.strategy.scope():
            self.twin = TrainingTwin(model, self.strategy)
            self.optimizer = _build_optimizer(plan, model)
            self.alpha = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="alpha")
            self.stop = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="stop")  # 1: a signal came
        self.infer = self.replicas.spread(compiled(model))
        self.epoch = 0
        self.steps_done = 0  # of this epoch
        self.timed = (0, 0.0)  # steps of this epoch and their seconds, without the one that builds the graph
        self.building_s = 0.0  # what that one took
        self.sums: dict[str, float] = {}  # of the losses of those steps
        self.best_nme = float("inf")
        self.rows: list[dict] = []
        self.signals = cli.StopSignals()
        self.step = tf.function(self._step, jit_compile=plan.xla or None)

    # --- one step -----------------------------------------------------------------------------------------------------

    def _step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Runs one optimiser step on every replica; returns the scalars of `MultiTaskLoss` of the whole batch.

        Each replica takes its rows' share of the mean over the whole batch, so that losses and gradients are sums.

        Also returned: `stop`, above 0 if any worker has received a signal, and `finite`, the number of replicas whose
        loss and gradient are: a replica where they are not adds no gradient, so no NaN gets into the weights.
        """
        replicas = self.replicas.count

        def replica(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            rows = tf.cast(tf.shape(batch["image"])[0], tf.float32)
            share = rows / self.batches.batch_size if replicas > 1 else 1.0
            with tf.GradientTape() as tape:
                landmarks, pose = self.twin.model(tf.cast(batch["image"], tf.float32), training=True)
                losses = {k: v * share for k, v in self.loss(landmarks, pose, batch, self.alpha).items()}
                # heads' L2 where --l2-heads is above zero; the release builds it but never adds it (paper.md 4)
                total = losses["loss"] + (tf.add_n(self.model.losses) / replicas if self.model.losses else 0.0)
                scaled = self.optimizer.scale_loss(total)
            variables = self.model.trainable_variables
            gradients = tape.gradient(scaled, variables)
            finite = tf.math.is_finite(total)
            if not self.plan.mixed_precision:  # there an overflow is no defect, and the optimizer skips such steps
                finite &= tf.math.is_finite(tf.linalg.global_norm(gradients))
                gradients = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
            elif replicas > 1:
                gradients = _finite_in_all_or_none(gradients)
            self.optimizer.apply(gradients, variables)  # it sums the gradients of all replicas
            return losses | {"finite": tf.cast(finite, tf.float32), "stop": tf.identity(self.stop)}

        per_replica = self.strategy.run(replica, args=(batch,))
        return {k: self.strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None) for k, v in per_replica.items()}

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, score_start: bool = False) -> None:
        """Trains from `self.epoch` to the plan's last epoch.

        Args: score_start: the model is whole before its first epoch: it is validated as it is, as epoch 0 of the log,
            and is best.keras until another is better.

        Raises: InputError where loss or gradient is not finite; best.keras, last.keras and the state stay those of the
            last good epoch. cli.Stopped after SIGTERM or Ctrl-C, the state saved with the steps done in this epoch.
        """
        self._check_agreement()
        self.replicas.part_seeds(self.model)
        writer = None
        if self.replicas.is_chief:
            writer = tf.summary.create_file_writer(str(make_folder(self.folder / "tensorboard")))
        stream = self.batches.iterate(self.epoch, self.steps_done)
        with self.signals:
            if score_start and not self.rows and not self.steps_done:
                self._score_start()
            self._train(writer, stream)

    def _train(self, writer: tf.summary.SummaryWriter | None, stream: Iterator[dict[str, tf.Tensor]]) -> None:
        for epoch in range(self.epoch, self.plan.epochs):
            row = self._train_epoch(epoch, stream)
            if not all(np.isfinite(w).all() for w in self.model.get_weights()):
                raise InputError(f"{self.folder}: weights are not finite after epoch {epoch + 1}. Try a lower --lr.")
            self.epoch, self.steps_done, self.sums, self.timed = epoch + 1, 0, {}, (0, 0.0)
            last = self.epoch == self.plan.epochs
            if last or self.epoch % self.plan.validate_every == 0:
                with self._averaged_weights():
                    self._reestimate(epoch, FINAL_STATISTICS_IMAGES if last else STATISTICS_IMAGES)
                    row |= self._validate()
                    self._save_models(row)
            else:
                row |= {key: None for key in LOG_COLUMNS if key.startswith("val_")}
            self.rows.append(row)
            if not self.replicas.is_chief:
                continue
            self._save_log()
            self._save_state()  # last: what it describes is on disk by now
            _write_summaries(writer, row)
            print(_epoch_line(row, self.plan.epochs), flush=True)

    def _score_start(self) -> None:
        row = dict.fromkeys(LOG_COLUMNS) | {"epoch": 0} | self._validate()
        if row["val_nme_pct"] is None:
            return
        self.rows.append(row)
        self._save_models(row)
        if self.replicas.is_chief:
            self._save_log()
            self._save_state()
            print(f"epoch 0, the weights it starts from: {_validation_words(row)}", flush=True)

    def _check_agreement(self) -> None:
        """Raises: InputError unless all workers are to go on from the same epoch with the same weights and faces."""
        names = "\0".join(sample.name for sample in self.batches.patches.samples).encode(errors="surrogateescape")
        weights = 0
        for array in self.model.get_weights():
            weights = zlib.crc32(np.ascontiguousarray(array), weights)
        self.replicas.check_agreement(
            epochs_done=self.epoch,
            steps_done=self.steps_done,
            epochs=self.plan.epochs,
            seed=self.batches.seed,
            batch_size=self.batches.batch_size,
            training_faces=len(self.batches.patches),
            checksum_of_their_names=zlib.crc32(names),
            checksum_of_the_weights=weights,
        )

    def _train_epoch(self, epoch: int, stream: Iterator[dict[str, tf.Tensor]]) -> dict:
        self.alpha.assign(alpha_at(epoch, self.plan.alpha_length, self.plan.alphas))
        steps, first = self.batches.steps_per_epoch, epoch * self.batches.steps_per_epoch
        before = self.steps_done  # of a run that was stopped in this epoch
        start = now = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.plan.epochs}"
        quiet = None if self.replicas.is_chief else True  # None: where stderr is no terminal
        with tqdm(total=steps, desc=title, unit="step", initial=before, disable=quiet, leave=False) as bar:
            for i in range(before, steps):
                self.optimizer.learning_rate.assign(self.plan.schedule.at(first + i))
                self.stop.assign(float(self.signals.received is not None))
                losses = {k: float(v) for k, v in self.step(self.replicas.split(next(stream))).items()}
                stop = losses.pop("stop") > 0
                if losses.pop("finite") < self.replicas.count:
                    saved = (self.folder / "last.keras").exists()
                    raise InputError(
                        f"{self.folder}: loss {losses['loss']} or its gradient is not finite in epoch {epoch + 1}, "
                        f"step {i + 1}. "
                        f"{'The last good model is last.keras. ' if saved else ''}Try a lower --lr."
                    )
                self.sums = {k: self.sums.get(k, 0.0) + v for k, v in losses.items()}
                self.steps_done = i + 1
                took, now = time.perf_counter() - now, time.perf_counter()
                if self.building_s:
                    self.timed = (self.timed[0] + 1, self.timed[1] + took)
                else:
                    self.building_s = took
                if stop or (self.replicas.workers == 1 and self.signals.received is not None):
                    self._stop()
                if i % 10 == 0:
                    bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
                bar.update()
        timed, seconds = self._timed()
        return {
            "epoch": epoch + 1,
            **{k: v / steps for k, v in self.sums.items()},
            "alpha": float(self.alpha.numpy()),
            "lr": self.plan.schedule.at(first + steps - 1),
            "images_per_s": timed * self.batches.batch_size / max(seconds, 1e-9),
            "seconds": time.perf_counter() - start,
        }

    def _timed(self) -> tuple[int, float]:
        """Returns how many steps of this epoch took how many seconds; the one that builds the graph if it is alone."""
        return self.timed if self.timed[0] else (1, self.building_s)

    def _stop(self) -> None:
        """Raises cli.Stopped, the state saved."""
        if self.replicas.is_chief:
            self._save_state()
        terminated = self.signals.received != signal.SIGINT  # the signal may have come to another worker
        raise cli.Stopped(
            f"{self.folder}: {'preempted' if terminated else 'interrupted'}: epoch {self.epoch + 1}, step "
            f"{self.steps_done} of {self.batches.steps_per_epoch} is saved; go on with --resume",
            0 if terminated else cli.EXIT_INTERRUPTED,
        )

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
        self.twin.reestimate_statistics(self.replicas.split(image) for image in chosen)

    def _validate(self) -> dict:
        errors = np.zeros((0, 1 + len(ANGLES)))  # of this worker's faces: NME, yaw, pitch, roll
        if self.validation is not None:
            landmarks_gt = np.stack([s.landmarks for s in self.validation.samples])
            landmarks, poses = predict(self.infer, self.validation, progress="validate")
            nme = metrics.nme(landmarks, landmarks_gt, metrics.normaliser(landmarks_gt, self.spec))
            errors = np.column_stack([nme, metrics.pose_errors(poses, self.validation.poses)])
        known = ~np.isnan(errors)
        sums, counts, faces = self.replicas.total([np.nansum(errors, 0), known.sum(0), np.full(4, len(errors))])
        names = ("val_nme_pct", *(f"val_{name}_deg" for name in ANGLES))
        if not faces.any():
            return dict.fromkeys(names)
        with np.errstate(invalid="ignore"):
            return dict(zip(names, (sums / counts * (100, 1, 1, 1)).tolist()))

    # --- what is on disk ----------------------------------------------------------------------------------------------

    def _save_models(self, row: dict) -> None:
        """Keeps the best NME; the chief writes last.keras and, where it is the best so far, best.keras."""
        nme = row["val_nme_pct"]
        sidecar = self.sidecar | {"epoch": self.epoch, "val_nme_pct": nme}
        is_best = nme is None or nme < self.best_nme
        if is_best:
            self.best_nme = float("inf") if nme is None else nme
        if not self.replicas.is_chief:
            return
        if is_best:
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
        """Returns the best validation NME as text, and whether training ended worse than it began."""
        scored = [(row["val_nme_pct"], row["epoch"]) for row in self.rows if row["val_nme_pct"] is not None]
        if not scored:
            return "not measured: no face was held out"
        (first, first_epoch), (last, last_epoch), (best, epoch) = scored[0], scored[-1], min(scored)
        line = f"{best:.2f} % (epoch {epoch})"
        if not epoch:
            line += "; no epoch was better than the weights it started from, and best.keras holds these"
        if last > first:
            line += (
                f"; training ended worse than it began: {last:.2f} % after epoch {last_epoch}, {first:.2f} % after "
                f"epoch {first_epoch}. Try a lower --lr"
            )
        return line

    def _variables(self) -> dict[str, keras.Variable]:
        """Returns the variables of model and optimizer by their paths.

        Keras counts the names it gives itself (dense_1) over all that a process builds; here they begin anew.
        """
        parts = [*self.model.layers, self.optimizer, getattr(self.optimizer, "inner_optimizer", None)]
        own = {type(part).__name__.lower() for part in parts} | {"seedgenerator"}
        names: dict[str, str] = {}
        counts: dict[str, int] = {}
        found = {}
        for variable in (*self.model.variables, *self.optimizer.variables):
            owner, _, rest = variable.path.partition("/")
            base = re.sub(r"_\d+$", "", owner)
            if owner not in names and base.replace("_", "") in own:
                counts[base] = counts.get(base, -1) + 1
                names[owner] = f"{base}_{counts[base]}" if counts[base] else base
            of = next((name for name in names if rest.startswith(f"{name}_")), None)  # what an optimizer keeps of it
            rest = rest if of is None else names[of] + rest.removeprefix(of)
            found[f"{names.get(owner, owner)}/{rest}"] = variable
        return found

    def _save_state(self) -> None:
        progress = {"epoch": self.epoch, "step": self.steps_done, "sums": self.sums}
        progress |= {"timed": self._timed() if self.steps_done else (0, 0.0)}
        progress |= {"best_nme": self.best_nme, "rows": self.rows}
        arrays = {path: np.asarray(variable) for path, variable in self._variables().items()}
        with replacing(self.folder / "state.npz") as temporary:
            np.savez(temporary, progress=json.dumps(progress), **arrays)

    def resume(self) -> None:
        """Loads state.npz of the run folder; without one the run starts at its first epoch, and that is said.

        Raises: InputError if it is damaged, or of another model: then it names what differs.
        """
        if self.replicas.is_chief:
            sweep(self.folder)
        path = self.folder / "state.npz"
        again = "Start again under another --name."
        anew = f"Go on from its weights: --weights {self.folder / 'last.keras'} --name NEW."
        try:
            content = read_arrays(path)
        except FileNotFoundError as error:
            left = [name for name in ("best.keras", "last.keras", "log.csv") if (self.folder / name).exists()]
            if left:
                raise InputError(f"{path}: missing, but {left[0]} is there; the run cannot go on. {again}") from error
            print(f"{path}: no epoch was saved yet, so the run starts at the first", file=sys.stderr)
            return
        if "v0" in content:
            raise InputError(f"{path}: of an earlier version, which numbered the variables. {anew}")
        try:
            progress = json.loads(str(content["progress"]))
            epoch, best, rows = int(progress["epoch"]), float(progress["best_nme"]), list(progress["rows"])
            step, sums = int(progress.get("step", 0)), dict(progress.get("sums", {}))
            timed = (int(progress["timed"][0]), float(progress["timed"][1]))
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}: damaged state ({str(error)[:80]}). {again}") from error
        variables = self._variables()
        stored = {name: array for name, array in content.items() if name != "progress"}
        differs = [f"{name} is new" for name in variables if name not in stored]
        differs += [f"{name} is not in this model" for name in stored if name not in variables]
        differs += [
            f"{name} is {array.shape}, here {tuple(variables[name].shape)}"
            for name, array in stored.items()
            if name in variables and array.shape != tuple(variables[name].shape)
        ]
        if differs:
            more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
            raise InputError(f"{path}: state of another model or optimizer ({'; '.join(differs[:3])}{more}). {again}")
        fits = all(isinstance(row, dict) and set(row) == set(LOG_COLUMNS) for row in rows)
        fits = fits and [row["epoch"] for row in rows if row["epoch"] != 0] == [*range(1, epoch + 1)]
        if not fits or not all(v.dtype.kind in "fiu" and np.isfinite(v).all() for v in stored.values()):
            raise InputError(f"{path}: damaged state. {again}")
        if epoch > self.plan.epochs:
            raise InputError(f"{path}: {epoch} epochs are done, --epochs is {self.plan.epochs}. {again}")
        self.epoch, self.best_nme, self.rows = epoch, best, rows
        self.steps_done, self.sums, self.timed = step, sums, timed
        for name, variable in variables.items():
            variable.assign(stored[name])


# --- what train.py asks for -------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Seeds Python, NumPy and TensorFlow; sets threads, determinism and the global dtype policy. Before any operation.

    Sums are split among threads, so bits depend on their number: --deterministic fixes it, in `args`, where args.json
    takes it from and `check_flags` compares it.
    """
    keras.utils.set_random_seed(args.seed)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    set_threads(args.threads)
    if args.mixed_precision:
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
        xla=args.xla,
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
        "hold_out": {"by": "photograph", "fraction": args.val_fraction},
        "seed": args.seed,
        "commit": cli.commit(),
    }


_FREE_ON_RESUME = {
    *("resume", "output", "name", "data_dir", "shape_model", "weights", "pose_labels", "cache", "cache_dir"),
    *("strategy", "devices", "scale_lr"),  # --lr is recorded as it is after scaling
}


def content_hashes(
    samples: Sequence[Sample], pose_labels: Path | None, shape_model: ShapeModel | None, weights: str
) -> dict[str, str]:
    """Returns what a run is made from, as `sha256:...` or in a word: a file that was moved is still the same.

    Args: samples: all faces. weights: of --weights. pose_labels, shape_model: None where the run uses none.
    """

    def sha256(*parts: object) -> str:
        whole = hashlib.sha256()
        for part in parts:
            whole.update(part.encode(errors="surrogateescape") if isinstance(part, str) else np.ascontiguousarray(part))
        return f"sha256:{whole.hexdigest()}"

    hashes = {"faces": sha256(*(part for s in samples for part in (s.name, s.landmarks)))}
    hashes["pose_labels"] = sha256(*(s.pose for s in samples if s.pose is not None)) if pose_labels else "none"
    hashes["shape_model"] = "none"
    if shape_model is not None:
        hashes["shape_model"] = sha256(shape_model.mean_shape, shape_model.eigenvectors, shape_model.eigenvalues)
    hashes["weights"] = weights
    if weights not in ("none", "imagenet"):
        try:
            hashes["weights"] = sha256(np.fromfile(find_model(weights), np.uint8))
        except OSError as error:
            raise InputError(f"--weights {weights}: cannot be read ({error.strerror or error}).") from error
    return hashes


def check_flags(folder: Path, args: argparse.Namespace, content: dict[str, str] | None = None) -> None:
    """Raises: InputError if a run is resumed with other flags than args.json has, or from other `content_hashes`.

    The result would be neither run's.
    """
    path = folder / "args.json"
    try:
        record = read_json(path)
        flags, had = dict(record["flags"]), dict(record.get("content", {}))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}). Start again under another --name.") from error
    if flags.get("epochs", args.epochs) != args.epochs and (folder / "last.keras").is_file():
        raise InputError(
            f"{path}: the run has --epochs {flags['epochs']}, now it is {args.epochs}, and the learning rate follows "
            f"from it. Resume with the same, or begin another run: --weights {folder / 'last.keras'} --name NEW."
        )
    free = _FREE_ON_RESUME if args.deterministic else {*_FREE_ON_RESUME, "threads"}
    for key, value in json.loads(json.dumps(vars(args), default=str)).items():
        if key not in free and key in flags and flags[key] != value:
            flag = "--" + key.replace("_", "-")
            raise InputError(f"{path}: the run has {flag} {flags[key]}, now it is {value}. Resume with the same flags.")
    for key, value in (content or {}).items():
        if had.get(key, value) != value:
            what = "the faces of the data" if key == "faces" else "--" + key.replace("_", "-")
            told = f"{had[key]!s:.15}, now {value:.15}"
            raise InputError(f"{path}: {what} changed since the run began ({told}). Resume with what it began with.")


def write_arguments(
    folder: Path,
    args: argparse.Namespace,
    counts: dict,
    replicas: Replicas | None = None,
    content: dict[str, str] | None = None,
) -> None:
    """Writes args.json: flags, versions, commit, counts. A resumed run adds to what the first one wrote.

    Raises: InputError if a run is resumed with other counts: its order of the faces would be another.
    """
    path = folder / "args.json"
    values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    versions |= {"numpy": np.__version__, "opencv": cv2.__version__}
    record = {
        "flags": values,
        "counts": counts,
        "content": content or {},
        "versions": versions,
        "commit": cli.commit(),
        "command": sys.argv,
    }
    record |= {} if replicas is None else {"workers": replicas.workers, "replicas": replicas.count}
    record |= {"cpus": os.cpu_count(), "gpus": len(tf.config.list_physical_devices("GPU"))}
    try:
        earlier = read_json(path)
        had = {key: earlier["counts"].get(key, value) for key, value in counts.items()}
        record["resumed_from"] = [*earlier.pop("resumed_from", []), earlier]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        had = counts  # a new run
    if had != counts:
        raise InputError(f"{path}: the run has {had}, now it is {counts}. Resume with the same data.")
    write_text(path, json.dumps(record, indent=2) + "\n")


def _finite_in_all_or_none(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Makes the gradients of all replicas NaN where one replica's are not finite: all must skip the step, or none."""
    poison = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32) * 0.0) for g in gradients])
    poison = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, poison)
    return [g + tf.cast(poison, g.dtype) for g in gradients]


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
    try:
        with writer.as_default(step=row["epoch"]):
            for key, value in row.items():
                if key != "epoch" and value is not None:
                    tf.summary.write(key, tf.constant(value, tf.float32), metadata=metadata)
        writer.flush()
    except tf.errors.OpError as error:  # a full disk, in TensorFlow's words
        raise InputError(f"tensorboard: cannot be written ({type(error).__name__}). Is the disk full?") from error


def _epoch_line(row: dict, epochs: int) -> str:
    line = (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.5f} (landmarks {row['loss_landmarks']:.5f}, asm "
        f"{row['loss_asm']:.5f}, pose {row['loss_pose']:.5f}), alpha {row['alpha']:g}, lr {row['lr']:.2e}, "
        f"{row['images_per_s']:.1f} images/s, {row['seconds']:.0f} s"
    )
    return line if row["val_nme_pct"] is None else f"{line}; {_validation_words(row)}"


def _validation_words(row: dict) -> str:
    angles = " / ".join(f"{row[f'val_{name}_deg']:.2f}" for name in ANGLES)
    return f"val NME {row['val_nme_pct']:.2f} %, yaw / pitch / roll {angles} deg"
