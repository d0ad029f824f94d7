"""The training loop: one `tf.function` step under a tf.distribute strategy, state on disk by epoch (TensorFlow).

An epoch that was cut off is repeated as it was: batches depend on (seed, epoch, step) alone, and dropout's seeds are
among the variables of the state.
"""

import contextlib
import math
import signal
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf.config import ANGLES, HEAD_AUGMENTATIONS, HEAD_FACES, HEAD_RIDGE, Recipe, crop_scale
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.pose import angles_to_unit
from asmnet_tf.data.readers import Sample
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.scoring import predict_faces
from asmnet_tf.files import EXIT_INTERRUPTED, InputError, Stopped, StopSignals, make_folder
from asmnet_tf.formats.keras_runners import compiled
from asmnet_tf.network import asmnet, checkpoints, keras
from asmnet_tf.network.fast_graphs import TrainingGraph
from asmnet_tf.network.loss import MultiTaskLoss, alpha_at, move
from asmnet_tf.shape.training_shapes import shapes_of
from asmnet_tf.training import run_folder
from asmnet_tf.training.distribution import Replicas
from asmnet_tf.training.run_folder import LOG_COLUMNS, Progress
from asmnet_tf.training.schedule import Plan

STATISTICS_IMAGES = 640  # training images that batch-norm statistics are re-estimated from, before a validation
FINAL_STATISTICS_IMAGES = 2560  # ... and after the last epoch of a phase
TIMED_STEPS = 20  # before it says how long the run will take


def start_model(
    model: keras.Model,
    start: checkpoints.StartWeights | None,
    recipe: Recipe,
    faces: Sequence[Sample],
    spec: DatasetSpec,
    fit_head: bool,
) -> tuple[list[str], bool]:
    """Makes a new model say the mean face, where the recipe has it so, and gives it the weights of `start`.

    Args:    faces: those to train on. fit_head: fit a landmark head of other points to them.
    Returns: the layers that received weights, and whether the landmark head is among them or was fitted.
    """
    if recipe.start_at_mean:
        pose = np.zeros(3) if faces[0].pose is None else angles_to_unit([face.pose for face in faces]).mean(axis=0)
        asmnet.start_at_mean(model, shapes_of(faces, recipe.crop)[0].mean(axis=0), pose)
    frame, size = (recipe.crop, crop_scale(recipe.crop)), model.input_shape[1]
    received = checkpoints.set_weights(model, start, frame) if start else []
    has_head = "O_L" in received
    if start and "O_L" in start.layers and not has_head and fit_head:  # of other points
        some = FacePatches(faces[:: 1 + len(faces) // HEAD_FACES], *frame, size, margin=1.0, cache="none")
        seen = some.batches_of_crops(64), some.landmarks_norm
        has_head = checkpoints.fit_landmark_head(model, start, *seen, flip_map=spec.flip_map)
    return received, has_head


@dataclass(eq=False)
class Trainer:
    """Trains a model in one phase of a run, on TrainingBatches, and validates on FacePatches after each epoch.

    Args:
        model: of outputs O_L and O_P, made in the scope of the strategy of `replicas`; it is what gets saved.
        validation: held-out faces, of several workers this one's part, or None: where no worker has any, the last
            epoch's model is also the best.
        folder: of the run. sidecar: what is written beside each saved model.
    Raises: InputError for fewer images in a step than replicas.
    """

    model: keras.Model
    batches: TrainingBatches
    validation: FacePatches | None
    loss: MultiTaskLoss
    plan: Plan
    spec: DatasetSpec
    folder: Path
    sidecar: dict
    replicas: Replicas = field(default_factory=Replicas)

    def __post_init__(self) -> None:
        size, count, self.strategy = self.batches.batch_size, self.replicas.count, self.replicas.strategy
        if size < count:
            raise InputError(f"--batch-size {size}: fewer images than the {count} replicas. Use more.")
        if self.plan.xla and count > 1:
            raise InputError("--xla: for one replica only; leave it out or take --strategy one.")
        with self.strategy.scope():
            self.graph = TrainingGraph(self.model, self.strategy)
            self.optimizer = _build_optimizer(self.plan, self.model)
            self.alpha = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="alpha")
            self.stop = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="stop")  # 1: a signal came
        self.infer = compiled(self.model)
        self.progress = Progress()
        self.faces_validated = 0  # of all workers
        self.is_time_told, self.building_s = False, 0.0  # building_s: what the step took that builds the graph
        self.signals = StopSignals()
        self.step = tf.function(self._step, jit_compile=self.plan.xla or None)

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
                landmarks, pose = self.graph.model(tf.cast(batch["image"], tf.float32), training=True)
                losses = {k: v * share for k, v in self.loss(landmarks, pose, batch, self.alpha).items()}
                # heads' L2 where --l2-heads is above zero; the release builds it but never adds it
                total = losses["loss"] + (tf.add_n(self.model.losses) / replicas if self.model.losses else 0.0)
                scaled = self.optimizer.scale_loss(total)
            variables = self.model.trainable_variables
            gradients = tape.gradient(scaled, variables)
            finite = tf.math.is_finite(total)
            if not self.plan.mixed_precision:  # there an overflow is no defect, and the optimizer skips such steps
                finite &= tf.math.is_finite(tf.linalg.global_norm(gradients))
                gradients = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
            elif replicas > 1:  # all skip the step, or none: not finite in one replica makes them NaN in all
                poison = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32) * 0.0) for g in gradients])
                poison = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, poison)
                gradients = [g + tf.cast(poison, g.dtype) for g in gradients]
            self.optimizer.apply(gradients, variables)  # it sums the gradients of all replicas
            return losses | {"finite": tf.cast(finite, tf.float32), "stop": tf.identity(self.stop)}

        per_replica = self.strategy.run(replica, args=(batch,))
        return {k: self.strategy.reduce(tf.distribute.ReduceOp.SUM, v, axis=None) for k, v in per_replica.items()}

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, score_start: bool = False) -> None:
        """Trains from `self.progress.epoch` to the end of the phase; an optimiser ends with it, see `_state`.

        Args: score_start: the model is whole before its first epoch: it is validated as it is, as epoch 0 of the log,
            and is best.keras until another is better.

        Raises: InputError where loss or gradient is not finite; best.keras, last.keras and the state stay those of the
            last good epoch. Stopped after SIGTERM or Ctrl-C, the state saved with the steps done in this epoch.
        """
        # all workers are to go on from the same step with the same weights and faces
        names = "\0".join(sample.name for sample in self.batches.patches.samples).encode(errors="surrogateescape")
        weights = b"".join(array.tobytes() for array in self.model.get_weights())
        flags = {"epochs": self.plan.epochs, "seed": self.batches.seed, "batch_size": self.batches.batch_size}
        faces = {"training_faces": len(self.batches.patches), "checksum_of_their_names": zlib.crc32(names)}
        made = {"steps_done": self.progress.step, "checksum_of_the_weights": zlib.crc32(weights)}
        self.replicas.check_agreement(**flags, **faces, **made)
        self.replicas.part_seeds(self.model)
        if self.replicas.is_chief:
            self.writer = tf.summary.create_file_writer(str(make_folder(self.folder / "tensorboard")))
        stream = self.batches.iterate(self.progress.epoch, self.progress.step)
        with self.signals:
            if score_start and not self.progress.rows and not self.progress.step:
                row = dict.fromkeys(LOG_COLUMNS) | {"epoch": 0} | self._validate()
                if row["val_nme_pct"] is not None:
                    self._save_models(row)
                    self._save_row(row)
            for epoch in range(self.progress.epoch, self.plan.end):
                row = dict.fromkeys(LOG_COLUMNS) | self._train_epoch(epoch, stream)
                if not all(np.isfinite(w).all() for w in self.model.get_weights()):
                    told = f"weights are not finite after epoch {epoch + 1}"
                    raise InputError(f"{self.folder}: {told}. Try a lower --lr.")
                self.progress = Progress(epoch + 1, best_nme=self.progress.best_nme, rows=self.progress.rows)
                last = epoch + 1 == self.plan.end
                if last or (epoch + 1) % self.plan.validate_every == 0:
                    with self._averaged_weights(keep=last and epoch + 1 < self.plan.epochs):
                        self._reestimate(epoch, FINAL_STATISTICS_IMAGES if last else STATISTICS_IMAGES)
                        if epoch + 1 == self.plan.epochs and self.plan.recipe.fit_heads:
                            self._fit_heads()
                        row |= self._validate()
                        self._save_models(row)
                self._save_row(row)
        if self.replicas.is_chief and self.plan.end == self.plan.epochs:
            since = self.plan.best_from
            rows = [row for row in self.progress.rows if row["epoch"] > since or not since]
            print(f"{self.folder / 'best.keras'}: {run_folder.best_line(rows, self.faces_validated)}")

    def _save_row(self, row: dict) -> None:
        self.progress.rows.append(row)
        if self.replicas.is_chief:
            ended = self.progress.epoch == self.plan.epochs
            run_folder.write_log(self.folder, self.progress.rows, draw=ended or row["val_nme_pct"] is not None)
            self._save_state()  # last: what it describes is on disk by now
            print(run_folder.epoch_line(row, self.plan.epochs), flush=True)
            run_folder.write_summaries(self.writer, row)

    def _train_epoch(self, epoch: int, stream: Iterator[dict[str, tf.Tensor]]) -> dict:
        self.alpha.assign(alpha_at(epoch, self.plan.alpha_length, self.plan.recipe.alpha))
        steps = self.batches.steps_per_epoch
        first = (epoch - self.plan.start) * steps
        before = self.progress.step  # of a run that was stopped in this epoch
        start = now = time.perf_counter()
        title = f"epoch {epoch + 1}/{self.plan.epochs}"
        quiet = None if self.replicas.is_chief else True  # None: where stderr is no terminal
        with tqdm(total=steps, desc=title, unit="step", initial=before, disable=quiet, leave=False) as bar:
            for i in range(before, steps):
                self.optimizer.learning_rate.assign(self.plan.lr_at(first + i))
                self.stop.assign(float(self.signals.received is not None))
                losses = {k: float(v) for k, v in self.step(self.replicas.split(next(stream))).items()}
                stop = losses.pop("stop") > 0
                if losses.pop("finite") < self.replicas.count:
                    saved = "The last good model is last.keras. " if (self.folder / "last.keras").exists() else ""
                    at = f"loss {losses['loss']} or its gradient is not finite in epoch {epoch + 1}, step {i + 1}"
                    raise InputError(f"{self.folder}: {at}. {saved}Try a lower --lr.")
                self.progress.sums = {k: self.progress.sums.get(k, 0.0) + v for k, v in losses.items()}
                self.progress.step = i + 1
                took, now = time.perf_counter() - now, time.perf_counter()
                if self.building_s:
                    self.progress.timed = (self.progress.timed[0] + 1, self.progress.timed[1] + took)
                else:
                    self.building_s = took
                timed, seconds = self.progress.timed
                if not (quiet or self.is_time_told) and timed >= min(TIMED_STEPS, max(1, steps - 2)):
                    self.is_time_told = True
                    bar.clear()
                    print(self.plan.time_left(epoch + (i + 1) / steps, seconds / timed * steps), flush=True)
                if stop or (self.replicas.workers == 1 and self.signals.received is not None):
                    self._stop()
                if i % 10 == 0:
                    bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
                bar.update()
        timed, seconds = self._timed()
        return {
            "epoch": epoch + 1,
            **{k: v / steps for k, v in self.progress.sums.items()},
            "alpha": float(self.alpha.numpy()),
            "lr": self.plan.lr_at(first + steps - 1),
            "images_per_s": timed * self.batches.batch_size / max(seconds, 1e-9),
            "seconds": time.perf_counter() - start,
        }

    def _timed(self) -> tuple[int, float]:
        """Returns how many steps of this epoch took how many seconds; the one that builds the graph if it is alone."""
        return self.progress.timed if self.progress.timed[0] else (1, self.building_s)

    def _stop(self) -> None:
        """Raises Stopped, the state saved."""
        if self.replicas.is_chief:
            self._save_state()
        done = f"epoch {self.progress.epoch + 1}, step {self.progress.step} of {self.batches.steps_per_epoch}"
        is_ours = self.signals.received == signal.SIGINT  # else preempted, also where another worker was told
        why, code = ("interrupted", EXIT_INTERRUPTED) if is_ours else ("preempted", 0)
        raise Stopped(f"{self.folder}: {why}: {done} is saved; go on with --resume", code)

    @contextlib.contextmanager
    def _averaged_weights(self, keep: bool) -> Iterator[None]:
        """Puts the weights' moving averages, if the plan has any, in the weights' place: for a while, or to `keep`."""
        variables = self.model.trainable_variables if self.plan.recipe.ema else []
        weights = [v.numpy() for v in variables]
        if variables:
            self.optimizer.finalize_variable_values(variables)
        yield
        for variable, weight in zip(variables, [] if keep else weights):
            variable.assign(weight)

    def _reestimate(self, epoch: int, images: int) -> None:
        steps = min(self.batches.steps_per_epoch, max(1, images // self.batches.batch_size))
        chosen = (self.batches.batch(epoch, step)[0] for step in range(steps))
        self.graph.reestimate_statistics(self.replicas.split(image) for image in chosen)

    def _fit_heads(self) -> None:
        names = ["O_L", "O_P"] if self.loss.pose_weight else ["O_L"]

        def batches() -> Iterator[tuple[np.ndarray, ...]]:  # all, in every worker
            for faces in map(self.batches.whole, HEAD_AUGMENTATIONS):
                for step in range(faces.steps_per_epoch):
                    images, shapes, affine, flip, pose = faces.batch(0, step)
                    yield images, move(shapes, affine, flip, self.loss.flip_map).numpy(), pose

        if self.replicas.is_chief:
            print(f"the heads are fitted in closed form to {self.batches.faces_per_epoch} faces", flush=True)
        checkpoints.fit_heads(self.model, names, batches(), HEAD_RIDGE)
        self.replicas.take_from_chief([v for name in names for v in self.model.get_layer(name).weights])

    def _validate(self) -> dict:
        errors = np.zeros((0, 1 + len(ANGLES)))  # of this worker's faces: NME, yaw, pitch, roll
        if self.validation is not None:
            landmarks_gt = np.stack([s.landmarks for s in self.validation.samples])
            landmarks, poses = predict_faces(self.infer, self.validation, progress="validate")
            nme = metrics.nme(landmarks, landmarks_gt, metrics.normaliser(landmarks_gt, self.spec))
            errors = np.column_stack([nme, metrics.pose_errors(poses, self.validation.poses)])
        known = ~np.isnan(errors)
        sums, counts, faces = self.replicas.total([np.nansum(errors, 0), known.sum(0), np.full(4, len(errors))])
        self.faces_validated = int(faces[0])
        means = (sums / np.maximum(counts, 1) * (100, 1, 1, 1)).tolist()
        return {name: mean if count else None for name, mean, count in zip(LOG_COLUMNS[-4:], means, counts)}

    # --- what is on disk ----------------------------------------------------------------------------------------------

    def _save_models(self, row: dict) -> None:
        """Keeps the best NME; the chief writes last.keras and, where it is the best so far, best.keras."""
        nme = row["val_nme_pct"]
        sidecar = self.sidecar | {"epoch": self.progress.epoch, "val_nme_pct": nme}
        is_best = nme is None or nme < self.progress.best_nme
        if is_best:
            self.progress.best_nme = float("inf") if nme is None else nme
        if self.replicas.is_chief:
            for name in ("best.keras", "last.keras") if is_best else ("last.keras",):
                checkpoints.save_model(self.model, self.folder / name, sidecar)

    def _save_state(self) -> None:
        timed = self._timed() if self.progress.step else (0, 0.0)
        run_folder.save_state(self.folder, replace(self.progress, timed=timed), self._state())

    def _state(self) -> dict[str, keras.Variable]:
        """Returns what state.npz holds: between two phases the model alone, for each has an optimizer of its own."""
        between = self.progress.epoch in (self.plan.start, self.plan.end) and 0 < self.progress.epoch < self.plan.epochs
        optimizer = None if between and not self.progress.step else self.optimizer
        return run_folder.variables_by_path(self.model, optimizer)

    def go_on(self, progress: Progress, stored: dict[str, np.ndarray] | None = None) -> None:
        """Goes on from the phase before, or from `stored` of a run. Raises: InputError if that is of another model."""
        self.progress = progress
        if stored:
            run_folder.assign_variables(self.folder, self._state(), stored)
        if 0 < progress.epoch == self.plan.best_from:
            progress.best_nme = math.inf


def _build_optimizer(plan: Plan, model: keras.Model) -> keras.optimizers.Optimizer:
    decay, momentum = plan.recipe.weight_decay or None, plan.recipe.ema
    kind = keras.optimizers.AdamW if decay else keras.optimizers.Adam
    optimizer = kind(plan.left[0].lr, weight_decay=decay, use_ema=bool(momentum), ema_momentum=momentum or 0.99)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    if plan.mixed_precision:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
