"""Fits the eigen-shapes of a dataset's training faces (step 1 of 3; paper section 3.1).

    python pca_builder.py                                                    # synthetic faces, made on first use
    python pca_builder.py --dataset 300w --data-dir data/300w                # seconds
    python pca_builder.py --dataset 300w --data-dir data/300w --pca-percent 80 90 97
    python pca_builder.py --dataset 300w --shapes shapes.npy                 # a million shapes: seconds, < 300 MB

Writes <output>/<dataset>_pca<percent>.npz, plots of the modes, of the explained variance and of how far the ASM
operator moves real shapes; prints one line for each file. Next: train.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from asmnet_tf import cli
from asmnet_tf.config import DATASETS, PCA_PERCENT, crop_scale


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    cli.add_data_arguments(parser)
    parser.add_argument(
        "--shapes", type=Path, metavar="NPY", help="instead of a dataset: float (N, 2L) in network units of --crop"
    )
    cli.add_crop_argument(parser, "square", "default: square")
    parser.add_argument(
        "--pca-percent",
        type=cli.within(-1e9, 1e9),
        nargs="+",
        default=[PCA_PERCENT],
        metavar="P",
        help="variance to keep, %% (90)",
    )
    parser.add_argument("--output", type=Path, default=Path("shape_models"), help="folder (default: shape_models)")
    args = parser.parse_args(argv)
    if args.shapes is not None and args.data_dir is not None:
        parser.error("--shapes and --data-dir: the shapes come from one or the other")
    if args.shapes is not None and args.on_bad_sample == "skip":
        parser.error("--on-bad-sample skip: a row of --shapes that is not finite has to be removed from the file")
    return args


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend."""
    import numpy as np

    from asmnet_tf import plots, shape_model
    from asmnet_tf.datasets import BadSamples, read_samples
    from asmnet_tf.files import make_folder
    from asmnet_tf.training_shapes import FileShapes, SampleShapes

    shape_model.check_percents(args.pca_percent)
    make_folder(args.output)

    # 1. Training shapes, in network units of the crop, unaligned; always a chunk of them at a time.
    if args.shapes is not None:
        spec = DATASETS[args.dataset]
        shapes = FileShapes(args.shapes, spec, args.limit)
    else:
        spec, data_dir = cli.find_data(args)
        bad = BadSamples(args.on_bad_sample == "skip", images=False)
        shapes = SampleShapes(read_samples(spec, data_dir, "train", args.limit, bad=bad), spec, args.crop)
        bad.write(args.output)

    # 2. One covariance, one shape model for each percentage.
    statistics = shapes.statistics()
    models = shape_model.fit(statistics, args.pca_percent, spec.name, args.crop, crop_scale(args.crop))
    smoothing = {}
    for model in models:
        # 3. How far ASM(s) moves real shapes: what the network is first trained towards.
        smoothing[model.pca_percent] = shapes.smoothing(model)
        path = args.output / f"{spec.name}_pca{model.pca_percent:g}.npz"
        model.save(path)
        print(
            f"{path}: {model.num_components} of {2 * model.num_landmarks} components from {model.n_samples} faces, "
            f"{args.crop} crop; ASM moves a shape by {100 * np.nanmean(smoothing[model.pca_percent]):.2f} % "
            "inter-ocular"
        )

    # 4. Pictures.
    full = shape_model.fit(statistics, [100.0], spec.name, args.crop, crop_scale(args.crop))[0]
    share = full.eigenvalues / full.eigenvalues.sum()
    plots.shape_model_plots(
        args.output, spec.name, full.mean_shape, full.eigenvectors, full.eigenvalues, share, smoothing, spec
    )


if __name__ == "__main__":
    cli.run(main, parse_args)
