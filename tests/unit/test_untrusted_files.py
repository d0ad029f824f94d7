"""The guards of files.py and hdf5.py: what is bounded, and what happens in a copy of the process stays there."""

import io
import os
import signal
import sys
import time
import zipfile

import h5py
import numpy as np
import pytest

from asmnet_tf import datasets, files, hdf5
from asmnet_tf.config import DATASETS
from asmnet_tf.files import InputError

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are copied on Linux only")


@linux
def test_a_trial_that_ends_hangs_or_grows_is_a_crash_and_one_that_raises_is_none(monkeypatch):
    assert not files.crashes(lambda: None)
    assert not files.crashes(lambda: 1 / 0)
    assert files.crashes(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    monkeypatch.setattr(files, "TRIAL_SECONDS", 0.3)

    def spin():
        while True:
            pass

    started = time.process_time()
    assert files.crashes(spin)
    assert time.process_time() - started < 0.3  # the copy's time, not ours


@linux
def test_what_a_trial_changes_stays_in_the_copy(tmp_path, capfd):
    changed = []

    def trial():
        changed.append(1)
        os.write(1, b"noise")
        os.write(2, b"noise")

    assert not files.crashes(trial)
    assert not changed
    assert capfd.readouterr() == ("", "")


@linux
def test_memory_is_limited_for_a_while():
    with files.limited_memory(100 << 20), pytest.raises(MemoryError):
        np.ones(1 << 27)
    assert np.ones(1 << 24).size == 1 << 24


def test_small_files_may_unpack_to_much_and_large_ones_to_twenty_times_their_size():
    files.check_expansion(256 << 20, 10)
    files.check_expansion(20 << 30, 1 << 30)
    with pytest.raises(ValueError, match="unpacks to 268 MB"):
        files.check_expansion((256 << 20) + 1, 10)
    with pytest.raises(ValueError, match="unpacks to"):
        files.check_expansion((20 << 30) + 1, 1 << 30)


def test_an_archive_may_not_hold_what_is_no_array(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../x.npy", b"text")
    with pytest.raises(InputError, match=r"its member \.\./\.\./x is no array"):
        files.read_arrays(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "\0", "", '{"a": 1', b"\xff\xfe\xff"])
def test_json_that_is_none_is_a_value_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError):  # noqa: PT011 - the words are Python's
        files.read_json(path)


def test_arrays_of_another_file_are_not_read(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.arange(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["own"] = np.arange(4)
        file["link"] = h5py.ExternalLink("other.h5", "/secret")
        layout = h5py.VirtualLayout((3,), "i8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (3,), "u1", external=[(str(tmp_path / "other.h5"), 0, 3)])
        file.create_group("group")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert hdf5.read_dataset(file, "own").tolist() == [0, 1, 2, 3]
        for name in ("link", "virtual", "raw"):
            with pytest.raises(ValueError, match=f"the data of {name} lie in another file"):
                hdf5.read_dataset(file, name)
        with pytest.raises(ValueError, match="group is a group instead of an array"):
            hdf5.read_dataset(file, "group")


@pytest.fixture
def wflw(tmp_path):
    """A WFLW folder whose list has one line that names the given image."""
    images = tmp_path / "data/WFLW_images"
    path = tmp_path / "data" / DATASETS["wflw"].splits["train"][0].path
    for folder in (images, path.parent):
        folder.mkdir(parents=True)
    numbers = " ".join(str(i % 50) for i in range(196))

    def listing(name: str) -> list[datasets.Sample]:
        path.write_bytes(f"{numbers} 1 2 3 4 0 0 0 0 0 0 {name}\n".encode())
        return datasets.read_samples(DATASETS["wflw"], tmp_path / "data", "train", quiet=True)

    (tmp_path / "outside.jpg").write_bytes(b"x")
    return listing


@pytest.mark.parametrize("name", ["../../outside.jpg", "a/../../../outside.jpg", "/etc/hostname", "..", "."])
def test_a_list_names_nothing_outside_the_data_folder(wflw, name):
    with pytest.raises(InputError, match=r"line 1: (image name .* leaves the data folder|'.*' is no image name)"):
        wflw(name)


@pytest.mark.parametrize("name", ["a" * 5000 + ".jpg", "~/a.jpg", "$HOME/a.jpg", "file:///etc/hostname"])
def test_a_name_that_no_file_has_is_left_out(wflw, name):
    with pytest.raises(InputError, match="no WFLW train face"):
        wflw(name)
    with pytest.raises(InputError, match="not a text file"):
        wflw(name + "\0")


def test_a_link_in_the_data_folder_is_followed(wflw, tmp_path):
    """Whoever puts a link into the folder may; many keep their images elsewhere. A list cannot make one."""
    (tmp_path / "data/WFLW_images/a.jpg").symlink_to(tmp_path / "outside.jpg")
    (sample,) = wflw("a.jpg")
    assert sample.image_path == tmp_path / "data/WFLW_images/a.jpg"


def test_an_object_array_is_refused_everywhere(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object))
    (tmp_path / "a.npy").write_bytes(file.getvalue())
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        files.read_array(tmp_path / "a.npy")
    with pytest.raises(InputError, match="not a whole"):
        files.read_array(tmp_path / "a.npy", mapped=True)
