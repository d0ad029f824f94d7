"""Augmented training batches: patches, moved and changed at random, in a tf.data pipeline (TensorFlow)."""

import copy
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import tensorflow as tf

from asmnet_tf.config import Augmentation
from asmnet_tf.data import augmentation as aug
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.pose import angles_to_unit
from asmnet_tf.files import InputError


class TrainingBatches:
    """Augmented training batches, endless, a pure function of (seed, epoch, step): a resumed run sees the same ones.

    Flip, rotation and so on are drawn per face from a generator keyed by (seed, epoch, sample), of an extra face also
    by its place in the epoch, where it may stand more than once.

    Args:
        patches: of samples with a pose each (`annotations.trainable`), or none with one.
        batch_size: faces of a step, in all workers together.
        extra, extra_weight: how many of the last samples are extra ones, and how often an epoch has each of them.
        part: number of faces of a step -> which of them this worker takes (`distribution.Replicas.part`); all of them.
        right_px: how far the annotations lie right of what they mark, as they are to do on a mirrored face; pixels.
    """

    def __init__(
        self,
        patches: FacePatches,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        part: Callable[[int], slice] = slice,
        extra: int = 0,
        extra_weight: float = 1.0,
        right_px: float = 0.0,
    ) -> None:
        self.patches, self.augmentation, self.seed, self.right_px = patches, augmentation, seed, right_px
        self.own = own = len(patches) - extra
        extra_used = max(round(extra_weight * extra), int(extra > 0))
        self.faces_per_epoch = own + extra_used
        self.batch_size = min(batch_size, self.faces_per_epoch)
        self.part = part(self.batch_size)
        self.steps_per_epoch = self.faces_per_epoch // self.batch_size  # without the last incomplete batch
        self.error: InputError | None = None

        @functools.lru_cache(4)  # a draw costs as much as the samples are many
        def order(epoch: int) -> np.ndarray:
            rng = np.random.default_rng([seed, epoch])
            some = own + np.resize(rng.permutation(extra), extra_used) if extra else ()
            return rng.permutation(np.concatenate([np.arange(own), some]).astype(int))

        self._order = order

    def whole(self, augmentation: Augmentation) -> Self:
        """Returns the same batches and the last incomplete one, with the parts of all workers, otherwise augmented."""
        batches = copy.copy(self)
        batches.augmentation, batches.part = augmentation, slice(None)
        batches.steps_per_epoch = math.ceil(self.faces_per_epoch / self.batch_size)
        return batches

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, ...]:
        """Returns image, landmarks_norm, affine, flip, pose of this worker's part of one batch."""
        places = range(self.faces_per_epoch)[step * self.batch_size : (step + 1) * self.batch_size][self.part]
        chosen = self._order(epoch)[list(places)]
        patches, size, count = self.patches, self.patches.size, len(chosen)
        images = np.empty((count, size, size, 3), np.uint8)
        affine, flip = np.empty((count, 2, 3), np.float32), np.empty(count, bool)
        pose = np.empty((count, 3), np.float32)
        for row, (place, i) in enumerate(zip(places, chosen.tolist())):
            rng = np.random.default_rng([self.seed, epoch, i, *[place] * (i >= self.own)])
            frame = patches.frames[i]
            moved = aug.draw_motion(self.augmentation, frame, rng)
            image = aug.render(patches.patch(i), frame, moved, size)
            images[row] = aug.change_pixels(image, self.augmentation, rng)
            affine[row], flip[row] = moved.affine, moved.flip
            pose[row] = np.nan_to_num(angles_to_unit(moved.move_pose(patches.poses[i])))  # unknown: its loss weighs 0
        landmarks_norm = patches.landmarks_norm[chosen]
        landmarks_norm[:, ::2] -= (2 * self.right_px * flip / patches.frames[chosen, 2])[:, None]
        return images, landmarks_norm, affine, flip, pose

    def dataset(self, first_epoch: int = 0, first_step: int = 0) -> tf.data.Dataset:
        """Returns the endless tf.data of dicts (see `loss.MultiTaskLoss`), from that step of `first_epoch` on."""
        size, length = self.patches.size, self.patches.landmarks_norm.shape[1]
        count = len(range(self.batch_size)[self.part])
        keys = ("image", "landmarks_norm", "affine", "flip", "pose")
        shapes = ([count, size, size, 3], [count, length], [count, 2, 3], [count], [count, 3])
        types = (tf.uint8, tf.float32, tf.float32, tf.bool, tf.float32)

        def make(position: np.ndarray) -> tuple[np.ndarray, ...]:
            try:
                return self.batch(*divmod(int(position), self.steps_per_epoch))
            except InputError as error:  # would reach the training loop as an op error with a traceback in it
                self.error = error
                raise

        def load(position: tf.Tensor) -> dict[str, tf.Tensor]:
            tensors = tf.numpy_function(make, [position], types)
            return {k: tf.ensure_shape(t, s) for k, t, s in zip(keys, tensors, shapes)}

        positions = tf.data.Dataset.range(first_epoch * self.steps_per_epoch + first_step, sys.maxsize)
        return positions.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)

    def iterate(self, first_epoch: int = 0, first_step: int = 0) -> Iterator[dict[str, tf.Tensor]]:
        """Iterates over `dataset`; an image that does not decode raises its InputError."""
        iterator = iter(self.dataset(first_epoch, first_step))
        while True:
            try:
                yield next(iterator)
            except tf.errors.OpError:
                if self.error is not None:
                    raise self.error from None
                raise
