"""The compiled training step against the same step with Keras' own batch normalisation, and against its bound.

Our step and the stock one run in worker processes that take turns: a process sets TensorFlow's allocator and kernels
once. `stock` is the Keras model as it is, trained by Keras' Adam in a `tf.function`, in the environment TensorFlow
chooses; `stock, our settings` is the same with the allocator and the kernels of our scripts.
"""

from __future__ import annotations

import json
import sys

import harness
import numpy as np
from harness import Row

BATCH = 32
SIZES = ((224, "1.75", "0.95"), (112, "1.7", "0.95"))
TURNS = 3
REPEATS = 5


def measure(kind: str, size: int) -> dict[str, float]:
    """Returns images/s of the step and of the forward pass, in inference and training mode."""
    harness.use(harness.DEFAULT if kind == "stock" else harness.OURS)
    import tensorflow as tf
    import training_parts

    step, inference, training_mode = training_parts.build(kind == "ours", size)
    batch = training_parts.random_batch(BATCH, size)
    images = tf.cast(batch["image"], tf.float32)
    cases = {"step": lambda: step(batch)["loss"].numpy()}
    if kind == "ours":
        cases["inference"] = lambda: inference(images)[0].numpy()
        cases["training_mode"] = lambda: training_mode(images)[0].numpy()
    seconds = harness.interleave(cases, REPEATS, warm_up=2)
    return {name: BATCH / float(np.median(values)) for name, values in seconds.items()}


def rows() -> list[Row]:
    """Measures both sizes."""
    result = []
    for size, target, bound_target in SIZES:
        turns = [
            {k: harness.worker("training_step.py", k, size) for k in ("stock", "stock_ours", "ours")}
            for _ in range(TURNS)
        ]

        def median(kind: str, what: str, turns: list[dict] = turns) -> float:
            return float(np.median([turn[kind][what] for turn in turns]))

        def ratio(kind: str, turns: list[dict] = turns) -> float:
            return float(np.median([turn["ours"]["step"] / turn[kind]["step"] for turn in turns]))

        ours = median("ours", "step")
        what = f"training step, {size} px, batch {BATCH}"
        detail = f"{ours:.1f} against {median('stock', 'step'):.1f} images/s"
        result.append(Row(what, "stock Keras step", ratio("stock"), target, detail))
        detail = f"{ours:.1f} against {median('stock_ours', 'step'):.1f} images/s"
        result.append(Row(what, "stock Keras step, our allocator and kernels", ratio("stock_ours"), "", detail))
        bound = float(np.median([3 * turn["ours"]["step"] / turn["ours"]["inference"] for turn in turns]))
        forward = [median("ours", name) for name in ("inference", "training_mode")]
        detail = f"forward {forward[0]:.0f} images/s in inference, {forward[1]:.0f} in training mode"
        result.append(Row(what, "3 x forward in inference mode", bound, bound_target, detail))
    return result


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        harness.main(rows)
