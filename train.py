"""Trains ASMNet or the MobileNetV2 baseline (step 2 of 3; paper sections 3 and 4).

    python train.py --dataset 300w --data-dir data/300w --weights MOBILENET.h5 --name asmnet_300w   # the shipped model
    python train.py --dataset 300w --data-dir data/300w --weights MOBILENET.h5 --name asmnet_300w --resume
    python train.py --dataset faces.toml --recipe finetune --name mine       # a shipped model, on one's own photographs
    python train.py --dataset 300w --data-dir data/300w --recipe paper --shape-model shape_models_tight/300w_pca90.npz
    python train.py --loss asm --input-size 64 --epochs 10                   # synthetic faces, after pca_builder.py
    srun bash worker.sh ...                    # several machines: see the first lines of training/distribution.py

Prints one line for each epoch (losses, alpha, learning rate, images/s, validation NME and pose error on held-out
training faces). Writes <output>/<name>/ with best.keras, last.keras, log.csv, curves.png, args.json, tensorboard/ and
state.npz for --resume. Two busy CPU cores: 40 to 70 images/s at --input-size 112. Next: evaluate.py.
"""

import argparse
import contextlib
from dataclasses import replace

from asmnet_tf import cli
from asmnet_tf.config import AUGMENTATIONS, crop_scale


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv; what --recipe leaves open is filled in from it."""
    parser = cli.new_parser(__doc__)
    cli.add_data_arguments(parser)
    cli.add_training_arguments(parser)
    return cli.parse_training_arguments(parser, argv)


def main(args: argparse.Namespace) -> None:
    """Trains, as one of the workers of --strategy; raises InputError for what the user can mend."""
    from asmnet_tf.data.annotations import BadSamples, faces_of_run
    from asmnet_tf.faces.detector import with_detector_box
    from asmnet_tf.shape.training_shapes import load_for
    from asmnet_tf.training import distribution, run_folder, schedule

    if args.strategy == "multiworker":  # it connects first; else what is wrong with the data is told before the wait
        cli.start_tensorflow()
    with contextlib.ExitStack() as stack:
        replicas = stack.enter_context(distribution.joined(args.strategy, args.devices, args.threads))
        folder, recipe = args.output / args.name, cli.recipe_of(args)
        if replicas.is_chief:
            stack.enter_context(run_folder.open_run(args.output, args.name, args.resume))

        # 1. Faces with landmarks and pose; a fixed part of the training faces is held out for validation.
        spec, data_dir = cli.find_data(args)
        bad = BadSamples(args.on_bad_sample == "skip")
        sources = {"labels": args.pose_labels, "extra": args.extra, "limit": args.limit, "bad": bad}
        faces, extra, validation = faces_of_run(spec, data_dir, args.val_fraction, **sources)
        spec, has_pose = with_detector_box(spec, faces), faces[0].pose is not None
        faces += extra

        # 2. The eigen-shapes of these faces in this crop.
        shape_model = load_for(args.shape_model, spec, args.crop) if args.loss == "asm" else None

        # 3. The network, a plain functional Keras model.
        cli.start_tensorflow()
        from asmnet_tf.data.batches import TrainingBatches
        from asmnet_tf.data.patches import FacePatches
        from asmnet_tf.formats.keras_runners import read_start_weights
        from asmnet_tf.network import asmnet, checkpoints
        from asmnet_tf.network.loss import MultiTaskLoss
        from asmnet_tf.training.trainer import Trainer, start_model

        distribution.prepare(args.seed, args.deterministic, args.threads, args.mixed_precision)
        scope = replicas.strategy.scope  # before TensorFlow's first operation: after it, there are no more CPUs
        start = None if args.weights == "none" else read_start_weights(args.weights, recipe.input_range)
        built = {"dropout": args.dropout, "l2_heads": args.l2_heads, "head": args.head}
        built["input_range"] = (start or recipe).input_range

        def build(input_size: int) -> asmnet.keras.Model:
            with scope():
                return asmnet.BUILDERS[args.arch](spec.num_landmarks, input_size, **built)

        model = build(args.phases[0].input_size)
        fit_head = not (args.resume and (folder / "state.npz").exists())
        received, has_head = start_model(model, start, recipe, faces, spec, fit_head)
        if has_head and "O_L" not in received:  # fitted
            replicas.take_from_chief(model.get_layer("O_L").weights)

        # 4. The phases that are left.
        gently = "O_L" in received and args.lr is None and args.recipe != "finetune"
        phases = schedule.phases_of_run(args.phases, gently, scale=replicas.count if args.scale_lr else 1)
        recipe, flags = replace(recipe, phases=phases), vars(args) | schedule.as_flags(phases)
        says_pose = has_pose and ("O_P" in received or any(phase.pose_weight for phase in phases))
        sidecar = run_folder.make_sidecar(flags, spec, commit=cli.commit(), has_pose=says_pose)
        content = run_folder.content_hashes([*faces, *validation], args.pose_labels, shape_model, args.weights, spec)
        progress, stored = run_folder.Progress(), {}
        if args.resume:
            run_folder.check_flags(folder, flags, content)
            progress, stored = run_folder.load_state(folder, flags["epochs"], replicas.is_chief)
        replicas.check_agreement(epochs_done=progress.epoch)
        if progress.epoch == flags["epochs"]:
            return

        # 5. In each of them: augmented batches, the multi-task loss and the schedules; train.
        kept = {key: flags[key] for key in ("crop", "cache", "cache_dir")} | {"crop_scale": crop_scale(args.crop)}
        how = {key: flags[key] for key in ("alpha_schedule", "validate_every", "mixed_precision", "xla")}
        more = {"part": replicas.part, "right_px": spec.right_px}
        more |= {"extra": len(extra), "extra_weight": args.extra_weight}
        part, patches = validation[replicas.part(len(validation))], None
        first = schedule.phase_at(phases, progress.epoch)
        for number, phase in enumerate(phases[first:], first):
            if model.input_shape[1] != phase.input_size:
                model = checkpoints.copy_variables(model, build(phase.input_size))
            if phase.freeze_batch_norm:
                asmnet.freeze_batch_norm(model, [layer.name for layer in model.layers] if number else received)
            if patches is None or patches.size != phase.input_size:
                patches = FacePatches(faces, size=phase.input_size, **kept)
                held_out = FacePatches(part, size=phase.input_size, margin=1.0, **kept) if part else None
            batches = TrainingBatches(patches, AUGMENTATIONS[phase.augment], args.batch_size, args.seed, **more)
            loss = MultiTaskLoss(spec.flip_map, shape_model, args.landmark_loss, phase.pose_weight * has_pose)
            plan = schedule.Plan(recipe, number, batches.steps_per_epoch, **how)
            place = {"folder": folder, "sidecar": sidecar | {"input_size": phase.input_size}, "replicas": replicas}
            trainer = Trainer(model, batches, held_out, loss, plan, spec, **place)
            trainer.go_on(progress, stored if number == first else None)
            if number == first and replicas.is_chief:
                counts = {"train": len(faces), "extra": len(extra), "validation": len(validation)}
                counts |= {"parameters": model.count_params(), "skipped": len(bad.reasons)}
                where = {"workers": replicas.workers, "replicas": replicas.count, "commit": sidecar["commit"]}
                run_folder.write_arguments(folder, flags, counts, content=content, **where)
                bad.write(folder)
                print(f"{folder}: {len(faces)} faces, {len(validation)} held out, {model.count_params():,} parameters")
            trainer.run(score_start=has_head)
            progress = trainer.progress


if __name__ == "__main__":
    cli.run(main, parse_args)
