"""Exports a shipped model in every format and scores the files on the same faces: the export table of README.md here.

    python tests/benchmarks/export_table.py asmnet_300w_112_60 [--calibrate FOLDER] [--limit N]

300W's LFPW test faces (data/300w), ground-truth boxes, the model's own crop, one forward pass. ms: one image, one
thread, median of interleaved calls (lowest tenth); it needs a quiet machine, the rest does not.
"""

import harness

harness.use(harness.OURS | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"})

import argparse  # TensorFlow reads its environment when it is imported
import tempfile
from pathlib import Path

import numpy as np

from asmnet_tf import export
from asmnet_tf.data.annotations import read_samples, select
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.sidecars import find_model
from asmnet_tf.evaluation import metrics, report
from asmnet_tf.evaluation.records import Faces
from asmnet_tf.evaluation.scoring import score_model
from asmnet_tf.formats.runners import open_model

SPEC, SUBSET, TURNS = DATASETS["300w"], "lfpw", 200
KINDS = {
    "SavedModel": ("m_saved", ["--to", "savedmodel"]),
    "release `.h5`": ("m_release.h5", ["--to", "h5"]),
    "TFLite float32": ("m_float32.tflite", ["--to", "tflite"]),
    "TFLite float16": ("m_float16.tflite", ["--to", "tflite", "--quantise", "float16"]),
    "TFLite int8": ("m_int8.tflite", ["--to", "tflite", "--quantise", "int8"]),
}


def main(args: argparse.Namespace) -> None:
    """Prints the table; all files are temporary."""
    samples = read_samples(SPEC, harness.DATA / "300w", "test", quiet=True)
    samples = [s for s, wanted in zip(samples, select(samples, SPEC, SUBSET)) if wanted][: args.limit]
    faces = Faces(SPEC, [s.name for s in samples], np.stack([s.landmarks for s in samples]).astype(np.float64))
    source = find_model(args.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"`.keras`": source}
        for kind, (name, flags) in KINDS.items():
            paths[kind] = Path(folder) / name
            more = ["--calibrate", args.calibrate, "--faces", str(args.faces), "--output", str(paths[kind])]
            export.main(export.parse_args([str(args.model), *flags, *more]))
        methods = [score_model(kind, path, samples, SPEC, None) for kind, path in paths.items()]
        size = methods[0].info["input_size"]
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
        models = {kind: open_model(path, threads=1).infer for kind, path in paths.items()}
        calls = {kind: lambda infer=infer: np.asarray(infer(image)[0]) for kind, infer in models.items()}
        seconds = harness.interleave(calls, TURNS, warm_up=3)
        sizes = {kind: export.bytes_of(path) / 1e6 for kind, path in paths.items()}
    scores = report.score(report.measure(methods, faces), faces, (0.08,))
    lengths = metrics.normaliser(faces.landmarks, SPEC)
    print(f"{harness.machine()}\n\n{args.model}, {len(samples)} faces, calibrated on {args.calibrate}\n")
    print("| format | MB | ms a face (lowest tenth) | NME % | from the first row: % inter-ocular | deg |")
    print("|---|---|---|---|---|---|")
    for method in methods:
        away = 100 * metrics.nme(method.landmarks, methods[0].landmarks, lengths).mean()
        turned = np.abs(method.pose - methods[0].pose).mean()
        median, low = np.percentile(seconds[method.name] * 1e3, [50, 10])
        row = [f"{sizes[method.name]:.1f}", f"{median:.1f} ({low:.1f})"]
        row += [f"{scores[method.name]['all']['nme_pct']:.2f}", f"{away:.3f}", f"{turned:.3f}"]
        print(f"| {' | '.join([method.name, *row])} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="NAME", type=Path)
    parser.add_argument("--calibrate", default="synthetic", metavar="FOLDER")
    parser.add_argument("--faces", type=int, default=128)
    parser.add_argument("--limit", type=int)
    main(parser.parse_args())
