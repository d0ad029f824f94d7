"""What the three scripts and the `python -m asmnet_tf...` commands share. Standard library only: `--help` is quick."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from asmnet_tf.config import CACHES, CROPS, DATASETS, DatasetSpec
from asmnet_tf.files import InputError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[[argparse.Namespace], None], parse_args: Callable[[], argparse.Namespace]) -> None:
    """Runs a command: bad input ends it with one line on stderr and exit code 2, Ctrl-C with 130."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes would bury the program's own words
    # keep freed tensors for the next step: giving them back to the system cost a third of the step in page faults
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default without AVX-512: 1.4 x the step on AVX2
    try:
        main(parse_args())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def new_parser(docstring: str) -> argparse.ArgumentParser:
    """Returns a parser that shows the script's docstring as it is written."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_data_arguments(parser: argparse.ArgumentParser, dataset_default: str | None = "synthetic") -> None:
    """Adds --dataset, --data-dir, --limit: the same in every script."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default=dataset_default, help="default: synthetic")
    group.add_argument("--data-dir", type=Path, help="folder of the dataset as downloaded (default: data/<dataset>)")
    group.add_argument("--limit", type=positive_int, metavar="N", help="use the first N samples only, for smoke runs")


def add_crop_argument(parser: argparse.ArgumentParser, default: str | None, help_default: str) -> None:
    """Adds --crop."""
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default=default,
        help=f"square: 1.2 x the landmark box; tight: the landmark box, aspect ratio not kept ({help_default})",
    )


def add_cache_arguments(parser: argparse._ArgumentGroup) -> None:
    """Adds --cache and --cache-dir; see `input_pipeline.FacePatches`."""
    parser.add_argument(
        "--cache", choices=CACHES, default="auto", help="decoded faces; auto: memory up to 4 GB or half of what is free"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="of --cache disk (default: in $ASMNET_CACHE or ~/.cache/asmnet_tf)",
    )


def find_data(args: argparse.Namespace) -> tuple[DatasetSpec, Path]:
    """Returns the dataset's spec and folder; generates a synthetic one on first use."""
    spec = DATASETS[args.dataset or "synthetic"]
    folder = args.data_dir or Path(spec.default_data_dir)
    if spec.is_synthetic:
        from asmnet_tf.synthetic import ensure_dataset

        ensure_dataset(folder, spec)
    return spec, folder


def positive_int(text: str) -> int:
    """argparse type: a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above zero")
    return value


def fraction(text: str) -> float:
    """argparse type: a number from 0 up to, not including, 1."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{value:g} is not in [0, 1)")
    return value


def non_negative(text: str) -> float:
    """argparse type: a finite number of zero or more."""
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of zero or more")
    return value


def positive(text: str) -> float:
    """argparse type: a finite number above zero."""
    value = non_negative(text)
    if value == 0.0:
        raise argparse.ArgumentTypeError("0 is not above zero")
    return value


def commit() -> str:
    """Returns the commit of this checkout, `-dirty` where files differ from it, or `unknown` outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
