"""Trains ASMNet or the MobileNetV2 baseline (step 2 of 3; paper sections 3 and 4).

    python train.py                                                          # synthetic faces, after pca_builder.py
    python train.py --dataset 300w --data-dir data/300w --name asmnet_300w
    python train.py --dataset 300w --data-dir data/300w --recipe paper --shape-model shape_models_tight/300w_pca90.npz
    python train.py --dataset 300w --data-dir data/300w --name asmnet_300w --resume
    srun python train.py --strategy multiworker ...                          # README: Training on several machines

Prints one line for each epoch (losses, alpha, learning rate, images/s, validation NME and pose error on held-out
training faces). Writes <output>/<name>/ with best.keras, last.keras, log.csv, curves.png, args.json, tensorboard/ and
state.npz for --resume. Two busy CPU cores: 40 to 70 images/s at --input-size 112. Next: evaluate.py.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from asmnet_tf import cli, model_zoo
from asmnet_tf.config import (
    ARCHITECTURES,
    AUGMENTATIONS,
    FINE_TUNING_LR,
    HEADS,
    INPUT_SIZE,
    RECIPES,
    VAL_FRACTION,
    crop_scale,
)
from asmnet_tf.files import InputError, make_folder, owned

if TYPE_CHECKING:
    from asmnet_tf.distribution import Replicas


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv; what --recipe leaves open is filled in from it."""
    parser = cli.new_parser(__doc__)
    cli.add_data_arguments(parser)
    parser.add_argument("--pose-labels", type=Path, help="csv or folder of .npy instead of PnP on the landmarks")
    parser.add_argument("--val-fraction", type=cli.fraction, default=VAL_FRACTION, help="held out of training (0.1)")
    parser.add_argument("--shape-model", type=Path, help="default: shape_models/<dataset>_pca90.npz, else shipped")

    model = parser.add_argument_group("model")
    model.add_argument("--arch", choices=ARCHITECTURES, default="asmnet")
    model.add_argument("--head", choices=HEADS, default="pooled", help="spatial: ASMNet's keeps position (README)")
    model.add_argument("--input-size", type=cli.positive_int, default=INPUT_SIZE, metavar="PX", help="default: 224")
    model.add_argument("--weights", default="none", help="none, imagenet, .keras, .weights.h5, .h5 or a shipped NAME")
    model.add_argument("--freeze-batch-norm", action="store_true", help="keep that of --weights, for small batches")

    cli.add_recipe_arguments(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--output", type=Path, default=Path("runs"), help="default: runs")
    run.add_argument("--name", type=cli.run_name, help="run folder in --output (default: <arch>_<dataset>_<loss>)")
    run.add_argument("--resume", action="store_true", help="go on where the run of this name stopped")
    run.add_argument("--seed", type=cli.within(0, 2**32 - 1, whole=True), default=0)
    run.add_argument("--validate-every", type=cli.positive_int, metavar="N", help="epochs (default: 30 times a run)")
    cli.add_cache_arguments(run)
    cli.add_engine_arguments(run)
    cli.add_strategy_arguments(parser)
    args = parser.parse_args(argv)
    for key in vars(args):
        if getattr(args, key) is None and hasattr(RECIPES[args.recipe], key) and key != "lr":  # depends on --weights
            setattr(args, key, getattr(RECIPES[args.recipe], key))
    if args.freeze_batch_norm and args.weights == "none":
        parser.error("--freeze-batch-norm: keeps that of --weights, and there are none")
    if args.head != "pooled" and args.arch != "asmnet":
        parser.error(f"--head {args.head}: for --arch asmnet only")
    if args.devices and (args.strategy in ("one", "multiworker") or len(set(args.devices)) < len(args.devices)):
        parser.error(f"--devices {' '.join(args.devices)}: each once, for --strategy mirrored or auto")
    args.threads = args.threads or (cli.cores() if args.deterministic else None)
    args.name = args.name or f"{args.arch}_{args.dataset}_{args.loss}"
    args.shape_model = args.shape_model or model_zoo.default_shape_model(args.dataset, args.crop)
    return args


def main(args: argparse.Namespace) -> None:
    """Trains, as one of the workers of --strategy; raises InputError for what the user can mend."""
    from asmnet_tf.distribution import joined

    with (
        joined(args.strategy, args.devices, args.threads) as replicas,
        open_run(args) if replicas.is_chief else contextlib.nullcontext(),
    ):
        train(args, replicas)


@contextlib.contextmanager
def open_run(args: argparse.Namespace) -> Iterator[None]:
    """Keeps the run folder for this process, from before the data are read.

    Raises: InputError if another process trains there; for a new run if there is one, for --resume if there is none.
    """
    folder = args.output / args.name
    if args.resume and not folder.is_dir():
        there = sorted(path.parent.relative_to(args.output).as_posix() for path in args.output.rglob("args.json"))
        raise InputError(f"{folder}: no such run to resume. In {args.output} there are: {', '.join(there) or 'none'}.")
    make_folder(args.output)
    with owned(folder, "Wait until it has ended, or choose another --name."):
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if names and not args.resume:
            raise InputError(f"{folder}: this run exists. Go on with --resume or choose another --name.")
        if names and not names & {"args.json", "state.npz"}:
            raise InputError(f"{folder}: no run of train.py, it holds {', '.join(sorted(names)[:3])}.")
        yield


def train(args: argparse.Namespace, replicas: Replicas) -> None:
    """Runs the steps."""
    folder = args.output / args.name
    recipe = RECIPES[args.recipe]

    # 1. Faces with landmarks and pose; a fixed part of the training faces is held out for validation.
    from asmnet_tf.datasets import BadSamples, hold_out, read_samples, trainable, with_pose

    spec, data_dir = cli.find_data(args)
    bad = BadSamples(args.on_bad_sample == "skip")
    samples = read_samples(spec, data_dir, "train", args.limit, bad=bad)
    faces, validation = hold_out(with_pose(samples, spec, data_dir, args.pose_labels), args.val_fraction)
    faces = trainable(faces, bad)
    if not faces:
        raise InputError(f"--val-fraction {args.val_fraction:g}: all {len(samples)} faces are held out. Use less.")

    # 2. The eigen-shapes of these faces in this crop.
    from asmnet_tf.shape_model import load_for

    shape_model = load_for(args.shape_model, spec, args.crop) if args.loss == "asm" else None

    # 3. The network, a plain functional Keras model.
    cli.start_tensorflow()
    from asmnet_tf import models, training
    from asmnet_tf.model_files import read_start_weights

    training.prepare(args)
    start, received = None, []
    if args.weights != "none":
        start = read_start_weights(args.weights, recipe.input_range)
    input_range = start.input_range if start else recipe.input_range
    with replicas.strategy.scope():
        model = models.BUILDERS[args.arch](
            spec.num_landmarks, args.input_size, args.dropout, args.l2_heads, input_range, args.head
        )
    if recipe.start_at_mean:
        training.start_at_mean(model, faces, args.crop)
    if start:
        received = models.set_weights(model, start, (args.crop, crop_scale(args.crop)))
        told = "" if input_range == recipe.input_range else f", pixels become {input_range[0]:g} to {input_range[1]:g}"
        print(f"{args.weights}: weights for {len(received)} layers{told}")
    if args.freeze_batch_norm:
        models.freeze_batch_norm(model, received)
    is_whole = "O_L" in received
    args.lr = args.lr or (FINE_TUNING_LR if is_whole else recipe.lr)

    # 4. Augmented batches, the multi-task loss and the schedules.
    from asmnet_tf.input_pipeline import FacePatches, TrainingBatches
    from asmnet_tf.losses import MultiTaskLoss

    frame = (args.crop, crop_scale(args.crop), args.input_size)
    cache = {"cache": args.cache, "cache_dir": args.cache_dir}
    patches = FacePatches(faces, *frame, **cache)
    batches = TrainingBatches(patches, AUGMENTATIONS[args.augment], args.batch_size, args.seed, replicas.part)
    part = validation[replicas.part(len(validation))]
    held_out = FacePatches(part, *frame, margin=1.0, **cache) if part else None
    loss = MultiTaskLoss(spec.flip_map, shape_model, args.landmark_loss, args.pose_weight)
    args.lr *= replicas.count if args.scale_lr else 1
    plan = training.make_plan(args, recipe, batches.steps_per_epoch)

    # 5. Train.
    sidecar = training.make_sidecar(args, spec) | {"head": args.head}
    trainer = training.Trainer(model, batches, held_out, loss, plan, spec, folder, sidecar, replicas)
    content = training.content_hashes([*faces, *validation], args.pose_labels, shape_model, args.weights)
    if args.resume:
        training.check_flags(folder, args, content)
        trainer.resume()
    if trainer.epoch == args.epochs:
        if replicas.is_chief:
            more = f"--weights {folder / 'last.keras'} --name NEW"
            print(f"{folder}: all {args.epochs} epochs are done, nothing is left to resume. Train on with {more}")
        return
    if replicas.is_chief:
        counts = {"train": len(faces), "validation": len(validation), "parameters": model.count_params()}
        training.write_arguments(folder, args, counts | {"skipped": len(bad.reasons)}, replicas, content)
        bad.write(folder)
        print(f"{folder}: {len(faces)} faces, {len(validation)} held out, {model.count_params():,} parameters")
    trainer.run(score_start=is_whole)
    if replicas.is_chief:
        print(f"{folder / 'best.keras'}: best validation NME {trainer.best_line()}")


if __name__ == "__main__":
    cli.run(main, parse_args)
