"""Exports a model for other programs and for phones: TFLite, SavedModel, or the authors' Keras 2 `.h5`.

    python -m asmnet_tf.export asmnet_300w --to tflite                             # exports/asmnet_300w.tflite
    python -m asmnet_tf.export asmnet_300w --to tflite --quantise int8             # calibrated on synthetic faces
    python -m asmnet_tf.export runs/mine/best.keras --to tflite --quantise int8 --calibrate data/300w
    python -m asmnet_tf.export runs/mine/best.keras --to savedmodel --output served/mine

tflite and savedmodel take RGB pixels 0..255 (float32; uint8 where int8) and give {O_L, O_P} through the signature
serving_default; h5 is the release's convention, for comparing with it: pixels / 255, O_L of the other sign. A side-car
.json beside the file says so. Before it gets its name the file is opened, run on faces that it was not calibrated on,
and compared with MODEL; `evaluate.py FILE` scores it on real ones. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from asmnet_tf import cli, model_zoo
from asmnet_tf.config import POSE_RANGE_DEG
from asmnet_tf.files import InputError, replacing, replacing_folder, write_text
from asmnet_tf.ship import without_absolute_paths

if TYPE_CHECKING:
    import keras
    import numpy as np

ENDINGS = {"tflite": ".tflite", "savedmodel": "", "h5": ".h5"}
LIMITS = {"none": 1e-3, "float16": 2e-2, "int8": float("inf")}  # how far landmarks may be off, network units


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help=".keras file, or the name of a shipped model")
    parser.add_argument("--to", choices=ENDINGS, required=True)
    parser.add_argument("--quantise", choices=LIMITS, default="none", help="of --to tflite (default: none, float32)")
    parser.add_argument(
        "--calibrate",
        default="synthetic",
        metavar="FOLDER",
        help="faces for int8 and for the comparison: 300W or WFLW as downloaded (its training part is used), or a "
        "folder of face crops (default: synthetic)",
    )
    parser.add_argument(
        "--faces", type=cli.within(2, 10_000, whole=True), default=128, metavar="N", help="half of each use (128)"
    )
    parser.add_argument("--output", type=Path, help="default: exports/NAME[_float16|_int8|_savedmodel|_release]")
    args = parser.parse_args(argv)
    if args.quantise != "none" and args.to != "tflite":
        parser.error(f"--quantise {args.quantise}: only --to tflite is quantised")
    return args


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend, before anything is written."""
    # 1. The model, and a place where no other model's side-car is.
    source = model_zoo.find_model(args.model)
    if source.suffix != ".keras":
        raise InputError(f"{source}: exports start from a .keras model. Give train.py's best.keras or a shipped name.")
    output = args.output or Path("exports") / _file_name(source, args)
    _check_place(output, args.to)

    cli.start_tensorflow()
    from asmnet_tf import converters
    from asmnet_tf.model_zoo import sidecar_path
    from asmnet_tf.models import load_model

    model, sidecar = load_model(source)

    # 2. Faces in the model's crop.
    crops = converters.face_crops(args.calibrate, args.faces, source, model, sidecar)

    # 3. The file, compared before it gets its name; then its side-car.
    with cli.without_notes(), _place(output, args.to) as temporary:
        _write(args, model, temporary, crops[::2])
        away = converters.differences(model, temporary, crops[1::2])
        if not away["landmarks_max"] <= LIMITS[args.quantise]:  # so written, it also catches what is not a number
            raise InputError(
                f"{output}: not written, its landmarks are up to {away['landmarks_max']:.3g} of the crop's side away "
                f"from those of {source}. Does evaluate.py score that model well?"
            )
    facts = describe(args, source, model, sidecar) | {"compared": away}
    write_text(sidecar_path(output), json.dumps(facts, indent=2) + "\n")
    size = facts["input_size"]
    print(
        f"{output}: {bytes_of(output) / 1e6:.1f} MB ({source.name}: {bytes_of(source) / 1e6:.1f}); on {away['faces']} "
        f"faces landmarks differ by {away['landmarks_mean']:.2g} of the crop's side on average, "
        f"{away['landmarks_max']:.2g} at most ({away['landmarks_mean'] * size:.2g} and "
        f"{away['landmarks_max'] * size:.2g} px of {size}); pose by {away['pose_mean_deg']:.2g} and "
        f"{away['pose_max_deg']:.2g} deg"
    )


def _file_name(source: Path, args: argparse.Namespace) -> str:
    """Returns what an export is called: the run folder for best.keras and last.keras, else the file, and the kind."""
    stem = source.resolve().parent.name if source.stem in ("best", "last") else source.stem
    kind = {"tflite": args.quantise if args.quantise != "none" else "", "savedmodel": "savedmodel", "h5": "release"}
    return f"{stem}_{kind[args.to]}".rstrip("_") + ENDINGS[args.to]


def _check_place(output: Path, to: str) -> None:
    """Raises: InputError for a wrong ending, or where the side-car would replace the one of another file."""
    if output.suffix != ENDINGS[to] and to != "savedmodel":
        raise InputError(f"{output}: --to {to} writes files that end in {ENDINGS[to]}. Call it so.")
    for other in (output.with_suffix(ending) for ending in (".keras", *ENDINGS.values())):
        if other != output and other.exists():
            raise InputError(f"{output}: its side-car would replace that of {other.name}. Choose another name.")


def _place(output: Path, to: str) -> AbstractContextManager[Path]:
    return replacing_folder(output, "saved_model.pb") if to == "savedmodel" else replacing(output)


def _write(args: argparse.Namespace, model: keras.Model, path: Path, crops: np.ndarray) -> None:
    from asmnet_tf import converters, original

    if args.to == "tflite":
        path.write_bytes(converters.to_tflite(model, args.quantise, crops))
    elif args.to == "savedmodel":
        converters.write_saved_model(model, path)
    else:
        original.export_original(model, path)


def describe(args: argparse.Namespace, source: Path, model: keras.Model, sidecar: dict) -> dict:
    """Returns the side-car of an export: the model's own, and what the file takes, gives, costs and comes from."""
    import tensorflow as tf

    from asmnet_tf.models import count_multiply_adds
    from asmnet_tf.original import RELEASE

    size, landmarks = model.input_shape[1], model.output_shape[0][1]
    release = args.to == "h5"
    pixels = "uint8" if args.quantise == "int8" else "float32"
    facts = {
        "format": args.to,
        "quantisation": args.quantise,
        "num_landmarks": landmarks // 2,
        "input_size": size,
        "input": f"RGB pixels {'/ 255' if release else '0..255'}, {pixels} (B, {size}, {size}, 3)",
        "outputs": [f"O_L float32 (B, {landmarks})", "O_P float32 (B, 3)"],
        "landmarks": f"O_L: {'(centre - p)' if release else '(p - centre)'} / size of the crop, x0, y0, x1, ...",
        "pose": f"O_P: yaw, pitch, roll over {POSE_RANGE_DEG:g} degrees",
        "pose_range_deg": POSE_RANGE_DEG,
        "parameters": model.count_params(),
        "multiply_adds": count_multiply_adds(model),
        "source_model": source.name,
        "export_commit": cli.commit(),
        "tensorflow": tf.__version__,
    }
    if release:
        facts["convention"] = RELEASE.describe()
    else:
        facts["signature"] = "serving_default: image -> O_L, O_P"
    if args.quantise == "int8":
        facts["calibration"] = without_absolute_paths(args.calibrate)
    return {key: value for key, value in sidecar.items() if key != "stored"} | facts


def bytes_of(path: Path) -> int:
    """Returns the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    cli.run(main, parse_args)
