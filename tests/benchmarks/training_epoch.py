"""A whole epoch of `train.py` on real 300W images with full augmentation, against the bare step on random tensors.

Both use the same compiled step in one process and take turns by blocks of steps; the stream of augmented batches is
stopped during the bare steps' blocks only by its own prefetch limit, so each block of the stream is timed after the
prefetched batches are used up.
"""

import harness

harness.use(harness.OURS)

import tempfile  # TensorFlow reads its environment when it is imported
import time
from pathlib import Path

import numpy as np
import training_parts
from harness import Row

PREFETCHED = 6  # batches that may be ready before a block starts
BLOCK = 10
TURNS = 4


def rows() -> list[Row]:
    """Measures 112 and 224 px, batch 32."""
    result = []
    samples = training_parts.training_samples()
    for size in (112, 224):
        with tempfile.TemporaryDirectory() as folder:
            trainer = training_parts.trainer(samples, size, 32, Path(folder))
            stream = trainer.batches.iterate()
            fixed = training_parts.random_batch(32, size)

            def from_stream(count: int, trainer=trainer, stream=stream) -> None:
                for _ in range(count):
                    {k: float(v) for k, v in trainer.step(next(stream)).items()}

            def bare(count: int, trainer=trainer, fixed=fixed) -> None:
                for _ in range(count):
                    trainer.step(fixed)["loss"].numpy()

            from_stream(2)
            bare(2)
            times = {"stream": [], "bare": []}
            for _ in range(TURNS):
                from_stream(PREFETCHED)
                for name, run in (("stream", from_stream), ("bare", bare)):
                    start = time.perf_counter()
                    run(BLOCK)
                    times[name].append((time.perf_counter() - start) / BLOCK)
            seconds = {name: np.array(values) for name, values in times.items()}
            rate = {name: 32 / float(np.median(values)) for name, values in seconds.items()}
            detail = f"{rate['stream']:.1f} against {rate['bare']:.1f} images/s"
            ratio = float(np.median(seconds["bare"] / seconds["stream"]))
            what = f"steps of a `train.py` epoch, {size} px, batch 32, {len(samples)} faces of 300W"
            result.append(Row(what, "the bare step on random tensors", ratio, "0.93", detail))
    return result


if __name__ == "__main__":
    harness.main(rows)
