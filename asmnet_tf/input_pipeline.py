"""From samples to batches: decoded patches in memory, tf.data for training, plain batches for evaluation (TensorFlow).

Training and evaluation cut a face out of its image by the same code (`geometry.cut_patch`, `augmentation.render`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf import augmentation as aug
from asmnet_tf import geometry
from asmnet_tf.config import Augmentation
from asmnet_tf.datasets import Sample
from asmnet_tf.files import InputError
from asmnet_tf.pose import angles_to_unit

CACHE_LIMIT_BYTES = 4 << 30  # patches beyond this are decoded anew in every epoch


class FacePatches:
    """The image surroundings of every sample, decoded once and kept in memory while they fit `cache_limit` bytes.

    Args: samples: with a pose each. crop, crop_scale: which crop frame. size: the network's input side, pixels.
        margin: how much around the crop is kept; 1 where nothing is augmented.
    Raises: InputError naming the first image that cannot be read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        crop: str,
        crop_scale: float,
        size: int,
        margin: float = geometry.PATCH_MARGIN,
        cache_limit: int = CACHE_LIMIT_BYTES,
    ) -> None:
        self.samples = list(samples)
        self.size = size
        self.margin = margin
        self.frames = geometry.crop_frame(np.stack([s.bbox for s in self.samples]), crop, crop_scale)
        landmarks = np.stack([s.landmarks for s in self.samples]).astype(np.float64)
        self.landmarks_norm = geometry.normalise(landmarks, self.frames).astype(np.float32)
        self.poses = np.stack([np.full(3, np.nan) if s.pose is None else s.pose for s in self.samples])
        self._cached: list[geometry.Patch] | None = None
        side = min(size * geometry.PATCH_DETAIL * margin, float(self.frames[:, 2:].max()) * margin)
        if len(self.samples) * side * side * 3 <= cache_limit:
            self._cached = self._decode_all()

    def __len__(self) -> int:
        return len(self.samples)

    def _decode(self, i: int) -> geometry.Patch:
        return geometry.cut_patch(self.samples[i].read_image(), self.frames[i], self.size, self.margin)

    def _decode_all(self) -> list[geometry.Patch]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV decodes outside the interpreter lock
            patches = pool.map(self._decode, range(len(self)))
            try:
                return list(tqdm(patches, "images", len(self), unit="face", disable=None, leave=False))
            except InputError:
                pool.shutdown(cancel_futures=True)  # thousands of further images need not be read to say so
                raise

    def patch(self, i: int) -> geometry.Patch:
        """Returns the patch of sample i."""
        return self._decode(i) if self._cached is None else self._cached[i]

    def crops(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the un-augmented network inputs of samples first..last - 1, RGB uint8 (n, size, size, 3)."""
        indices = range(first, len(self) if last is None else min(last, len(self)))
        return np.stack([aug.render(self.patch(i), self.frames[i], None, self.size) for i in indices])


class TrainingBatches:
    """Augmented training batches, endless, a pure function of (seed, epoch, step): a resumed run sees the same ones.

    Args: flip, rotation and so on are drawn per face from a generator keyed by (seed, epoch, sample).
    """

    def __init__(self, patches: FacePatches, augmentation: Augmentation, batch_size: int, seed: int) -> None:
        if not np.isfinite(patches.poses).all():
            bad = patches.samples[int(np.argmin(np.isfinite(patches.poses).all(axis=1)))]
            raise InputError(f"{bad.image_path}: no head pose for this face (its landmarks are degenerate). Remove it.")
        self.patches = patches
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(patches))
        self.seed = seed
        self.steps_per_epoch = len(patches) // self.batch_size
        self.error: InputError | None = None

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, ...]:
        """Returns image, landmarks_norm, affine, flip, pose of one batch; the last incomplete batch is left out."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.patches))
        chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
        patches, size, count = self.patches, self.patches.size, len(chosen)
        images = np.empty((count, size, size, 3), np.uint8)
        affine, flip = np.empty((count, 2, 3), np.float32), np.empty(count, bool)
        pose = np.empty((count, 3), np.float32)
        for row, i in enumerate(chosen):
            rng = np.random.default_rng([self.seed, epoch, int(i)])
            frame = patches.frames[i]
            moved = aug.draw_motion(self.augmentation, frame, rng)
            image = aug.render(patches.patch(i), frame, moved, size)
            images[row] = aug.change_pixels(image, self.augmentation, rng)
            affine[row], flip[row] = moved.affine, moved.flip
            pose[row] = angles_to_unit(moved.move_pose(patches.poses[i]))
        return images, patches.landmarks_norm[chosen], affine, flip, pose

    def dataset(self, first_epoch: int = 0) -> tf.data.Dataset:
        """Returns the endless tf.data of dicts (see `losses.MultiTaskLoss`), from the start of `first_epoch` on."""
        size, length = self.patches.size, self.patches.landmarks_norm.shape[1]
        count = self.batch_size
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

        positions = tf.data.Dataset.range(first_epoch * self.steps_per_epoch, sys.maxsize)
        return positions.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)

    def iterate(self, first_epoch: int = 0) -> Iterator[dict[str, tf.Tensor]]:
        """Iterates over `dataset`; an image that does not decode raises its InputError."""
        iterator = iter(self.dataset(first_epoch))
        while True:
            try:
                yield next(iterator)
            except tf.errors.OpError:
                if self.error is not None:
                    raise self.error from None
                raise
