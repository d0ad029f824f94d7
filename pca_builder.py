"""Fits the eigen-shapes of a dataset's training faces (step 1 of 3; paper section 3.1).

    python pca_builder.py                                                    # synthetic faces, made on first use
    python pca_builder.py --dataset 300w --data-dir data/300w                # seconds
    python pca_builder.py --dataset 300w --data-dir data/300w --pca-percent 80 90 97
    python pca_builder.py --dataset faces.toml                               # your own: asmnet_tf/data/layouts.py
    python pca_builder.py --dataset 300w --shapes shapes.npy                 # a million: seconds, 1.3 GB

Writes <output>/<dataset>_pca<percent>.npz, plots of the modes, of the explained variance and of how far the ASM
operator moves real shapes; prints one line for each file. Next: train.py.
"""

import argparse
from pathlib import Path

from asmnet_tf import cli
from asmnet_tf.config import PCA_PERCENT, crop_scale
from asmnet_tf.data.layouts import find_spec


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    cli.add_data_arguments(parser)
    add("--shapes", type=Path, metavar="NPY", help="instead of a dataset: float (N, 2L) in network units of --crop")
    cli.add_crop_argument(parser, "square", "default: square")
    number, told = cli.within(0, 100, without=(0,)), "variance to keep, %% (90)"
    add("--pca-percent", type=number, nargs="+", default=[PCA_PERCENT], metavar="P", help=told)
    add("--output", type=Path, default=Path("shape_models"), help="folder (default: shape_models)")
    args = parser.parse_args(argv)
    if args.shapes is not None and args.data_dir is not None:
        parser.error("--shapes and --data-dir: the shapes come from one or the other")
    if args.shapes is not None and args.on_bad_sample == "skip":
        parser.error("--on-bad-sample skip: a row of --shapes that is not finite has to be removed from the file")
    return args


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend."""
    import numpy as np

    from asmnet_tf.data.annotations import BadSamples, read_samples
    from asmnet_tf.evaluation import figures, metrics
    from asmnet_tf.files import make_folder
    from asmnet_tf.shape import training_shapes
    from asmnet_tf.shape.shape_model import ShapeModel

    make_folder(args.output)

    # 1. Training shapes, in network units of the crop, unaligned.
    if args.shapes is not None:
        spec = find_spec(args.dataset)
        shapes, frames = training_shapes.read_shapes(args.shapes, spec, args.limit), metrics.UNIT_FRAME
    else:
        spec, data_dir = cli.find_data(args)
        bad = BadSamples(args.on_bad_sample == "skip", images=False)
        samples = read_samples(spec, data_dir, "train", args.limit, bad=bad)
        shapes, frames = training_shapes.shapes_of(samples, args.crop)
        bad.write(args.output)

    # 2. All eigen-shapes; a shape model keeps the first ones, for a percentage of the variance.
    full = ShapeModel.fit(shapes, spec.name, args.crop, crop_scale(args.crop))
    moved = {}
    for percent in args.pca_percent:
        model = full.keep(percent)
        # 3. How far ASM(s) moves real shapes: what the network is first trained towards.
        moved[percent] = metrics.smoothing_distance(model, shapes, frames, spec)
        path = args.output / f"{spec.name}_pca{percent:g}.npz"
        model.save(path)
        kept = f"{model.num_components} of {2 * model.num_landmarks} components from {model.n_samples} faces"
        far = f"ASM moves a shape by {100 * np.nanmean(moved[percent]):.2f} % {spec.unit}"
        print(f"{path}: {kept}, {args.crop} crop; {far}")

    # 4. Pictures.
    figures.shape_model_plots(args.output, model=full, smoothing=moved, spec=spec)


if __name__ == "__main__":
    cli.run(main, parse_args)
