"""The guards of files.py: what is bounded, and what is never read."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from asmnet_tf import files
from asmnet_tf.data import annotations
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.files import InputError


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
        assert files.read_dataset(file, "own").tolist() == [0, 1, 2, 3]
        for name in ("link", "virtual", "raw"):
            with pytest.raises(ValueError, match=f"the data of {name} lie in another file"):
                files.read_dataset(file, name)
        with pytest.raises(ValueError, match="group is a group instead of an array"):
            files.read_dataset(file, "group")


@pytest.fixture
def wflw(tmp_path):
    """A WFLW folder whose list has one line that names the given image."""
    images = tmp_path / "data/WFLW_images"
    path = tmp_path / "data" / DATASETS["wflw"].splits["train"][0].path
    for folder in (images, path.parent):
        folder.mkdir(parents=True)
    numbers = " ".join(str(i % 50) for i in range(196))

    def listing(name: str) -> list[annotations.Sample]:
        path.write_bytes(f"{numbers} 1 2 3 4 0 0 0 0 0 0 {name}\n".encode())
        return annotations.read_samples(DATASETS["wflw"], tmp_path / "data", "train", quiet=True)

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


def test_a_name_that_is_no_utf8_is_written_in_the_list_of_bad_samples(tmp_path):
    bad = annotations.BadSamples(skip=True)
    with bad.catch("a\udcff,b"):
        raise InputError("a\udcff,b.pts: no points")
    bad.write(tmp_path)
    assert "a\\udcff,b" in (tmp_path / "skipped.csv").read_text("utf-8")
