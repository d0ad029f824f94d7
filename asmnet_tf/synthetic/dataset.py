"""Synthetic faces as a dataset: written in the layouts of 300W and WFLW, so that the real readers read it.

Face i of folder k depends on the seed, k and i alone, not on the number of workers or faces. NumPy, OpenCV, SciPy.
"""

import contextlib
import functools
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from asmnet_tf.config import ANGLES
from asmnet_tf.data.geometry import landmark_box
from asmnet_tf.data.layouts import DATASETS, DatasetSpec
from asmnet_tf.data.readers import pts_text
from asmnet_tf.files import InputError, cores, read_json, replacing_folder, write_csv, write_text
from asmnet_tf.synthetic.renderer import ATTRIBUTES, render_face

GENERATOR_VERSION = 2
_CHUNK = 20  # faces that a worker renders at once
_COMPLETE = "synthetic.json"  # written last: a folder that has it is whole


class _Overtaken(Exception):
    """Another process has written the dataset meanwhile: its faces serve as well."""


def _write_face(seed: int, split: int, difficulty: str, folder: Path, layout: str, index: int) -> tuple:
    """Renders and writes one face of a folder; returns its name, its line of the WFLW list or "", and its pose."""
    face = render_face(seed, index, difficulty, split=split)
    path = folder / f"face_{index:06d}.jpg"
    _, data = cv2.imencode(".jpg", cv2.cvtColor(face.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(data.tobytes())
    line = ""
    if layout == "300w":
        path.with_suffix(".pts").write_text(pts_text(face.landmarks_68), encoding="ascii")
    else:  # 207 columns: 98 points, box, six flags, image
        box = landmark_box(face.landmarks_98)
        columns = [f"{v:.6f}" for v in face.landmarks_98.reshape(-1).tolist()]
        columns += [f"{v:.0f}" for v in (*np.floor(box[:2]), *np.ceil(box[2:]))]
        columns += [f"{face.attributes[name]:d}" for name in ATTRIBUTES]
        line = " ".join([*columns, f"{folder.name}/{path.name}\n"])
    return path.stem, line, face.pose.tolist()


def _is_complete(folder: Path, layout: str) -> bool:
    """Returns whether a dataset is there; False: there is nothing. Raises: InputError if there is something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = read_json(folder / _COMPLETE)["layout"]
    if found != layout:
        what = "holds other files" if found is None else f"holds synthetic faces in the layout {found!r}"
        raise InputError(f"{folder}: {what}, so no synthetic {layout} faces are written. Choose another folder.")
    return True


def write_dataset(
    folder: Path, spec: DatasetSpec = DATASETS["synthetic"], counts: Sequence[int] = (), seed: int = 0, workers: int = 0
) -> Path:
    """Writes a dataset of synthetic faces, and says so on stderr; what is there, complete, is left as it is.

    The folder appears whole or not at all: it is written under another name beside its place, then renamed. Besides
    images and annotations it holds the exact poses (pose.csv, degrees) and what it was made with (synthetic.json).

    Args:    spec: of a synthetic dataset. counts: faces of each of its folders, in the order of its splits; (): as
             many as it expects. workers: processes; 0: all cores. The faces are the same for any number.
    Returns: the folder.
    Raises:  InputError if the folder holds something else or cannot be written; ValueError for wrong arguments.
    """
    if not spec.is_synthetic or spec.layout not in ("300w", "wflw"):
        raise ValueError(f"{spec.name} is no synthetic dataset")
    layout, sources = spec.layout, [source for split in spec.splits.values() for source in split]
    counts = list(counts or (source.expected for source in sources))
    if len(counts) != len(sources) or min(counts) < 0:
        raise ValueError(f"counts are {counts}; {layout} has {len(sources)} folders")
    if _is_complete(folder, layout):
        return folder
    print(f"{folder}: rendering {sum(counts)} synthetic faces ({spec.num_landmarks} points) ...", file=sys.stderr)
    with contextlib.ExitStack() as stack, contextlib.suppress(_Overtaken):
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        with replacing_folder(folder, _COMPLETE) as temporary:
            _fill(temporary, layout, [source.path for source in sources], counts, seed, workers or cores())
            if _is_complete(folder, layout):
                raise _Overtaken
    return folder


def _fill(root: Path, layout: str, paths: list[str], counts: list[int], seed: int, workers: int) -> None:
    base = root if layout == "300w" else root / "WFLW_images"
    run, poses = map, []
    with contextlib.ExitStack() as stack, tqdm(total=sum(counts), unit="face", disable=None) as bar:
        if workers > 1 and sum(counts) > 2 * _CHUNK:  # else starting processes takes longer
            context = multiprocessing.get_context("spawn")  # a fork of a process with TensorFlow's threads may hang
            pool = stack.enter_context(ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)))
            run = functools.partial(pool.map, chunksize=_CHUNK)
        for split, (path, count) in enumerate(zip(paths, counts)):
            folder = base / (path if layout == "300w" else f"{split}--Synthetic")
            folder.mkdir(parents=True)
            difficulty = "hard" if path == "ibug" else "mild"
            write = functools.partial(_write_face, seed, split, difficulty, folder, layout)
            lines = []
            for stem, line, pose in run(write, range(count)):
                name = f"{folder.relative_to(base).as_posix()}/{stem}" + ("" if layout == "300w" else "#0")
                poses.append([name, *(f"{angle:.4f}" for angle in pose)])
                lines.append(line)
                bar.update()
            if layout == "wflw":
                write_text(root / path, "".join(lines))
    write_csv(root / "pose.csv", ["name", *ANGLES], poses)
    about = {"generator_version": GENERATOR_VERSION, "layout": layout, "seed": seed, "counts": counts}
    (root / _COMPLETE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
