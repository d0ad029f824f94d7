"""What the three scripts and the `python -m asmnet_tf...` commands share. Standard library only: `--help` is quick."""

import argparse
import contextlib
import errno
import functools
import glob
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from asmnet_tf import config
from asmnet_tf.config import RECIPES, Recipe
from asmnet_tf.data.layouts import DATASETS, DatasetSpec, find_spec
from asmnet_tf.data.sidecars import default_shape_model
from asmnet_tf.files import ENDINGS, EXIT_BAD_INPUT, InputError, cores, first_line, last_words, read_json

EXIT_PIPE = 141  # as of a program that the signal of a closed pipe ends
_TALKATIVE = ("0", "1")  # $TF_CPP_MIN_LOG_LEVEL where all that TensorFlow says is wanted
# what TensorFlow says to stderr whatever its log level, by default 2, errors
_NOTE = re.compile(
    rb"WARNING: All log messages before absl|[IWE]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IWE] "
    rb"|INFO: Created TensorFlow Lite|fully_quantize: "
)


def run(main: Callable[[argparse.Namespace], None], parse_args: Callable[[], argparse.Namespace]) -> None:
    """Runs a command: bad input ends it with one line on stderr and exit code 2, Ctrl-C with 130.

    A training run saves its state first, also on SIGTERM, which then ends it with 0: see `StopSignals`. A reader of the
    output that has gone (`| head`) ends it without a word and with 141; closed from the start, it is not missed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    # keep freed tensors for the next step: giving them back to the system cost a third of the step in page faults
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: 1.4 x the step on AVX2
    code: int | str | None = 0
    try:
        main(parse_args())
    except SystemExit as end:
        code = end.code
    except ENDINGS as error:
        message, code = last_words(error)
        print(message, file=sys.stderr)
    except OSError as error:
        code = _output_lost(error)
    try:
        sys.stdout.flush()  # here: at the interpreter's end nobody could catch what it raises
    except OSError as error:
        code = code or _output_lost(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is not tried again
    if code:
        sys.exit(code)


def _output_lost(error: OSError) -> int:
    """Returns the exit code for an output that is not taken any more, and says why; raises any other error."""
    if error.errno == errno.EPIPE:
        return EXIT_PIPE
    if error.errno != errno.ENOSPC:
        raise error
    print(f"error: {error.filename or 'the output'}: {error.strerror}. Make room or write elsewhere.", file=sys.stderr)
    return EXIT_BAD_INPUT


@functools.cache
def start_tensorflow(user: str = "this program") -> None:
    """Imports TensorFlow and Keras for a program: quietly, and to compute in float32 whatever the user's Keras does.

    Libraries must not do so: it changes the environment and settings of the process.

    Args:   user: what needs it, for the error.
    Raises: InputError where it is not installed, and for settings that Keras itself does not take.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") not in _TALKATIVE:  # 2: errors; that there is no GPU is one to TensorFlow
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2" if glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg") else "3"
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    asked = {}
    with contextlib.suppress(OSError, ValueError, TypeError, RuntimeError):
        asked = dict(read_json(Path(home).expanduser() / "keras.json"))
    asked["backend"] = os.environ.get("KERAS_BACKEND") or asked.get("backend")
    os.environ["KERAS_BACKEND"] = config.KERAS["backend"]
    try:
        with without_notes():
            import keras
            import tensorflow  # noqa: F401
    except ImportError as error:
        told = f"needs TensorFlow, and {error.name or error} is not installed"
        raise InputError(f'{user}: {told}. pip install "asmnet-tf[train]"') from error
    except (ValueError, AttributeError) as error:
        raise InputError(f"{home}: Keras does not take its keras.json ({first_line(error, 200)}).") from error
    keras.config.set_floatx(config.KERAS["floatx"])
    keras.config.set_image_data_format(config.KERAS["image_data_format"])
    others = [str(asked[key]) for key, value in config.KERAS.items() if asked.get(key, value) not in (value, None)]
    if others:
        told = f"{', '.join(others)} of KERAS_BACKEND or keras.json"
        print(f"Keras: this program computes with {', '.join(config.KERAS.values())}, not with {told}", file=sys.stderr)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Keeps back what comes to stderr meanwhile, then writes what is no note of TensorFlow; all where that fails."""
    try:
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in _TALKATIVE:
            raise OSError
        notes, stderr = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115
    except OSError:  # or no place for it, or no stderr
        yield
        return
    with notes:
        os.dup2(notes.fileno(), 2)
        hidden = _NOTE
        try:
            yield
        except Exception as error:
            hidden = hidden if isinstance(error, InputError) else None
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            notes.seek(0)
            for line in notes:
                if hidden is None or not hidden.match(line):
                    os.write(2, line)


def new_parser(docstring: str) -> argparse.ArgumentParser:
    """Returns a parser that shows the script's docstring as it is written and ends with one line, without the usage."""
    parser = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(EXIT_BAD_INPUT, f"{parser.prog}: error: {InputError(message)}\n")
    return parser


def add_data_arguments(parser: argparse.ArgumentParser, dataset_default: str | None = "synthetic") -> None:
    """Adds --dataset, --data-dir, --limit, --on-bad-sample: the same in every script."""
    add = parser.add_argument_group("data").add_argument
    told = f"{', '.join(DATASETS)}, or a description FILE.toml of your own (default: synthetic)"
    add("--dataset", type=dataset, default=dataset_default, metavar="NAME|FILE", help=told)
    told = "folder of the dataset as downloaded (default: data/<dataset>; of FILE.toml the folder it lies in)"
    add("--data-dir", type=Path, help=told)
    add("--limit", type=positive_int, metavar="N", help="use the first N samples only, for smoke runs")
    told = "skip: leave out faces whose image or annotation cannot be read, list them in skipped.csv (default: fail)"
    add("--on-bad-sample", choices=("fail", "skip"), default="fail", help=told)


def add_crop_argument(parser: argparse.ArgumentParser, default: str | None, help_default: str) -> None:
    """Adds --crop."""
    told = f"square: 1.2 x the landmark box; tight: the landmark box, aspect ratio not kept ({help_default})"
    parser.add_argument("--crop", choices=config.CROPS, default=default, help=told)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only train.py takes: faces, model, recipe and what it sets the defaults of, run, devices."""
    group = parser.add_argument_group
    add = group("faces").add_argument
    add("--pose-labels", type=Path, help="csv or folder of .npy instead of PnP on the landmarks")
    add("--val-fraction", type=fraction, default=config.VAL_FRACTION, help="held out of training (0.1)")
    told = "further training faces, with the dataset's points: a folder of images and .pts, a .csv, .xml, .json or list"
    add("--extra", type=Path, metavar="FOLDER", help=told)
    add("--extra-weight", type=within(0.01, 100), default=1.0, metavar="W", help="how often an epoch has each (1)")
    add("--shape-model", type=Path, help="default: shape_models/<dataset>_pca90.npz, else shipped")

    add = group("model").add_argument
    add("--arch", choices=("asmnet", "mobilenet_v2"), default="asmnet")
    add("--head", choices=config.HEADS, default="pooled", help="spatial: keeps position, beside the paper's")
    add("--weights", default="none", help="none, imagenet, .keras, .weights.h5, .h5 or a shipped NAME")

    add = group("recipe", "--recipe sets the defaults of all that follow").add_argument
    told = f"finetune: goes on from --weights, default {config.DEFAULT_MODEL}, gently enough for 20 faces"
    add("--recipe", choices=RECIPES, default="tuned", help=told)
    told = "asm: with the ASM term, mse: without it; default: asm of paper or beside --alpha or --shape-model, else mse"
    add("--loss", choices=("asm", "mse"), help=told)
    add("--landmark-loss", choices=config.LANDMARK_LOSSES, help="metric of both landmark terms")
    add("--alpha", type=non_negative, nargs=3, metavar="A", help="weight of the ASM term by thirds")
    told = "thirds of what; release: of the steps of an epoch, its defect"
    add("--alpha-schedule", choices=("epochs", "release"), default="epochs", help=told)
    add("--pose-weight", type=non_negative)
    add("--batch-size", type=positive_int)
    add("--weight-decay", type=non_negative)
    add("--ema", type=fraction, help="momentum of the weights' moving average, e.g. 0.998")
    add("--l2-heads", type=non_negative, help="the paper's 0.01 has no effect in the release")
    add("--dropout", type=fraction)
    add_crop_argument(parser, None, "paper: tight, else square")

    planned = "; ".join(f"{name}: {', '.join(map(str, recipe.phases))}" for name, recipe in RECIPES.items())
    told = "with any of these, one phase: the recipe's first, at its last input size, changed so. A whole model of"
    add = group("phases", f"{planned}; {told} --weights goes through the last phase only").add_argument
    add("--epochs", type=positive_int)
    add("--input-size", type=positive_int, metavar="PX")
    told = f"from a whole model of --weights 2e-5, with frozen batch norm {config.FROZEN_LR:g} at most"
    add("--lr", type=within(0, 10, without=(0,)), help=f"peak learning rate; {told}")
    add("--augment", choices=config.AUGMENTATIONS)
    add("--freeze-batch-norm", action="store_true", default=None, help="keep that of --weights")

    add = group("run").add_argument
    add("--output", type=Path, default=Path("runs"), help="default: runs")
    add("--name", type=run_name, help="run folder in --output (default: <arch>_<dataset>_<loss>)")
    add("--resume", action="store_true", help="go on where the run of this name stopped")
    add("--seed", type=within(0, 2**32 - 1, whole=True), default=0)
    add("--validate-every", type=positive_int, metavar="N", help="epochs (default: 30 times a run)")
    told = "decoded faces; auto: memory up to 4 GB or half of what is free"
    add("--cache", choices=config.CACHES, default="auto", help=told)
    add("--cache-dir", type=Path, metavar="DIR", help="of --cache disk (default: $ASMNET_CACHE or ~/.cache/asmnet_tf)")
    add("--mixed-precision", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")
    add("--xla", action="store_true", help="compile the step with XLA: for GPUs, 6 times slower on a CPU")
    add("--deterministic", action="store_true", help="the same bits again, also after --resume: fixes --threads")
    told = "of TensorFlow (default: it chooses; --deterministic: cores)"
    add("--threads", type=within(1, 1024, whole=True), metavar="N", help=told)

    add = group("several devices or machines", "--batch-size is of all of them together").add_argument
    told = "auto: multiworker where TF_CONFIG is set, mirrored on two GPUs or more, else one"
    add("--strategy", choices=("auto", "one", "mirrored", "multiworker"), default="auto", help=told)
    add("--devices", type=device, nargs="+", metavar="D", help="of mirrored: GPU:0 GPU:1; CPU:0 CPU:1")
    add("--scale-lr", action="store_true", help="--lr times the number of replicas (Goyal et al. 2017)")


def parse_training_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parses `add_training_arguments`; what the flags leave open is filled in, the flags of a phase as `phases`."""
    args = parser.parse_args(argv)
    if args.recipe == "finetune" and args.weights == "none":
        args.weights = config.DEFAULT_MODEL
    if args.freeze_batch_norm and args.weights == "none":
        parser.error("--freeze-batch-norm: keeps that of --weights, and there are none")
    if args.head != "pooled" and args.arch != "asmnet":
        parser.error(f"--head {args.head}: for --arch asmnet only")
    if args.loss == "mse" and (args.alpha or args.shape_model):
        parser.error("--loss mse: has no ASM term that --alpha or --shape-model could be of")
    if args.extra_weight != 1 and not args.extra:
        parser.error(f"--extra-weight {args.extra_weight:g}: of the faces of --extra, and there are none")
    if args.strategy == "auto" and "TF_CONFIG" in os.environ:
        args.strategy = "multiworker"
    if args.devices and (args.strategy in ("one", "multiworker") or len(set(args.devices)) < len(args.devices)):
        parser.error(f"--devices {' '.join(args.devices)}: each once, for --strategy mirrored or auto")
    args.loss = args.loss or ("asm" if args.alpha or args.shape_model else None)
    for key, value in vars(RECIPES[args.recipe]).items():
        if getattr(args, key, value) is None:
            setattr(args, key, value)
    phases = RECIPES[args.recipe].phases
    given = {key: value for key in vars(phases[0]) if (value := vars(args)[key]) is not None}
    if given.keys() - {"pose_weight"}:
        rate = config.FROZEN_LR if args.freeze_batch_norm else phases[0].lr
        phases = [replace(phases[0], input_size=phases[-1].input_size, lr=rate)]
    try:
        args.phases = tuple(replace(phase, **given) for phase in phases)
    except ValueError as error:
        parser.error(str(error))
    args.threads = args.threads or (cores() if args.deterministic else None)
    name = find_spec(args.dataset).name
    args.name = args.name or f"{args.arch}_{name}_{args.loss}"
    args.shape_model = args.shape_model or default_shape_model(name, args.crop)
    return args


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Returns the recipe of --recipe, changed as the flags say."""
    return replace(RECIPES[args.recipe], **{key: vars(args)[key] for key in vars(RECIPES[args.recipe]) if key in args})


def find_data(args: argparse.Namespace) -> tuple[DatasetSpec, Path]:
    """Returns the dataset's spec and folder; generates a synthetic one on first use."""
    spec = find_spec(args.dataset or "synthetic")
    folder = args.data_dir or Path(spec.default_data_dir)
    if spec.is_synthetic:
        from asmnet_tf.synthetic.dataset import write_dataset

        write_dataset(folder, spec)
    return spec, folder


def dataset(text: str) -> str:
    """argparse type: what `layouts.find_spec` knows."""
    try:
        find_spec(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def device(text: str) -> str:
    """argparse type: CPU or GPU, a colon and a number."""
    if not re.fullmatch("(CPU|GPU):(0|[1-9][0-9]?)", text):
        raise argparse.ArgumentTypeError(f"{text} is not of the form GPU:0 or CPU:0")
    return text


def run_name(text: str) -> str:
    """argparse type: a path below a folder, on every system."""
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if not text.strip() or not path.parts or path.anchor or ".." in path.parts:
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder in --output")
    return text


def within(low: float, high: float, whole: bool = False, without: tuple[float, ...] = ()) -> Callable[[str], float]:
    """Returns an argparse type: a number from `low` to `high`, `without` these, in plain digits.

    What `int` and `float` also take is no number here: nan, inf, 1_000, digits of other scripts.
    """
    pattern = "[+-]?[0-9]{1,20}" if whole else r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?"

    def read(text: str) -> float:
        value = (int if whole else float)(text) if re.fullmatch(pattern, text) else None
        if value is None or not low <= value <= high or value in without:
            kind, but = "whole number" if whole else "number", "".join(f", {value:g} left out" for value in without)
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind} from {low:,} to {high:,}{but}")
        return value

    return read


positive_int = within(1, 10**9, whole=True)
fraction = within(0, 1, without=(1,))
non_negative = within(0, 10**6)


def commit() -> str:
    """Returns the commit of this checkout, `-dirty` where files differ from it, or `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return "unknown"
