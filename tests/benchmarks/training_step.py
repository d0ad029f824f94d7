"""The compiled training step against the same step with Keras' own batch normalisation, and against its bound.

Our step and the stock one run in worker processes, since a process sets TensorFlow's allocator and kernels once; they
take turns of one step (224 px) or two (112 px). `stock` is the Keras model as it is, trained by Keras' Adam in a
`tf.function`, in the environment TensorFlow chooses; `stock, our settings` is the same with the allocator and the
kernels of our scripts.
"""

import contextlib
import sys
from collections.abc import Callable

import harness
import numpy as np
from harness import Row

SIZES = ((224, 32, 1, "1.75", "0.95"), (112, 64, 2, "1.7", "0.95"))  # px, batch, steps in a turn, ratios to reach
KINDS = ("stock", "stock_ours", "ours")
TURNS = 15


def measure(kind: str, size: int, batch_size: int, steps: int) -> Callable[[], dict[str, float]]:
    """Returns what measures the step, and for ours the forward pass in inference and training mode, in images/s."""
    harness.use(harness.DEFAULT if kind == "stock" else harness.OURS)
    import tensorflow as tf
    import training_parts

    step, inference, training_mode = training_parts.build(kind == "ours", size)
    batch = training_parts.random_batch(batch_size, size)
    images = tf.cast(batch["image"], tf.float32)
    cases = {"step": lambda: step(batch)["loss"].numpy()}
    if kind == "ours":
        cases["inference"] = lambda: inference(images)[0].numpy()
        cases["training_mode"] = lambda: training_mode(images)[0].numpy()
    harness.interleave(cases, repeats=1)

    def once() -> dict[str, float]:
        seconds = harness.interleave(cases, steps, warm_up=0)
        return {name: batch_size / float(np.mean(values)) for name, values in seconds.items()}

    return once


def rows() -> list[Row]:
    """Measures both sizes."""
    result = []
    for size, batch_size, steps, target, bound_target in SIZES:
        with contextlib.ExitStack() as stack:
            workers = {
                kind: stack.enter_context(harness.Worker("training_step.py", kind, size, batch_size, steps))
                for kind in KINDS
            }
            turns = [{kind: workers[kind].ask() for kind in KINDS} for _ in range(TURNS)]

        def rate(kind: str, what: str = "step", turns: list[dict] = turns) -> np.ndarray:
            return np.array([turn[kind][what] for turn in turns])

        ours, what = rate("ours"), f"training step, {size} px, batch {batch_size}"
        for kind, against in (("stock", "stock Keras step"), ("stock_ours", "the same, our allocator and kernels")):
            detail = f"{np.median(ours):.1f} against {np.median(rate(kind)):.1f} images/s"
            ratio = float(np.median(ours / rate(kind)))
            result.append(Row(what, against, ratio, target if kind == "stock" else "", detail))
        forward = {name: rate("ours", name) for name in ("inference", "training_mode")}
        medians = {name: np.median(values) for name, values in forward.items()}
        detail = "forward {inference:.0f} images/s in inference, {training_mode:.0f} in training mode".format(**medians)
        bound = float(np.median(3 * ours / forward["inference"]))
        result.append(Row(what, "3 x forward in inference mode", bound, bound_target, detail))
    return result


if __name__ == "__main__":
    if "--worker" in sys.argv:
        harness.serve(measure(sys.argv[2], *map(int, sys.argv[3:])))
    else:
        harness.main(rows)
