"""Runs a model over samples: network outputs -> landmarks in image pixels and pose in degrees (TensorFlow)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from asmnet_tf.config import CROPS, DatasetSpec, crop_scale
from asmnet_tf.datasets import Sample
from asmnet_tf.files import InputError
from asmnet_tf.geometry import denormalise
from asmnet_tf.input_pipeline import FacePatches
from asmnet_tf.models import count_multiply_adds, load_model, sidecar_path
from asmnet_tf.original import OURS, Convention, is_original, load_original_model
from asmnet_tf.pose import estimate_pose, unit_to_angles
from asmnet_tf.report import Method


def load_with_convention(path: Path) -> tuple[keras.Model, dict, Convention]:
    """Loads a `.keras` model with its side-car, or an `.h5` of the authors' release; and how to read their numbers.

    Raises: InputError if it cannot be loaded.
    """
    if not is_original(path):
        return *load_model(path), OURS
    model, convention = load_original_model(path)
    return model, {"crop": convention.crop, "convention": convention.describe()}, convention


def compiled(model: keras.Model, convention: Convention = OURS) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Returns the model's inference as one graph function: pixels (B, S, S, 3), any B -> outputs in network units."""
    size = model.input_shape[1]

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def infer(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(convention.to_network_input(tf.cast(images, tf.float32)), training=False)
        return [convention.landmarks_to_network_units(outputs[0]), convention.pose_to_network_units(outputs[1])]

    return infer


def predict(
    infer: Callable[[tf.Tensor], list[tf.Tensor]], patches: FacePatches, batch_size: int = 64, progress: str = "predict"
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts all faces.

    Returns: landmarks float64 (N, L, 2), image pixels; pose float64 (N, 3), yaw, pitch, roll in degrees.
    """
    landmarks, poses = [], []
    starts = range(0, len(patches), batch_size)
    for first in tqdm(starts, progress, unit="batch", disable=None, leave=False):
        outputs = infer(tf.constant(patches.crops(first, first + batch_size)))
        frames = patches.frames[first : first + batch_size]
        landmarks.append(denormalise(outputs[0].numpy().astype(np.float64), frames))
        poses.append(unit_to_angles(outputs[1].numpy().astype(np.float64)))
    return np.concatenate(landmarks), np.concatenate(poses)


def latency_ms(infer: Callable[[tf.Tensor], list[tf.Tensor]], size: int, repeats: int = 30) -> float:
    """Returns the median time of one call with one image, in ms, after three calls that do not count."""
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (1, size, size, 3)), tf.uint8)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        infer(image)[0].numpy()
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]) * 1000)


def score_model(name: str, path: Path, samples: list[Sample], spec: DatasetSpec, crop: str | None) -> Method:
    """Runs a `.keras` model, or one of the release, over samples; a `Method` for the report.

    The crop is `crop`, else what the side-car names, else, for a model of the release, the tight one.

    Raises: InputError for a model that cannot be loaded, of another number of landmarks, or with a bad side-car.
    """
    model, sidecar, convention = load_with_convention(path)
    count = model.output_shape[0][1] // 2
    if count != spec.num_landmarks:
        raise InputError(f"{path}: finds {count} landmarks, {spec.title} has {spec.num_landmarks}. Is --dataset right?")
    if not sidecar:
        print(f"{sidecar_path(path)}: absent, so crop {crop or 'square'} is assumed", file=sys.stderr)
    trained_crop = sidecar.get("crop", "square")
    if trained_crop not in CROPS:
        raise InputError(f"{sidecar_path(path)}: crop is {trained_crop!r}, expected {' or '.join(CROPS)}.")
    crop = crop or trained_crop
    scale = crop_scale(crop)
    if crop == trained_crop and "crop_scale" in sidecar:
        scale = sidecar["crop_scale"]
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0.1 < scale < 10:
            raise InputError(f"{sidecar_path(path)}: crop_scale is {scale!r}, expected a number like 1.2.")
    size = int(model.input_shape[1])
    infer = compiled(model, convention)
    patches = FacePatches(samples, crop, scale, size, margin=1.0)
    landmarks, pose = predict(infer, patches, progress=name)
    info = {
        "file": str(path),
        "crop": f"{crop} {scale:g}",
        "input_size": size,
        "parameters": model.count_params(),
        "multiply_adds": count_multiply_adds(model),
        "latency_ms": latency_ms(infer, size),
    }
    told = ("recipe", "loss", "dataset", "epoch", "seed", "commit", "convention")
    info |= {key: sidecar[key] for key in told if key in sidecar}
    return Method(name, landmarks, pose, estimate_pose(landmarks, spec), info)
