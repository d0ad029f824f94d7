"""Puts the best model of a training run among those that ship with the package.

    python -m asmnet_tf.ship runs/asmnet_300w asmnet_300w

Writes pretrained/NAME.keras (large kernels as float16) and NAME.json, and copies the run's log.csv and args.json to
pretrained/runs/NAME/, absolute paths made relative to the current folder or cut to their last part. A model of that
name is replaced. Prints what float16 changes on noise; what it changes on faces, and the model card, are the user's:

    python evaluate.py runs/asmnet_300w/best.keras asmnet_300w --dataset 300w --data-dir data/300w --subset lfpw
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

from asmnet_tf import cli, model_zoo
from asmnet_tf.files import InputError, read_json, write_text

NOISE_IMAGES = 16


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="what train.py wrote")
    parser.add_argument("name", metavar="NAME", help="small letters, digits and _")
    parser.add_argument(
        "--output", type=Path, default=model_zoo.FOLDER, help="folder (default: pretrained/ of the package)"
    )
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend, before anything is written."""
    # 1. All that is copied, read and checked.
    if not re.fullmatch(r"[a-z0-9_]+", args.name):
        raise InputError(f"{args.name}: a shipped model's name is of small letters, digits and _.")
    log = _read(args.run / "log.csv")
    try:
        record = read_json(args.run / "args.json")
    except (OSError, ValueError) as error:
        raise InputError(f"{args.run / 'args.json'}: not JSON ({error}).") from error

    import numpy as np

    cli.start_tensorflow()
    from asmnet_tf.models import load_model, save_model

    model, sidecar = load_model(args.run / "best.keras")

    # 2. The model, then its run.
    path = args.output / f"{args.name}.keras"
    save_model(model, path, without_absolute_paths(sidecar) | {"stored": "large kernels as float16"}, half=True)
    record = without_absolute_paths(record)
    write_text(args.output / "runs" / args.name / "args.json", json.dumps(record, indent=2) + "\n")
    write_text(args.output / "runs" / args.name / "log.csv", log)

    # 3. What float16 changed.
    size = model.input_shape[1]
    noise = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, size, size, 3)).astype(np.float32)
    before, after = (np.asarray(network(noise, training=False)[0]) for network in (model, load_model(path)[0]))
    away = np.abs(after - before) * size
    sizes = [file.stat().st_size / 1e6 for file in (args.run / "best.keras", path)]
    print(
        f"{path}: {sizes[1]:.1f} MB instead of {sizes[0]:.1f}; on {NOISE_IMAGES} images of noise landmarks move by "
        f"{away.mean():.4f} px of {size} on average, {away.max():.4f} at most"
    )


def without_absolute_paths(value: object) -> object:
    """Returns a JSON value in which every absolute path, also after `=`, is relative to the current folder.

    One outside it is cut to its last part: /data/300w becomes 300w.
    """
    if isinstance(value, dict):
        return {key: without_absolute_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(v) for v in value]
    if not isinstance(value, str):
        return value
    before, equals, after = value.rpartition("=")
    if not os.path.isabs(after):
        return value
    path, here = Path(os.path.normpath(after)), Path.cwd()
    return f"{before}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}). Is {path.parent} a run folder of train.py?") from error


if __name__ == "__main__":
    cli.run(main, parse_args)
