"""Exports a model for other programs and for phones: TFLite, ONNX, SavedModel, or the authors' Keras 2 `.h5`.

    python -m asmnet_tf.export asmnet_300w --to tflite                             # exports/asmnet_300w.tflite
    python -m asmnet_tf.export asmnet_300w --to tflite --quantise int8             # calibrated on synthetic faces
    python -m asmnet_tf.export runs/mine/best.keras --to tflite --quantise int8 --calibrate data/300w
    python -m asmnet_tf.export runs/mine/best.keras --to savedmodel --output served/mine
    python -m asmnet_tf.export runs/mine/best.keras --to onnx                      # needs the extra [onnx]

tflite, onnx and savedmodel take RGB pixels 0..255 (float32; uint8 where int8) and give {O_L, O_P} through the signature
serving_default, or as outputs of these names; h5 is the release's convention, for comparing with it: pixels / 255, O_L
of the other sign. A side-car .json beside the file says so. Before it gets its name the file is opened, run on faces
that it was not calibrated on, and compared with MODEL; `evaluate.py FILE` scores it on real ones. Takes about half a
minute.
"""

import argparse
import json
from pathlib import Path

from asmnet_tf import cli
from asmnet_tf.data import sidecars
from asmnet_tf.files import InputError, relative_path, replacing, replacing_folder, write_text

ENDINGS = {"tflite": ".tflite", "onnx": ".onnx", "savedmodel": "", "h5": ".h5"}
LIMITS = {"none": 1e-3, "float16": 2e-2, "int8": float("inf")}  # how far landmarks may be off, network units


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of `argv`, default sys.argv."""
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help=".keras file, or the name of a shipped model")
    add("--to", choices=ENDINGS, required=True)
    add("--quantise", choices=LIMITS, default="none", help="of --to tflite (default: none, float32)")
    used = "300W or WFLW as downloaded (its training part is used), or a folder of face crops (default: synthetic)"
    told = f"faces for int8 and for the comparison: {used}"
    add("--calibrate", default="synthetic", metavar="FOLDER", help=told)
    add("--faces", type=cli.within(2, 10_000, whole=True), default=128, metavar="N", help="half of each use (128)")
    add("--output", type=Path, help="default: exports/NAME[_float16|_int8|_savedmodel|_release]")
    args = parser.parse_args(argv)
    if args.quantise != "none" and args.to != "tflite":
        parser.error(f"--quantise {args.quantise}: only --to tflite is quantised")
    return args


def main(args: argparse.Namespace) -> None:
    """Runs the steps; raises InputError for what the user can mend, before anything is written."""
    # 1. The model, and a place where no other model's side-car is.
    source = sidecars.find_model(args.model)
    if source.suffix != ".keras":
        raise InputError(f"{source}: exports start from a .keras model. Give train.py's best.keras or a shipped name.")
    output = args.output or Path("exports") / _file_name(source, args.to, args.quantise)
    if output.suffix != ENDINGS[args.to] and args.to != "savedmodel":
        raise InputError(f"{output}: --to {args.to} writes files that end in {ENDINGS[args.to]}. Call it so.")
    stem = output.name if args.to == "savedmodel" else output.stem
    for other in (output.with_name(stem + ending) for ending in (".keras", *ENDINGS.values())):
        if other != output and other.exists():
            raise InputError(f"{output}: its side-car would replace that of {other.name}. Choose another name.")

    cli.start_tensorflow()
    from asmnet_tf.formats import exporters
    from asmnet_tf.network.checkpoints import load_model

    model, sidecar = load_model(source)

    # 2. Faces in the model's crop.
    crops = exporters.face_crops(args.calibrate, args.faces, source, model, sidecar)

    # 3. The file, compared before it gets its name; then its side-car.
    place = replacing_folder(output, "saved_model.pb") if args.to == "savedmodel" else replacing(output)
    with cli.without_notes(), place as temporary:
        exporters.write(model, temporary, args.to, args.quantise, crops[::2])
        away = exporters.differences(model, temporary, crops[1::2])
        if not away["landmarks_max"] <= LIMITS[args.quantise]:  # so written, it also catches what is not a number
            raise InputError(
                f"{output}: not written, its landmarks are up to {away['landmarks_max']:.3g} of the crop's side away "
                f"from those of {source}. Does evaluate.py score that model well?"
            )
    facts = {key: value for key, value in sidecar.items() if key != "stored"}
    facts |= exporters.describe(model, args.to, args.quantise, sidecars.has_pose(sidecar))
    facts |= {"source_model": source.name, "export_commit": cli.commit(), "compared": away}
    if args.quantise == "int8":
        facts.pop("quality", None)  # was fitted to the errors of the float network
        facts["calibration"] = relative_path(args.calibrate)
    write_text(sidecars.sidecar_path(output), json.dumps(facts, indent=2) + "\n")
    size = facts["input_size"]
    print(
        f"{output}: {bytes_of(output) / 1e6:.1f} MB ({source.name}: {bytes_of(source) / 1e6:.1f}); on {away['faces']} "
        f"faces landmarks differ by {away['landmarks_mean']:.2g} of the crop's side on average, "
        f"{away['landmarks_max']:.2g} at most ({away['landmarks_mean'] * size:.2g} and "
        f"{away['landmarks_max'] * size:.2g} px of {size}); pose by {away['pose_mean_deg']:.2g} and "
        f"{away['pose_max_deg']:.2g} deg"
    )


def _file_name(source: Path, to: str, quantise: str) -> str:
    """Returns what an export is called: the run folder for best.keras and last.keras, else the file, and the kind."""
    stem = source.resolve().parent.name if source.stem in ("best", "last") else source.stem
    kind = {"savedmodel": "savedmodel", "h5": "release"}.get(to, quantise)
    return (stem if kind == "none" else f"{stem}_{kind}") + ENDINGS[to]


def bytes_of(path: Path) -> int:
    """Returns the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def program() -> None:
    """Runs the program: the console command."""
    cli.run(main, parse_args)


if __name__ == "__main__":
    program()
