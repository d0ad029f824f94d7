"""Files that a reader once tripped over, and files made to do harm: each is refused with one line, in bounded memory.

The worker of the fuzz reads them (see worker.py), so a crash, a hang, much memory, unpickling or writing elsewhere
would be seen. `cases/KIND/` holds small files as found; larger ones are made here.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from readers import READERS
from test_fuzz import WORKER

STORED = sorted((Path(__file__).parent / "cases").glob("*/*"))
MADE: dict = {}


def made(kind: str, *words: str):
    """Registers a function that returns a file's bytes; `words`: what the refusal must say."""

    def register(function):
        MADE[function.__name__] = (kind, function, words)
        return function

    return register


def zeros_in_an_archive(member: str, megabytes: int, before: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(member, "w") as out:
        out.write(before)
        for _ in range(megabytes):
            out.write(bytes(1 << 20))
    return file.getvalue()


def npy_header(shape: tuple, descr: str = "<f8") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@made("image", "60000 x 60000 are 3600 million pixels, more than 134 million")
def png_of_60000_by_60000_pixels():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@made("image", "65000 x 65000 are 4225 million pixels")
def jpeg_of_65000_by_65000_pixels():
    content = bytearray(READERS["image"].seeds()[1])
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(content)


@made("predictions_npz", "unpacks to 315 MB")
def predictions_of_zeros():
    return zeros_in_an_archive("landmarks.npy", 300, npy_header((300 << 17,)))


@made("shape_model_npz", "unpacks to 315 MB")
def shape_model_of_zeros():
    return zeros_in_an_archive("mean_shape.npy", 300, npy_header((300 << 17,)))


@made("run_state", "unpacks to 315 MB")
def state_of_zeros():
    return zeros_in_an_archive("v0.npy", 300, npy_header((300 << 17,)))


@made("run_state", "not a whole .npz")
def state_that_says_it_is_larger_than_the_memory():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("v0.npy", npy_header((1 << 50,)) + bytes(100))
    return file.getvalue()


@made("keras_file", "unpacks to 315 MB")
def keras_archive_of_zeros():
    return zeros_in_an_archive("model.weights.h5", 300)


def changed_member(member: str, change) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(READERS["keras_file"].seeds()[0])) as given, zipfile.ZipFile(file, "w") as archive:
        for name in given.namelist():
            archive.writestr(name, change(given.read(name)) if name == member else given.read(name))
    return file.getvalue()


def changed_config(old: bytes, new: bytes) -> bytes:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new)

    return changed_member("config.json", change)


@made("keras_file", "unpacks to 453 MB")
def keras_array_of_which_nothing_is_stored():
    def change(content: bytes) -> bytes:
        file = io.BytesIO(content)
        with h5py.File(file, "r+") as opened:
            arrays = opened["layers/conv2d/vars"]
            del arrays["0"]
            arrays.create_dataset("0", (3, 3, 3, 1 << 22), "f4", chunks=True)
        return file.getvalue()

    return changed_member("model.weights.h5", change)


@made("keras_file", "its layers take")
def keras_layer_of_a_trillion_units():
    return changed_config(b'"units": 136', b'"units": 1099511627776')


@made("keras_file", "its layers take")
def keras_layer_of_more_units_than_are_stored():
    return changed_config(b'"units": 136', b'"units": 100000')


@made("keras_file", "not a model that Keras loads")
def keras_layer_of_another_module():
    return changed_config(
        b'"module": "keras.layers", "class_name": "Dropout"', b'"module": "os", "class_name": "system"'
    )


def weights(change) -> bytes:
    file = io.BytesIO(READERS["weights_h5"].seeds()[0])
    with h5py.File(file, "r+") as opened:
        change(opened)
    return file.getvalue()


def first_array(file: h5py.File) -> str:
    names = []
    file.visititems(lambda name, entry: names.append(name) if isinstance(entry, h5py.Dataset) else None)
    return names[0]


@made("weights_h5", "unpacks to")
def weights_of_terabytes_on_paper():
    def change(file):
        name = first_array(file)
        del file[name]
        file.create_dataset(name, (1 << 40,), "f4", chunks=True)

    return weights(change)


@made("weights_h5", "lie in another file")
def weights_from_another_file():
    def change(file):
        name = first_array(file)
        del file[name]
        file.create_dataset(name, (16,), "u1", external=[("/etc/passwd", 0, 16)])

    return weights(change)


@made("pose_csv", "field larger than field limit")
def pose_label_of_a_long_name():
    return b"name,yaw,pitch,roll\n" + b"a" * 200_000 + b",1,2,3\n"


@made("wflw_list", "no WFLW train face")
def wflw_list_of_one_long_line():
    return b"1 " * 2_000_000


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple]:
    """File name -> what was wrong and the words of the refusal, for all cases, read by one process."""
    folder = tmp_path_factory.mktemp("made")
    jobs = [f"{path.parent.name}={path}" for path in STORED]
    for name, (kind, build, _) in MADE.items():
        (folder / name).write_bytes(build())
        jobs.append(f"{kind}={folder / name}")
    jobs.sort(key=lambda job: READERS[job.split("=")[0]].tensorflow)
    sandbox = tmp_path_factory.mktemp("sandbox")
    environment = os.environ | dict.fromkeys(("HOME", "TMPDIR", "ASMNET_CACHE"), str(sandbox))
    done = subprocess.run(
        [sys.executable, str(WORKER), str(sandbox), "0", *jobs],
        capture_output=True, text=True, env=environment, check=False, timeout=600,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"{lines[-1:]}\n{done.stderr[-3000:]}"
    return {Path(said["case"][1]).name: tuple(said["case"][2:]) for said in lines if "case" in said}


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_stored_case_is_refused(outcomes, path):
    problem, refusal = outcomes[path.name]
    assert problem is None
    assert refusal is not None


@pytest.mark.parametrize("name", MADE)
def test_a_made_case_is_refused(outcomes, name):
    problem, refusal = outcomes[name]
    assert problem is None
    for word in MADE[name][2]:
        assert word in refusal
