"""One face, batch 1, 224 px: from a uint8 image to landmarks in image pixels, against the same by `model.predict`."""

from __future__ import annotations

import harness

harness.use(harness.OURS)

import tempfile  # TensorFlow reads its environment when it is imported
from functools import partial
from pathlib import Path

import numpy as np
from harness import Row

from asmnet_tf.data.geometry import crop_frame, crop_image, denormalise
from asmnet_tf.formats.exporters import to_tflite
from asmnet_tf.formats.keras_runners import compiled
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network.asmnet import build_asmnet

SIZE, TURNS, CALLS = 224, 12, 10


def rows() -> list[Row]:
    """The image is random, 400 x 400. A turn is ten calls one after another, so that each way finds its own weights in
    the caches and the other ways' threads asleep, as in use."""
    model = build_asmnet(68, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    frame = crop_frame(np.array([60.0, 60.0, 340.0, 340.0]), "square")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        path.write_bytes(to_tflite(model))
        lite = open_model(path).infer
    ways = {
        "predict": lambda crops: model.predict(crops.astype(np.float32), verbose=0),
        "graph": compiled(model, folded=True),
        "lite": lite,
    }

    def calls(infer) -> None:
        for _ in range(CALLS):
            outputs = infer(crop_image(image, frame, SIZE)[None])
            denormalise(np.asarray(outputs[0], np.float64), frame[None])

    seconds = harness.interleave({name: partial(calls, infer) for name, infer in ways.items()}, TURNS)
    milliseconds = {name: float(np.median(values)) * 1e3 / CALLS for name, values in seconds.items()}
    result = []
    for name, how, target in (("graph", "compiled signature", "6"), ("lite", "TFLite", "15")):
        ratio = float(np.median(seconds["predict"] / seconds[name]))
        detail = f"{milliseconds[name]:.1f} against {milliseconds['predict']:.1f} ms"
        result.append(Row(f"one face, {SIZE} px, {how}", "`model.predict`", ratio, target, detail))
    return result


if __name__ == "__main__":
    harness.main(rows)
