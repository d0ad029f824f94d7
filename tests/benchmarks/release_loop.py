"""Training throughput of `train.py` against a stand-in for the training loop of the authors' release.

The stand-in is written from its description, not from its code: batches of 3, an eager gradient tape,
Keras' own batch norm, images read and cropped on the training thread, and the ASM operator in a Python loop over the
samples that reads its three files again for each. It trains; the release's loop does not start.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Row

TURNS = 3
SIZE = 224


def release(seconds: float) -> dict[str, float]:
    """Returns images/s of the stand-in."""
    harness.use(harness.DEFAULT)
    import cv2
    import keras
    import numpy as np
    import tensorflow as tf
    import training_parts

    from asmnet_tf.data.geometry import crop_frame, landmark_box, normalise
    from asmnet_tf.network.asmnet import build_asmnet
    from asmnet_tf.shape.shape_model import ShapeModel

    samples = training_parts.training_samples(300)
    model = build_asmnet(68, SIZE)
    optimizer = keras.optimizers.Adam(1e-2)
    asm = ShapeModel.fit(training_parts.shapes_of(samples, "square")[0], "300w", "tight", 1.0).keep(90)

    def read(sample) -> tuple:
        image = cv2.imread(str(sample.image_path))[:, :, ::-1]
        box = landmark_box(sample.landmarks)
        x0, y0, x1, y1 = np.maximum(box, 0).astype(int)
        crop = cv2.resize(np.ascontiguousarray(image[y0 : y1 + 1, x0 : x1 + 1]), (SIZE, SIZE))
        return crop.astype(np.float32), normalise(sample.landmarks, crop_frame(box, "tight")), sample.pose / 65

    with tempfile.TemporaryDirectory() as folder:
        for name in ("mean_shape", "eigenvectors", "eigenvalues"):
            np.save(f"{folder}/{name}.npy", getattr(asm, name))

        def smooth(shape: np.ndarray) -> np.ndarray:
            mean, vectors, values = (
                np.load(f"{folder}/{name}.npy") for name in ("mean_shape", "eigenvectors", "eigenvalues")
            )
            b = vectors.T @ (shape - mean)
            for k in range(len(b)):
                limit = 3 * np.sqrt(values[k])
                b[k] = min(max(b[k], -limit), limit)
            return mean + vectors @ b

        def step(chosen: list) -> None:
            images, shapes, poses = (np.stack(part).astype(np.float32) for part in zip(*map(read, chosen)))
            smoothed = np.stack([smooth(shape) for shape in shapes]).astype(np.float32)
            with tf.GradientTape() as tape:
                landmarks, pose = model(images, training=True)
                loss = tf.reduce_mean(tf.square(shapes - landmarks)) + 2 * tf.reduce_mean(
                    tf.square(smoothed - landmarks)
                )
                loss += 0.5 * tf.reduce_mean(tf.square(poses - pose))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        step(samples[:3])
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += 3
            step(samples[count % 297 : count % 297 + 3])
        return {"images_per_s": count / (time.perf_counter() - start)}


def ours(seconds: float) -> dict[str, float]:
    """Returns images/s of our loop: real images, full augmentation, batch 32."""
    harness.use(harness.OURS)
    import training_parts

    with tempfile.TemporaryDirectory() as folder:
        trainer = training_parts.trainer(training_parts.training_samples(300), SIZE, 32, Path(folder))
        stream = trainer.batches.iterate()
        for _ in range(6):
            trainer.step(next(stream))["loss"].numpy()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            trainer.step(next(stream))["loss"].numpy()
            count += 32
        return {"images_per_s": count / (time.perf_counter() - start)}


def rows() -> list[Row]:
    """Lets the two take turns."""
    turns = [
        [harness.worker("release_loop.py", kind, 25)["images_per_s"] for kind in ("release", "ours")]
        for _ in range(TURNS)
    ]
    ratio = sorted(b / a for a, b in turns)[TURNS // 2]
    slow, fast = (sorted(column)[TURNS // 2] for column in zip(*turns))
    what = f"training, real images and augmentation, {SIZE} px"
    return [Row(what, "stand-in for the release's loop", ratio, "9", f"{fast:.1f} against {slow:.1f} images/s")]


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps({"release": release, "ours": ours}[sys.argv[2]](float(sys.argv[3]))))
    else:
        harness.main(rows)
