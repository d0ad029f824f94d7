"""From samples to batches: patches in a cache, tf.data for training, plain batches for evaluation (TensorFlow).

Training and evaluation cut a face out of its image by the same code (`geometry.cut_patch`, `augmentation.render`).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf.config import CACHES, Augmentation
from asmnet_tf.data import augmentation as aug
from asmnet_tf.data import geometry
from asmnet_tf.data.annotations import Sample
from asmnet_tf.data.patches import CacheError, DiskPatches, Settings, open_cache
from asmnet_tf.data.pose import angles_to_unit, cache_folder
from asmnet_tf.files import InputError, free_memory

MEMORY_LIMIT_BYTES = 4 << 30  # --cache auto keeps patches in memory up to this, and up to half of what is free
_BATCHES_AHEAD = 2  # that `batches_of_crops` prepares while the caller works on one


class FacePatches:
    """The image surroundings of every sample, for random access; the same pixels whichever cache holds them.

    Beside the cache, memory is a few numbers for each sample, never its pixels.

    Args:
        samples: with a pose each. crop, crop_scale: which crop frame. size: the network's input side, pixels.
        margin: how much around the crop is kept; 1 where nothing is augmented.
        cache: memory: decoded once and kept; disk: decoded once and written (see `patch_cache.py`); none: decoded at
            every use; auto: memory where all patches take less than MEMORY_LIMIT_BYTES and half of the free memory,
            else disk, or none where the folder cannot hold them.
        cache_dir: folder of the disk cache; default: `patches` in `pose.cache_folder()`.
    Raises: InputError naming the first image that cannot be read, or the folder that cannot be written.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        crop: str,
        crop_scale: float,
        size: int,
        margin: float = geometry.PATCH_MARGIN,
        cache: str = "auto",
        cache_dir: Path | None = None,
    ) -> None:
        if cache not in CACHES:
            raise ValueError(f"cache is {cache!r}; it is one of {', '.join(CACHES)}")
        self.samples = list(samples)
        self.size = size
        self.margin = margin
        self.frames = geometry.crop_frame(np.stack([s.bbox for s in self.samples]), crop, crop_scale)
        self.landmarks_norm = np.empty((len(self.samples), self.samples[0].landmarks.size), np.float32)
        for row, sample, frame in zip(self.landmarks_norm, self.samples, self.frames):
            row[:] = geometry.normalise(sample.landmarks.astype(np.float64), frame)
        self.poses = np.stack([np.full(3, np.nan) if s.pose is None else s.pose for s in self.samples])
        self._cached: list[geometry.Patch] | None = None
        self._disk: DiskPatches | None = None
        need = self._bytes()
        self.cache = cache
        if cache == "auto":
            self.cache = "memory" if need <= min(MEMORY_LIMIT_BYTES, free_memory() // 2) else "disk"
        if self.cache == "memory":
            self._cached = self._decode_all()
        elif self.cache == "disk":
            settings = Settings(crop, crop_scale, size, margin)
            root = cache_dir or cache_folder() / "patches"
            try:
                self._disk = open_cache(root, self.samples, self.frames, settings, self._decode, need)
            except CacheError as error:
                if cache == "disk":
                    raise
                print(f"{error} Without a cache, images are decoded anew in every epoch.", file=sys.stderr)
                self.cache = "none"

    def __len__(self) -> int:
        return len(self.samples)

    def _bytes(self) -> int:
        """Returns an upper bound of the bytes of all patches: of faces whose surroundings lie inside the image."""
        extent = self.frames[:, 2:]
        reach = extent * self.margin + 4  # whole pixels, one more on each side: see `geometry.cut_patch`
        kept = np.ceil(reach * np.minimum(1.0, self.size * geometry.PATCH_DETAIL / extent))
        return int((3 * kept.prod(axis=1)).sum()) + 128 * len(self)

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
        """Returns the patch of sample i. Raises: InputError naming an image that has to be read and cannot be."""
        if self._cached is not None:
            return self._cached[i]
        patch = None if self._disk is None else self._disk.read(i)
        return self._decode(i) if patch is None else patch

    def _crop(self, i: int) -> np.ndarray:
        return aug.render(self.patch(i), self.frames[i], None, self.size)

    def crops(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Returns the un-augmented network inputs of samples first..last - 1, RGB uint8 (n, size, size, 3)."""
        indices = range(first, len(self) if last is None else min(last, len(self)))
        return np.stack([self._crop(i) for i in indices])

    def batches_of_crops(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yields the un-augmented network inputs of all samples in turn, RGB uint8 (n, size, size, 3).

        The next ones are read by other threads while the caller works; memory is that of a few batches.

        Raises: InputError naming an image that has to be read and cannot be.
        """
        waiting: deque[list[Future]] = deque()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for first in range(0, len(self), batch_size):
                    indices = range(first, min(first + batch_size, len(self)))
                    waiting.append([pool.submit(self._crop, i) for i in indices])
                    if len(waiting) > _BATCHES_AHEAD:
                        yield np.stack([crop.result() for crop in waiting.popleft()])
                while waiting:
                    yield np.stack([crop.result() for crop in waiting.popleft()])
            finally:
                pool.shutdown(cancel_futures=True)


class TrainingBatches:
    """Augmented training batches, endless, a pure function of (seed, epoch, step): a resumed run sees the same ones.

    Flip, rotation and so on are drawn per face from a generator keyed by (seed, epoch, sample).

    Args:
        patches: of samples with a pose each (`datasets.trainable`).
        batch_size: faces of a step, in all workers together.
        part: number of faces of a step -> which of them this worker takes (`distribution.Replicas.part`); all of them.
    """

    def __init__(
        self,
        patches: FacePatches,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        part: Callable[[int], slice] = slice,
    ) -> None:
        self.patches = patches
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(patches))
        self.part = part(self.batch_size)
        self.seed = seed
        self.steps_per_epoch = len(patches) // self.batch_size
        self.error: InputError | None = None
        self._orders: dict[int, np.ndarray] = {}  # of the epochs in use; replaced, never changed: threads share it

    def batch(self, epoch: int, step: int) -> tuple[np.ndarray, ...]:
        """Returns image, landmarks_norm, affine, flip, pose of this worker's part of one batch.

        The last incomplete batch of an epoch is left out.
        """
        chosen = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size][self.part]
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

    def _order(self, epoch: int) -> np.ndarray:
        """Returns the order of the samples in an epoch; it is drawn once, for a draw costs as much as they are many."""
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.patches))
            self._orders = {**{e: o for e, o in self._orders.items() if abs(e - epoch) == 1}, epoch: order}
        return order

    def dataset(self, first_epoch: int = 0, first_step: int = 0) -> tf.data.Dataset:
        """Returns the endless tf.data of dicts (see `losses.MultiTaskLoss`), from that step of `first_epoch` on."""
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
