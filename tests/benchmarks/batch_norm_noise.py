"""What the statistics of a batch cost: landmark loss with them and with the stored ones, on the same faces.

    python tests/benchmarks/batch_norm_noise.py asmnet_300w_112_mse mnv2_300w_112_mse

300W's training faces (data/300w), less those held out, augmented as `tuned`, batches of 32; wing loss. The stored
statistics are re-estimated averages, so the difference is the noise that training with live batch norm sees.
"""

import harness

harness.use(harness.OURS)

import sys  # TensorFlow reads its environment when it is imported

import numpy as np
import tensorflow as tf

from asmnet_tf.config import AUGMENTATIONS, VAL_FRACTION, crop_scale
from asmnet_tf.data.annotations import hold_out, read_samples, with_pose
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.evaluation.report import md_table
from asmnet_tf.network.checkpoints import load_pretrained
from asmnet_tf.network.fast_graphs import TrainingGraph
from asmnet_tf.network.loss import MultiTaskLoss

BATCHES, BATCH, SEED = 12, 32, 7
SPEC, CROP = DATASETS["300w"], "square"


def main(names: list[str]) -> None:
    """Prints one row for each shipped model."""
    folder = harness.DATA / "300w"
    samples = with_pose(read_samples(SPEC, folder, "train", quiet=True), SPEC, folder, None)
    faces, _ = hold_out(samples, VAL_FRACTION)
    loss, rows = MultiTaskLoss(SPEC.flip_map, None, "wing"), []
    for name in names:
        model = load_pretrained(name)
        graph = TrainingGraph(model)
        patches = FacePatches(faces, CROP, crop_scale(CROP), model.input_shape[1])
        stream = TrainingBatches(patches, AUGMENTATIONS["tuned"], BATCH, SEED).iterate()
        pairs = []
        for _ in range(BATCHES):
            batch = next(stream)
            image = tf.cast(batch["image"], tf.float32)
            outputs = (graph.model(image, training=True), model(image, training=False))
            pairs.append([float(loss(*output, batch, tf.constant(0.0))["loss_landmarks"]) for output in outputs])
        rows.append([name, *(f"{value:.4f}" for value in np.mean(pairs, axis=0))])
    print("\n".join(md_table(("model", "statistics of the batch", "stored statistics"), rows)))


if __name__ == "__main__":
    main(sys.argv[1:] or ["asmnet_300w_112_mse", "mnv2_300w_112_mse"])
