"""What the ASM operator adds to the compiled step, against per-sample loops; batch 50, 68 points."""

import harness

harness.use(harness.OURS)

import tempfile  # TensorFlow reads its environment when it is imported
from pathlib import Path

import numpy as np
import tensorflow as tf
import training_parts
from harness import Row

from asmnet_tf.network.loss import MultiTaskLoss

BATCH, INSIDE, TURNS = 50, 400, 9
NAMES = ("mean_shape", "eigenvectors", "eigenvalues")


def rows() -> list[Row]:
    """Times the whole loss with and without the ASM term, many times inside one graph, and the loops."""
    samples = training_parts.training_samples()
    shapes = training_parts.shapes_of(samples, "square")[0]
    model = training_parts.ShapeModel.fit(shapes, "300w", "square", 1.2).keep(90)
    batch = training_parts.random_batch(BATCH, 32) | {"landmarks_norm": tf.constant(shapes[:BATCH], tf.float32)}
    landmarks, pose = tf.constant(shapes[50 : 50 + BATCH], tf.float32), batch["pose"] * 0.9
    compiled = {}
    for name, asm in (("with", model), ("without", None)):
        loss = MultiTaskLoss(training_parts.SPEC.flip_map, asm)

        @tf.function
        def repeat(landmarks: tf.Tensor, loss=loss) -> tf.Tensor:
            total = tf.zeros([])
            for _ in tf.range(INSIDE):  # depends on the last turn, so that nothing is computed only once
                total += loss(landmarks + total * 1e-9, pose, batch, tf.constant(1.0))["loss"]
            return total

        compiled[name] = repeat
    arrays = {name: getattr(model, name) for name in NAMES}

    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            np.save(Path(folder) / f"{name}.npy", arrays[name])

        def read() -> list[np.ndarray]:
            return [np.load(Path(folder) / f"{name}.npy") for name in NAMES]

        def smooth(shape: np.ndarray, mean: np.ndarray, vectors: np.ndarray, values: np.ndarray) -> np.ndarray:
            b = vectors.T @ (shape - mean)
            for k in range(len(b)):
                limit = 3 * np.sqrt(values[k])
                b[k] = min(max(b[k], -limit), limit)
            return mean + vectors @ b

        def per_sample() -> np.ndarray:
            return np.stack([smooth(shape, *read()) for shape in shapes[:BATCH]])

        def per_step() -> np.ndarray:
            files = read()
            return np.stack([smooth(shape, *files) for shape in shapes[:BATCH]])

        assert np.allclose(per_sample(), model.smooth(shapes[:BATCH]), atol=1e-9)
        cases = {name: lambda f=f: f(landmarks).numpy() for name, f in compiled.items()}
        seconds = harness.interleave(cases | {"sample": per_sample, "step": per_step}, TURNS, warm_up=2)
    added = float(np.median(seconds["with"] - seconds["without"])) / INSIDE
    loops = {name: float(np.median(seconds[name])) for name in ("sample", "step")}
    detail = f"adds {added * 1e3:.4f} ms to the step, K = {model.num_components}; loop "
    what = "ASM operator, batch 50, 68 points"
    return [
        Row(
            what,
            "loop, files read per sample",
            loops["sample"] / added,
            "150",
            f"{detail}{loops['sample'] * 1e3:.2f} ms",
        ),
        Row(what, "loop, files read per step", loops["step"] / added, "", f"{detail}{loops['step'] * 1e3:.2f} ms"),
    ]


if __name__ == "__main__":
    harness.main(rows)
