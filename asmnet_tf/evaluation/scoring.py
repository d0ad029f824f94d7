"""Runs a model over samples: network outputs -> landmarks in image pixels and pose in degrees."""

import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from asmnet_tf.data.geometry import denormalise, flip_landmarks
from asmnet_tf.data.layouts import DatasetSpec
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.pose import estimate_pose, unit_to_angles
from asmnet_tf.data.readers import Sample
from asmnet_tf.data.sidecars import crop_of
from asmnet_tf.evaluation.records import Method
from asmnet_tf.files import InputError
from asmnet_tf.formats.runners import Infer, open_model
from asmnet_tf.shape.shape_model import chunks

BATCH_SIZE = 64


def predict_faces(infer: Infer, patches: FacePatches, progress: str = "predict") -> tuple[np.ndarray, np.ndarray]:
    """Predicts all faces; those to come are read by other threads while the model works on a batch.

    Args:    infer: images (n, size, size, 3) -> `O_L` (n, 2L), `O_P` (n, 3), L as the patches have.
    Returns: landmarks float64 (N, L, 2), image pixels; pose float64 (N, 3), yaw, pitch, roll in degrees.
    """
    count = len(patches)
    landmarks, poses = np.empty((count, patches.landmarks_norm.shape[1] // 2, 2)), np.empty((count, 3))
    for rows, images in zip(chunks(count, progress, BATCH_SIZE), patches.batches_of_crops(BATCH_SIZE), strict=True):
        outputs, turns = infer(images), patches.angles[rows]
        landmarks[rows] = denormalise(np.asarray(outputs[0], np.float64), patches.frames[rows], turns)
        poses[rows] = unit_to_angles(np.asarray(outputs[1], np.float64), turns)
    return landmarks, poses


def with_mirror(infer: Infer, flip_map: list[int]) -> Infer:
    """Returns an inference that averages what `infer` says of an image and of its mirror image: two forward passes.

    The mirrored answer is turned back first: x -> -x, landmarks in the order of `flip_map`, yaw and roll negated. What
    the result says of a mirrored image is exactly the mirror of what it says of the image.
    """

    def mirrored(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        landmarks, pose = (np.asarray(output) for output in infer(images))
        flipped, turned = (np.asarray(output) for output in infer(np.ascontiguousarray(images[:, :, ::-1])))
        turned = turned * np.array([-1, 1, -1], turned.dtype)
        return (landmarks + flip_landmarks(flipped, flip_map)) / 2, (pose + turned) / 2

    return mirrored


def latency_ms(infer: Infer, size: int) -> float:
    """Returns the median time of 30 calls with one image, in ms, after three calls that do not count."""
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    times = timeit.repeat(lambda: np.asarray(infer(image)[0]), number=1, repeat=33)
    return float(np.median(times[3:]) * 1000)


def score_model(
    name: str,
    path: Path,
    samples: list[Sample],
    spec: DatasetSpec,
    crop: str | None,
    flip: bool = False,
    boxes: np.ndarray | None = None,
    part: Callable[[int], slice] = slice,
    total: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Method:
    """Runs a model file over samples, in the crop its side-car names or in `crop`; a `Method` for the report.

    With `flip` by `with_mirror`: the method is called "NAME + mirrored", latency and multiply-adds are of both passes.
    Where the side-car says that the model learned to be right of what it marks (`right_px`), the mean is put there.
    With `boxes` (N, 5) of `truth.detected_boxes` the crops are made from these; rows of NaN get no prediction.
    Of several workers each predicts `part` of the samples and `total` sums over all: see `distribution.Replicas`.

    Raises: InputError for a model that cannot be loaded, of another number of landmarks, or with a bad side-car.
    """
    model = open_model(path)
    count, sidecar = model.num_landmarks, model.sidecar
    if count != spec.num_landmarks:
        raise InputError(f"{path}: finds {count} landmarks, {spec.title} has {spec.num_landmarks}. Is --dataset right?")
    crop, scale = crop_of(path, sidecar, crop)
    infer = with_mirror(model.infer, spec.flip_map) if flip else model.infer
    found = np.ones(len(samples), bool) if boxes is None else np.isfinite(boxes).all(axis=1)
    own = np.flatnonzero(found)[part(int(found.sum()))]
    landmarks, pose = np.zeros((len(samples), spec.num_landmarks, 2)), np.zeros((len(samples), 3))
    if len(own):
        chosen = [samples[i] if boxes is None else replace(samples[i], bbox=boxes[i, :4]) for i in own]
        once = {"margin": 1.0, "cache": "none", "angles": None if boxes is None else boxes[own, 4]}
        patches = FacePatches(chosen, crop, scale, model.input_size, **once)
        landmarks[own], pose[own] = predict_faces(infer, patches, progress=name)
    landmarks, pose = total(landmarks), total(pose)
    landmarks[..., 0] += spec.right_px * (flip and "right_px" in sidecar)
    landmarks[~found], pose[~found] = np.nan, np.nan
    pose = pose if model.has_pose else None
    info = {"file": str(path), "crop": f"{crop} {scale:g}" + ("" if boxes is None else ", detector's boxes")}
    info |= {key: getattr(model, key) for key in ("format", "input_size", "parameters")}
    info["multiply_adds"] = model.multiply_adds and model.multiply_adds * (2 if flip else 1)
    info |= {"latency_ms": latency_ms(infer, model.input_size)} | ({"forward_passes": 2} if flip else {})
    told = ("recipe", "loss", "dataset", "epoch", "seed", "commit", "convention")
    info |= {key: sidecar[key] for key in told if key in sidecar}
    return Method(f"{name} + mirrored" if flip else name, landmarks, pose, estimate_pose(landmarks, spec), info)
