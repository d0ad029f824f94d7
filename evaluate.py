"""Scores models and prediction files on a dataset (step 3 of 3): NME, failure rate, AUC, CED, pose, contact sheets.

    python evaluate.py runs/asmnet_synthetic_asm/best.keras                  # synthetic test faces
    python evaluate.py runs/asmnet_300w/best.keras --dataset 300w --data-dir data/300w --subset full common challenging
    python evaluate.py asmnet_300w --dataset 300w --data-dir data/300w       # a model that ships with the package
    python evaluate.py asmnet_300w --dataset 300w --data-dir data/300w --boxes detector   # as a user has it
    python evaluate.py MODEL --predictions spiga=spiga.npz --dataset 300w --data-dir data/300w --subset lfpw
    python evaluate.py A.keras B.tflite SAVED_MODEL --predictions spiga=spiga.npz ...             # also comparison.md
    python evaluate.py --predictions spiga=spiga.npz                         # a file with its own landmarks_gt

Prints a table and, last, one line of JSON: {NAME: {SUBSET: {n, n_scored, nme_pct, fr_pct@T, auc_pct@T, ...}}}.
Writes metrics.json, summary.md, per_image.csv, ced.{csv,png}, failure_rate.{csv,png}, landmark_errors.{csv,png},
contact sheets and, of two methods or more, comparison.md to --output.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from asmnet_tf import cli

if TYPE_CHECKING:
    from asmnet_tf.distribution import Replicas


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", type=Path, help=".keras, .tflite, SavedModel, release .h5, shipped NAME"
    )
    parser.add_argument(
        "--predictions", nargs="+", action="extend", default=[], metavar="NAME=FILE", help="any method's .npz (README)"
    )
    parser.add_argument(
        "--mean-shape", type=Path, metavar="NPZ", help="also score the mean of a shape model: the floor"
    )
    cli.add_data_arguments(parser, dataset_default=None)
    parser.add_argument("--pose-labels", type=Path, help="csv or folder of .npy instead of PnP on the landmarks")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="val: what train.py holds out"
    )
    parser.add_argument("--subset", nargs="+", metavar="S", help="default: all that the split has faces of")
    cli.add_crop_argument(parser, None, "default: the one the model was trained with")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image: two passes per face")
    parser.add_argument(
        "--boxes", choices=("gt", "detector"), default="gt", help="where a MODEL's crops come from (default: gt)"
    )
    parser.add_argument(
        "--thresholds", nargs="+", type=cli.within(0.01, 1), metavar="T", help="NME fractions of FR and AUC"
    )
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    parser.add_argument(
        "--strategy", choices=("one", "multiworker"), default="one", help="multiworker: a share of the faces each"
    )
    parser.add_argument("--save-predictions", action="store_true", help="also write <NAME>.npz, as --predictions reads")
    args = parser.parse_args(argv)
    if not args.models and not args.predictions:
        parser.error("nothing to evaluate: give a MODEL or --predictions NAME=FILE")
    if args.flip and not args.models:
        parser.error("--flip: only a MODEL can be run on the mirrored image")
    if args.boxes == "detector" and not args.models:
        parser.error("--boxes: only a MODEL is given boxes")
    if any(abs(t - round(t, 2)) > 1e-9 for t in args.thresholds or ()):
        parser.error("--thresholds: two decimals at most, since they name the results (fr_pct@0.08)")
    if len(set(args.thresholds or ())) < len(args.thresholds or ()):
        parser.error("--thresholds: one of them twice")
    for text in args.predictions:
        if not all(text.partition("=")):
            parser.error(f"--predictions {text}: expected NAME=FILE")
    return args


def main(args: argparse.Namespace) -> None:
    """Evaluates, as one of the workers of --strategy; raises InputError for what the user can mend."""
    from asmnet_tf.distribution import joined

    with joined(args.strategy) as replicas:
        evaluate(args, replicas)


def evaluate(args: argparse.Namespace, replicas: Replicas) -> None:
    """Runs the steps."""
    from asmnet_tf import evaluation, report
    from asmnet_tf.datasets import BadSamples
    from asmnet_tf.files import make_folder

    if replicas.is_chief:
        make_folder(args.output)

    # 1. Ground truth: a dataset's faces, or those that the prediction files bring along.
    files = evaluation.read_files(args.predictions)
    bad = BadSamples(args.on_bad_sample == "skip")
    spec, samples, faces = evaluation.find_truth(args, files, bad)
    theirs = evaluation.methods_of_files(files, faces, samples)  # before the models: what is refused is refused early
    if replicas.is_chief:
        bad.write(args.output)

    # 2. Every model on these faces.
    methods = []
    boxes = evaluation.detected_boxes(samples) if args.boxes == "detector" else None
    for name, path in evaluation.unique_names(args.models, taken={*files, "mean_shape"}):
        cli.start_tensorflow()  # only where a model is to be run
        from asmnet_tf.prediction import score_model

        with cli.without_notes() if path.suffix == ".tflite" else contextlib.nullcontext():
            methods.append(score_model(name, path, samples, spec, args.crop, args.flip, boxes, replicas))
    if not replicas.is_chief:
        return

    # 3. Every prediction file, and the mean shape, what a network that has learned nothing would say.
    methods += theirs
    if args.mean_shape is not None:
        methods.append(evaluation.mean_shape_method(args.mean_shape, spec, faces.landmarks))

    # 4. Numbers, curves, sheets.
    thresholds = tuple(args.thresholds or spec.thresholds)
    protocol = evaluation.protocol(args, spec, samples, faces, methods, boxes)
    protocol |= {"faces_skipped": len(bad.reasons), "thresholds": thresholds, "commit": cli.commit()}
    reader = (lambda i: samples[i].read_image()) if samples else None
    scores = report.write_report(args.output, methods, faces, thresholds, protocol=protocol, image_reader=reader)
    if args.save_predictions:
        evaluation.save_predictions(args.output, methods, faces)
    print(report.text_table(scores, thresholds))
    print(f"{args.output / 'ced.png'}: CED curves; {args.output / 'summary.md'}: all tables")
    if len(methods) > 1:
        print(f"{args.output / 'comparison.md'}: the methods side by side and in pairs")
    print(report.json_line(scores))


if __name__ == "__main__":
    cli.run(main, parse_args)
