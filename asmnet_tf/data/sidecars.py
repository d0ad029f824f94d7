"""What ships with the package, by name: trained models and 300W shape models; side-cars. Standard library only."""

import os
import sys
from pathlib import Path

from asmnet_tf.config import CROPS, PCA_PERCENT, crop_scale
from asmnet_tf.files import InputError, read_json

FOLDER = Path(__file__).parents[1] / "pretrained"  # NAME.keras, NAME.json, runs/NAME/, MODEL_CARD.md
SHAPE_MODELS = FOLDER / "shape_models"  # 300w_pca<percent>.npz, of square crops


def pretrained_names() -> list[str]:
    """Returns the names of the shipped models: for `load_pretrained`, `evaluate.py NAME`, `train.py --weights NAME`."""
    return sorted(path.stem for path in FOLDER.glob("*.keras"))


def pretrained_path(name: str) -> Path:
    """Returns the file of a shipped model. Raises: InputError that lists the names, for another one."""
    if name not in (names := pretrained_names()):
        raise InputError(f"{name}: no model of this name ships with the package. There are: {', '.join(names)}.")
    return FOLDER / f"{name}.keras"


def pretrained_sidecar(name: str) -> dict:
    """Returns what stands beside a shipped model: dataset, input_size, crop, crop_scale, recipe, seed, commit, ..."""
    return read_sidecar(pretrained_path(name))


def find_model(source: str | Path) -> Path:
    """Returns the path of a model: `source` where that exists, else the shipped model of this name, else `source`.

    Raises: InputError that lists the names, where `source` is a bare word (no folder, no ending) and neither.
    """
    return _find(source, {name: FOLDER / f"{name}.keras" for name in pretrained_names()}, "model")


def find_runnable(source: str | Path) -> Path:
    """`find_model`, but of a shipped model the `.tflite` where there is one: the same network, without TensorFlow."""
    path = find_model(source)
    lite = path.with_suffix(".tflite")
    return lite if path != Path(source) and lite.is_file() else path


def find_shape_model(source: str | Path) -> Path:
    """Returns the path of a shape model: a file or a shipped name like 300w_pca97; see `find_model`."""
    return _find(source, {path.stem: path for path in sorted(SHAPE_MODELS.glob("*.npz"))}, "shape model")


def default_shape_model(dataset: str, crop: str) -> Path:
    """Returns what `train.py` uses without --shape-model: `shape_models/<dataset>_pca90.npz`, made by pca_builder.py.

    Where that file is absent, the name of the shipped shape model of this dataset and crop, if there is one.
    """
    name = f"{dataset}_pca{PCA_PERCENT:g}"
    made = Path("shape_models") / f"{name}.npz"
    shipped = crop == "square" and (SHAPE_MODELS / f"{name}.npz").is_file()
    return Path(name) if shipped and not made.exists() else made


def sidecar_path(model_path: str | Path) -> Path:
    """Returns the `.json` that stands beside a model: best.keras -> best.json, SavedModel net_1.0 -> net_1.0.json."""
    path = Path(model_path)
    if path.is_dir():
        path = path if path.name.strip(".") else path.resolve()
        return path.parent / f"{path.name}.json"
    return path.with_suffix(".json")


def read_sidecar(model_path: str | Path) -> dict:
    """Returns the side-car of a model, {} where there is none. Raises: InputError if it is no JSON object."""
    path = sidecar_path(model_path)
    try:
        sidecar = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not JSON ({error}). Remove it to use flags or defaults.") from error
    if not isinstance(sidecar, dict):
        raise InputError(f"{path}: not a JSON object. Remove it to use flags or defaults.")
    return sidecar


def has_pose(sidecar: dict) -> bool:
    """Says whether the model's pose was trained: of a layout without six rigid points the side-car has `null`."""
    return sidecar.get("pose", "") is not None


def crop_of(path: Path, sidecar: dict, crop: str | None = None) -> tuple[str, float]:
    """Returns the crop and its scale that a side-car names, or those of `crop` instead; says where there is none.

    Raises: InputError for a side-car that names no crop or a scale that is none.
    """
    if not sidecar:
        print(f"{sidecar_path(path)}: absent, so crop {crop or 'square'} is assumed", file=sys.stderr)
    trained = sidecar.get("crop", "square")
    if trained not in CROPS:
        raise InputError(f"{sidecar_path(path)}: crop is {trained!r}, expected {' or '.join(CROPS)}.")
    crop = crop or trained
    if crop != trained or "crop_scale" not in sidecar:
        return crop, crop_scale(crop)
    scale = sidecar["crop_scale"]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0.1 < scale < 10:
        raise InputError(f"{sidecar_path(path)}: crop_scale is {scale!r}, expected a number like 1.2.")
    return crop, scale


def _find(source: str | Path, shipped: dict[str, Path], kind: str) -> Path:
    path = Path(source)
    # unlike path.exists(), false for what no file can be called
    if os.path.exists(path) or len(path.parts) != 1 or path.suffix:
        return path
    if path.name not in shipped:
        raise InputError(f"{path}: no such {kind}, neither a file nor shipped. There are: {', '.join(shipped)}.")
    return shipped[path.name]
