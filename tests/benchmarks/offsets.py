"""Constant offsets: of a dataset's annotations from what they mark (`right_px`), and of methods from the annotations.

    python tests/benchmarks/offsets.py asmnet_300w --data-dir data --predictions spiga=data/peers/spiga.npz ...

A network that has seen as many faces mirrored as not finds the same thing in an image and in its mirror image. The mean
of its two answers, the second turned back, is so much left of the annotation as this is right of the thing. Printed by
source, for the faces that the run of MODEL did not hold out, and as a check for rendered faces, whose points are exact.

Then, on 300W common, of MODEL and of each prediction file: the mean of truth less prediction, and the NME if that were
added to all its points. It is taken from these faces themselves, so no result, but what of a difference is no skill.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from asmnet_tf.data.annotations import read_samples, select, training_faces
from asmnet_tf.data.geometry import crop_frame, crop_image, flip_landmarks, landmark_box, normalise
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.data.sidecars import crop_of, find_model
from asmnet_tf.evaluation import metrics
from asmnet_tf.evaluation.predictions import align
from asmnet_tf.evaluation.scoring import score_model
from asmnet_tf.evaluation.truth import read_files
from asmnet_tf.formats.runners import open_model
from asmnet_tf.synthetic.renderer import render_face

SPEC = DATASETS["300w"]
RENDERED = 300


def methods(model: Path, files: list[str], folder: Path) -> None:
    """Prints the second table."""
    samples = read_samples(SPEC, folder, "test", quiet=True)
    samples = [samples[i] for i in np.flatnonzero(select(samples, SPEC, "common"))]
    names, truth = [sample.name for sample in samples], np.stack([sample.landmarks for sample in samples])
    lengths = metrics.normaliser(truth, SPEC)
    found = {str(model): score_model("model", model, samples, SPEC, None).landmarks}
    found |= {name: align(file, names, SPEC.num_landmarks).landmarks for name, file in read_files(files).items()}
    print("\n| 300W common | truth less prediction, px right and down | NME % | without that |\n|---|---|---|---|")
    for name, landmarks in found.items():
        away = np.nanmean((truth - landmarks).mean(axis=1), axis=0)
        errors = (100 * np.nanmean(metrics.nme(points, truth, lengths)) for points in (landmarks, landmarks + away))
        print(f"| {name} | {away[0]:+.2f}, {away[1]:+.2f} | {' | '.join(f'{error:.2f}' for error in errors)} |")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--predictions", nargs="*", default=[], metavar="NAME=FILE")
    args = parser.parse_args()
    path = find_model(args.model)
    model = open_model(path)
    crop, scale = crop_of(path, model.sidecar)

    def row(name: str, crops: np.ndarray, shapes: np.ndarray, sides: np.ndarray) -> None:
        views = (crops, np.ascontiguousarray(crops[:, :, ::-1]))
        parts = range(0, len(crops), 64)
        found, back = (np.concatenate([np.asarray(model.infer(v[i : i + 64])[0]) for i in parts]) for v in views)
        away = (shapes - (found + flip_landmarks(back, SPEC.flip_map)) / 2)[:, ::2].mean(axis=1)
        told = f"| {name} | {len(crops)} | {np.median(sides):.0f} |"
        for values, decimals in ((away * sides, 2), (away, 4)):
            half = 1.96 * values.std() / len(values) ** 0.5
            told += f" {values.mean():.{decimals}f} +- {half:.{decimals}f} |"
        print(told, flush=True)

    print("| faces | number | side of the crop, px | further right, px | of the side |\n|---|---|---|---|---|")
    faces, _ = training_faces(SPEC, args.data_dir / "300w", 0.1)
    sources = np.array([face.name.split("/")[0] for face in faces])
    for source in np.unique(sources):
        chosen = [faces[i] for i in np.flatnonzero(sources == source)]
        patches = FacePatches(chosen, crop, scale, model.input_size, margin=1.0, cache="none")
        row(source, patches.crops(), patches.landmarks_norm, patches.frames[:, 2])
    rendered = [render_face(5, i) for i in range(RENDERED)]
    truth = np.stack([face.landmarks_68 for face in rendered]).astype(np.float64)
    frames = crop_frame(landmark_box(truth), crop, scale)
    crops = np.stack([crop_image(face.image, frame, model.input_size) for face, frame in zip(rendered, frames)])
    row("rendered", crops, normalise(truth, frames), frames[:, 2])
    methods(args.model, args.predictions, args.data_dir / "300w")


if __name__ == "__main__":
    main()
