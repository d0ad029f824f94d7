"""Prediction of 500 faces as `evaluate.py` does it, against one `model.predict` for each image; 224 px."""

import harness

harness.use(harness.OURS)

import time  # TensorFlow reads its environment when it is imported

import numpy as np
import training_parts
from harness import Row

from asmnet_tf import config
from asmnet_tf.data.geometry import crop_frame, crop_image
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.evaluation.scoring import predict_faces
from asmnet_tf.formats.keras_runners import compiled
from asmnet_tf.network.asmnet import build_asmnet

FACES, TURNS, SIZE = 500, 3, 224
ONE_BY_ONE = 100  # faces of a turn of the slow way


def rows() -> list[Row]:
    """Both ways read, crop and predict the same images of 300W's LFPW folder."""
    samples = [s for s in training_parts.training_samples() if "lfpw" in s.name][:FACES]
    model = build_asmnet(68, SIZE)
    infer = compiled(model, folded=True)

    def ours() -> float:
        start = time.perf_counter()
        predict_faces(infer, FacePatches(samples, "square", config.SQUARE_CROP_SCALE, SIZE, margin=1.0))
        return (time.perf_counter() - start) / len(samples)

    def one_by_one(turn: int) -> float:
        start = time.perf_counter()
        for sample in samples[turn * ONE_BY_ONE : (turn + 1) * ONE_BY_ONE]:
            crop = crop_image(sample.read_image(), crop_frame(sample.bbox, "square"), SIZE)
            model.predict(crop[None].astype(np.float32), verbose=0)
        return (time.perf_counter() - start) / ONE_BY_ONE

    infer(np.zeros((64, SIZE, SIZE, 3), np.uint8))
    model.predict(np.zeros((1, SIZE, SIZE, 3), np.float32), verbose=0)
    turns = [(ours(), one_by_one(turn)) for turn in range(TURNS)]
    ratio = float(np.median([slow / fast for fast, slow in turns]))
    fast, slow = (float(np.median(column)) * 1e3 for column in zip(*turns))
    detail = f"{fast:.1f} against {slow:.1f} ms a face, decoding included"
    return [Row(f"evaluation of {len(samples)} faces, {SIZE} px", "one `model.predict` per image", ratio, "8", detail)]


if __name__ == "__main__":
    harness.main(rows)
