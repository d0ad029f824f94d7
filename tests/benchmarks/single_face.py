"""One face, batch 1, 224 px: from a uint8 image to landmarks in image pixels, against the same by `model.predict`.

python tests/benchmarks/single_face.py                         # LiteRT and ONNX Runtime with 1 and 2 threads
python tests/benchmarks/single_face.py --peer other.onnx       # any other network's file, on noise of its own size
"""

import harness

harness.use(harness.OURS)

import argparse  # TensorFlow reads its environment when it is imported
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
from harness import Row

from asmnet_tf.data.geometry import crop_frame, crop_image, denormalise
from asmnet_tf.formats.exporters import to_tflite, write_onnx
from asmnet_tf.formats.keras_runners import compiled
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network.asmnet import build_asmnet

SIZE, TURNS, CALLS = 224, 12, 10


def peer(path: Path, threads: int = 1) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns what runs another network on noise, whatever its input; dimensions that it leaves open are 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {t.name: [n if isinstance(n, int) and n > 0 else 1 for n in t.shape] for t in session.get_inputs()}
    noise = {name: np.random.default_rng(0).random(shape, np.float32) for name, shape in shapes.items()}
    return lambda _: session.run(None, noise)


def rows(peers: Sequence[Path] = ()) -> list[Row]:
    """The image is random, 400 x 400. A turn is ten calls one after another, so that each way finds its own weights in
    the caches and the other ways' threads asleep, as in use."""
    model = build_asmnet(68, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    frame = crop_frame(np.array([60.0, 60.0, 340.0, 340.0]), "square")
    with tempfile.TemporaryDirectory() as folder:
        lite, onnx = Path(folder) / "m.tflite", Path(folder) / "m.onnx"
        lite.write_bytes(to_tflite(model))
        write_onnx(model, onnx)
        opened = {
            f"{name}, {n} thread{'s' * (n > 1)}": open_model(path, n).infer
            for name, path in (("LiteRT", lite), ("ONNX Runtime", onnx))
            for n in (1, 2)
        }
    ways = {
        "predict": lambda crops: model.predict(crops.astype(np.float32), verbose=0),
        "compiled signature": compiled(model, folded=True),
        **opened,
        **{path.name: peer(path) for path in peers},
    }

    others = [ways[path.name] for path in peers]

    def calls(infer) -> None:
        for _ in range(CALLS):
            outputs = infer(crop_image(image, frame, SIZE)[None])
            if infer not in others:
                denormalise(np.asarray(outputs[0], np.float64), frame[None])

    seconds = harness.interleave({name: partial(calls, infer) for name, infer in ways.items()}, TURNS)
    milliseconds = {name: float(np.median(values)) * 1e3 / CALLS for name, values in seconds.items()}
    result = []
    for name in [name for name in ways if name != "predict"]:
        ratio = float(np.median(seconds["predict"] / seconds[name]))
        detail = f"{milliseconds[name]:.1f} against {milliseconds['predict']:.1f} ms"
        target = {"compiled signature": "6", "LiteRT, 2 threads": "15"}.get(name, "")
        result.append(Row(f"one face, {SIZE} px, {name}", "`model.predict`", ratio, target, detail))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", type=Path, default=[], metavar="ONNX")
    parser.add_argument("--json", action="store_true")
    peers = parser.parse_args().peer
    harness.main(lambda: rows(peers))
