"""Scores models and prediction files on a dataset (step 3 of 3): NME, failure rate, AUC, CED, pose, contact sheets.

    python evaluate.py runs/asmnet_synthetic_asm/best.keras                  # synthetic test faces
    python evaluate.py runs/asmnet_300w/best.keras --dataset 300w --data-dir data/300w --subset full common challenging
    python evaluate.py asmnet_300w --dataset 300w --data-dir data/300w       # a model that ships with the package
    python evaluate.py asmnet_300w --dataset 300w --data-dir data/300w --boxes detector   # as a user has it
    python evaluate.py A.keras B.tflite --predictions spiga=spiga.npz --dataset 300w --data-dir data/300w --figures pdf
    python evaluate.py --predictions spiga=spiga.npz                         # a file with its own landmarks_gt

Prints a table and, last, one line of JSON: {NAME: {SUBSET: {n, n_scored, nme_pct, fr_pct@T, auc_pct@T, ...}}}.
Writes report.html (all tables and figures in one file), summary.md, metrics.json, per_image.csv, ced.{csv,png},
failure_rate.{csv,png}, landmark_errors.{csv,png} and contact sheets to --output.
"""

import argparse
import contextlib
from pathlib import Path

from asmnet_tf import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", type=Path, help=".keras, .tflite, .onnx, SavedModel, .h5, shipped NAME")
    add("--predictions", nargs="+", action="extend", default=[], metavar="NAME=FILE", help="any method's .npz")
    add("--mean-shape", type=Path, metavar="NPZ", help="also score the mean of a shape model: the floor")
    cli.add_data_arguments(parser, dataset_default=None)
    add("--pose-labels", type=Path, help="csv or folder of .npy instead of PnP on the landmarks")
    add("--split", choices=("train", "val", "test"), default="test", help="val: what train.py holds out")
    add("--subset", nargs="+", metavar="S", help="default: all that the split has faces of")
    cli.add_crop_argument(parser, None, "default: the one the model was trained with")
    add("--flip", action="store_true", help="average with the mirrored image: two passes per face")
    add("--boxes", choices=("gt", "detector"), default="gt", help="where a MODEL's crops come from (default: gt)")
    add("--thresholds", nargs="+", type=cli.within(0.01, 1), metavar="T", help="NME fractions of FR and AUC")
    add("--figures", choices=("png", "pdf", "svg"), default="png", help="pdf, svg: of each figure, beside its .png")
    add("--output", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    add("--strategy", choices=("one", "multiworker"), default="one", help="multiworker: a share of the faces each")
    add("--save-predictions", action="store_true", help="also write <NAME>.npz, as --predictions reads")
    args = parser.parse_args(argv)
    thresholds = args.thresholds or ()
    for wrong, message in (
        (not args.models and not args.predictions, "nothing to evaluate: give a MODEL or --predictions NAME=FILE"),
        (args.flip and not args.models, "--flip: only a MODEL can be run on the mirrored image"),
        (args.boxes == "detector" and not args.models, "--boxes: only a MODEL is given boxes"),
        (any(abs(t - round(t, 2)) > 1e-9 for t in thresholds), "--thresholds: two decimals at most (fr_pct@0.08)"),
        (len(set(thresholds)) < len(thresholds), "--thresholds: one of them twice"),
        *((not all(text.partition("=")), f"--predictions {text}: expected NAME=FILE") for text in args.predictions),
    ):
        if wrong:
            parser.error(message)
    return args


def main(args: argparse.Namespace) -> None:
    """Evaluates, as one of the workers of --strategy; raises InputError for what the user can mend."""
    from asmnet_tf.data import sidecars
    from asmnet_tf.data.annotations import BadSamples
    from asmnet_tf.evaluation import predictions, report, truth
    from asmnet_tf.evaluation.scoring import score_model
    from asmnet_tf.files import make_folder
    from asmnet_tf.formats.runners import needs_tensorflow
    from asmnet_tf.training.distribution import joined

    if args.strategy == "multiworker":
        cli.start_tensorflow()
    with joined(args.strategy) as replicas:
        if replicas.is_chief:
            make_folder(args.output)

        # 1. Ground truth: a dataset's faces, or those that the prediction files bring along.
        files = truth.read_files(args.predictions, args.output if args.save_predictions else None)
        bad = BadSamples(args.on_bad_sample == "skip")
        spec, data_dir = (None, args.data_dir) if files and args.dataset is None else cli.find_data(args)
        what = {"split": args.split, "subsets": args.subset, "limit": args.limit, "pose_labels": args.pose_labels}
        samples, faces = truth.find_truth(files, spec=spec, data_dir=data_dir, models=args.models, bad=bad, **what)
        theirs = truth.methods_of_files(files, faces, samples)  # before the models: what is refused is refused early
        if replicas.is_chief:
            bad.write(args.output)

        # 2. Every model on these faces.
        boxes = truth.detected_boxes(samples, faces.spec, args.models) if args.boxes == "detector" else None
        how = {"crop": args.crop, "flip": args.flip, "boxes": boxes, "part": replicas.part, "total": replicas.total}
        methods = []
        for name, path in truth.unique_names(args.models, taken={*files, "mean_shape"}):
            if needs_tensorflow(sidecars.find_model(path)):
                cli.start_tensorflow()
            with cli.without_notes() if path.suffix == ".tflite" else contextlib.nullcontext():
                methods.append(score_model(name, path, samples, faces.spec, **how))
        if not replicas.is_chief:
            return

        # 3. Every prediction file, and the mean shape, what a network that has learned nothing would say.
        methods += theirs
        if args.mean_shape is not None:
            methods.append(truth.mean_shape_method(args.mean_shape, faces.spec, faces.landmarks))

        # 4. Numbers, curves, sheets.
        thresholds = tuple(args.thresholds or faces.spec.thresholds)
        protocol = truth.protocol(split=args.split, samples=samples, faces=faces, methods=methods, boxes=boxes)
        protocol |= {"faces_skipped": len(bad.reasons), "thresholds": thresholds, "commit": cli.commit()}
        more = {"protocol": protocol, "image_reader": (lambda i: samples[i].read_image()) if samples else None}
        scores = report.write_report(args.output, methods, faces, thresholds, also=args.figures, **more)
        if args.save_predictions:
            predictions.save_predictions(args.output, methods, faces)
        print(report.text_table(scores, thresholds))
        print(f"{args.output / 'report.html'}: all tables and figures; {args.output / 'summary.md'}: tables to paste")
        print(report.json_line(scores))


if __name__ == "__main__":
    cli.run(main, parse_args)
