"""Puts the best model of a training run among those that ship with the package.

    python tests/tools/install_pretrained.py runs/asmnet_300w asmnet_300w

Writes pretrained/NAME.keras (large convolutions as float16) and NAME.json, of the default model NAME.tflite, too, and
copies the run's log.csv and args.json to pretrained/runs/NAME/, absolute paths made relative to the current folder or
cut to their last part. A model of that name is replaced. Prints what float16 changes on noise; what it changes on
faces, and the model card, are the user's:

    python evaluate.py runs/asmnet_300w/best.keras asmnet_300w --dataset 300w --data-dir data/300w --subset lfpw
"""

import argparse
import io
import json
import re
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL
from asmnet_tf.data import sidecars
from asmnet_tf.files import InputError, read_json, relative_path, replacing, write_text

NOISE_IMAGES = 16
# smaller arrays (batch norm, biases, depthwise kernels) stay float32. On 64 LFPW faces at 112 px float16 then moves
# landmarks by 0.007 px on average instead of 0.025, for 11 % more bytes. So do the heads: a fitted one is what it is
# for the very weights it was fitted with
HALF_ABOVE = 10_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="what train.py wrote")
    parser.add_argument("name", metavar="NAME", help="small letters, digits and _")
    parser.add_argument(
        "--output", type=Path, default=sidecars.FOLDER, help="folder (default: pretrained/ of the package)"
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
    from asmnet_tf.formats import exporters
    from asmnet_tf.network.checkpoints import load_model

    model, sidecar = load_model(args.run / "best.keras")

    # 2. The model, then its run.
    path = args.output / f"{args.name}.keras"
    with replacing(path) as temporary:
        model.save(temporary)
        halve(temporary, path)
    sidecar = without_absolute_paths(sidecar) | {"stored": "large convolutions as float16"}
    write_text(sidecars.sidecar_path(path), json.dumps(sidecar, indent=2) + "\n")
    record = without_absolute_paths(record)
    write_text(args.output / "runs" / args.name / "args.json", json.dumps(record, indent=2) + "\n")
    write_text(args.output / "runs" / args.name / "log.csv", log)

    if args.name == DEFAULT_MODEL:  # the runtime of predict; from the stored weights, so that both say the same
        with replacing(path.with_suffix(".tflite")) as temporary:
            exporters.write(load_model(path)[0], temporary, "tflite", "none", np.empty(0))

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


def halve(archive: Path, path: str | Path) -> None:
    """Rewrites a `.keras` archive with its large convolutions as float16; `path` is what an error calls it."""
    import h5py
    import numpy as np

    with zipfile.ZipFile(archive) as file:
        members = {name: file.read(name) for name in file.namelist()}
    halved = io.BytesIO()
    with h5py.File(io.BytesIO(members["model.weights.h5"]), "r") as old, h5py.File(halved, "w") as new:

        def copy(name: str, entry: h5py.Group | h5py.Dataset) -> None:
            if isinstance(entry, h5py.Dataset):
                values = entry[()]
                if values.dtype == np.float32 and values.size > HALF_ABOVE and values.ndim == 4:  # convolutions
                    if np.abs(values).max() > np.finfo(np.float16).max:
                        raise InputError(f"{path}: {name} holds weights beyond +-65504. Save it in float32.")
                    values = values.astype(np.float16)
                made = new.create_dataset(name, data=values)
            else:
                made = new.require_group(name)
            made.attrs.update(entry.attrs)

        old.visititems(copy)
    members["model.weights.h5"] = halved.getvalue()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def without_absolute_paths(value: object) -> object:
    """Returns a JSON value in which `relative_path` has changed every text, or what stands after its last `=`."""
    if isinstance(value, dict):
        return {key: without_absolute_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(v) for v in value]
    if not isinstance(value, str):
        return value
    before, equals, after = value.rpartition("=")
    return f"{before}{equals}{relative_path(after)}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}). Is {path.parent} a run folder of train.py?") from error


if __name__ == "__main__":
    cli.run(main, parse_args)
