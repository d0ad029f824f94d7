"""What several training benchmarks build: a step, its inputs and the real training faces (imports TensorFlow)."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf
from harness import DATA

from asmnet_tf import config
from asmnet_tf.data import annotations
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.network.asmnet import build_asmnet
from asmnet_tf.network.loss import MultiTaskLoss
from asmnet_tf.shape.shape_model import ShapeModel
from asmnet_tf.shape.training_shapes import shapes_of
from asmnet_tf.training.schedule import Plan
from asmnet_tf.training.trainer import Trainer

SPEC = DATASETS["300w"]


def random_shape_model() -> ShapeModel:
    """Returns a 90 % shape model of random shapes, for steps whose speed does not depend on the numbers."""
    shapes = np.random.default_rng(0).normal(size=(500, 136))
    return ShapeModel.fit(shapes, "300w", "square", 1.2).keep(90)


def random_batch(count: int, size: int) -> dict[str, tf.Tensor]:
    """Returns a batch of random numbers in the form that `trainer.Trainer.step` takes."""
    rng = np.random.default_rng(0)
    return {
        "image": tf.constant(rng.integers(0, 256, (count, size, size, 3), np.uint8)),
        "landmarks_norm": tf.constant(rng.uniform(-0.5, 0.5, (count, 136)).astype(np.float32)),
        "affine": tf.constant(np.tile(np.eye(2, 3, dtype=np.float32), (count, 1, 1))),
        "flip": tf.constant(rng.random(count) < 0.5),
        "pose": tf.constant(rng.uniform(-1, 1, (count, 3)).astype(np.float32)),
    }


def trainer(samples: list[annotations.Sample] | None, size: int, batch: int, folder: Path) -> Trainer:
    """Returns a Trainer of recipe `tuned` over real faces, or without any (None) for its step alone."""
    recipe = config.RECIPES["tuned"]
    model = build_asmnet(68, size, recipe.dropout, 0.0)
    batches = SimpleNamespace(batch_size=batch)
    if samples is not None:
        patches = FacePatches(samples, "square", config.SQUARE_CROP_SCALE, size)
        batches = TrainingBatches(patches, config.AUGMENTATIONS[recipe.phases[0].augment], batch, seed=0)
    asm = (
        random_shape_model()
        if samples is None
        else ShapeModel.fit(shapes_of(samples, "square")[0], "300w", "square", 1.2).keep(90)
    )
    loss = MultiTaskLoss(SPEC.flip_map, asm, recipe.landmark_loss)
    plan = Plan(recipe, 0, steps_per_epoch=100)
    return Trainer(model, batches, None, loss, plan, SPEC, folder, {})


def build(ours: bool, size: int) -> tuple[Callable, Callable, Callable]:
    """Returns (training step, forward in inference mode, forward in training mode): ours or a stock Keras model's."""
    made = trainer(None, size, 32, Path())
    made.alpha.assign(1.0)
    model = made.model
    if ours:
        step, graph = made.step, made.graph.model
    else:
        optimizer = keras.optimizers.Adam(1e-3)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            with tf.GradientTape() as tape:
                landmarks, pose = model(tf.cast(batch["image"], tf.float32), training=True)
                result = made.loss(landmarks, pose, batch, made.alpha)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(result["loss"], variables), variables)
            return result

        graph = model
    return step, tf.function(lambda x: model(x, training=False)), tf.function(lambda x: graph(x, training=True))


def training_samples(limit: int | None = None) -> list[annotations.Sample]:
    """Returns the 300W training faces of $ASMNET_DATA with their pose. Raises: SystemExit where there are none."""
    folder = DATA / "300w"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no 300W here; set ASMNET_DATA to the folder that holds 300w/")
    return annotations.with_pose(annotations.read_samples(SPEC, folder, "train", limit), SPEC, folder, None)
