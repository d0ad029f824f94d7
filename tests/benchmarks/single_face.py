"""One face, batch 1, 224 px, from a uint8 image to landmarks in image pixels, against `model.predict` on its crop."""

from __future__ import annotations

import harness

harness.use(harness.OURS)

import tempfile  # noqa: E402 - TensorFlow reads its environment when it is imported
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from harness import Row  # noqa: E402

from asmnet_tf import models  # noqa: E402
from asmnet_tf.converters import to_tflite  # noqa: E402
from asmnet_tf.geometry import crop_frame, crop_image, denormalise  # noqa: E402
from asmnet_tf.model_files import compiled, open_model  # noqa: E402

SIZE, TURNS = 224, 40


def rows() -> list[Row]:
    """The image is random, 400 x 400; the crop and the way back to image pixels are part of our time only."""
    model = models.build_asmnet(68, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    frame = crop_frame(np.array([60.0, 60.0, 340.0, 340.0]), "square")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        path.write_bytes(to_tflite(model))
        lite = open_model(path).infer
    graph = compiled(model, folded=True)
    crop = crop_image(image, frame, SIZE)[None].astype(np.float32)

    def call(infer) -> np.ndarray:
        outputs = infer(crop_image(image, frame, SIZE)[None])
        return denormalise(np.asarray(outputs[0], np.float64), frame[None])

    cases = {
        "predict": lambda: model.predict(crop, verbose=0),
        "graph": lambda: call(graph),
        "lite": lambda: call(lite),
    }
    seconds = harness.interleave(cases, TURNS, warm_up=3)
    milliseconds = {name: float(np.median(values)) * 1e3 for name, values in seconds.items()}
    result = []
    for name, how, target in (("graph", "compiled signature", "6"), ("lite", "TFLite", "15")):
        ratio = float(np.median(seconds["predict"] / seconds[name]))
        detail = f"{milliseconds[name]:.1f} against {milliseconds['predict']:.1f} ms"
        result.append(Row(f"one face, {SIZE} px, {how}", "`model.predict`", ratio, target, detail))
    return result


if __name__ == "__main__":
    harness.main(rows)
