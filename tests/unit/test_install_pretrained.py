"""A run becomes a shipped model: float16 in the file, float32 in memory, the same landmarks, no absolute path."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from tools import install_pretrained

import asmnet_tf
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.files import InputError
from asmnet_tf.network import checkpoints

SIDECAR = {"crop": "square", "crop_scale": 1.2}


@pytest.fixture(scope="module")
def trained():
    """A trained ASMNet whose weights are no float16 numbers, whatever the shipped file holds."""
    model = asmnet_tf.load_pretrained("asmnet_300w_112_60")
    rng = np.random.default_rng(0)
    model.set_weights([w * (1 + rng.uniform(-1e-4, 1e-4, w.shape)).astype(w.dtype) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def run_folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    checkpoints.save_model(trained, folder / "best.keras", SIDECAR)
    data, weights = (str(folder.with_name(name)) for name in ("300w", "w.h5"))  # absolute, that is all they must be
    flags = {"data_dir": data, "lr": 0.001, "name": None, "weights": "imagenet", "alpha": [2, 1, 0.5]}
    command = [str(folder / "train.py"), "--data-dir", data, f"--weights={weights}", "--lr", "1e-3"]
    record = {"flags": flags, "command": command, "resumed_from": [{"flags": {"output": str(folder.parent)}}]}
    (folder / "args.json").write_text(json.dumps(record))
    (folder / "log.csv").write_text("epoch,loss\n1,0.5\n")
    return folder


@pytest.fixture(scope="module")
def shipped(run_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("pretrained")
    install_pretrained.main(install_pretrained.parse_args([str(run_folder), "mine_112", "--output", str(output)]))
    return output


def stored_weights(path):
    arrays = []
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as member, h5py.File(member) as file:
        file.visititems(lambda _, entry: arrays.append(entry[()]) if isinstance(entry, h5py.Dataset) else None)
    return arrays


def test_what_is_written(shipped, run_folder):
    files = ["mine_112.json", "mine_112.keras", "runs", "runs/mine_112", "runs/mine_112/args.json"]
    assert sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*")) == [*files, "runs/mine_112/log.csv"]
    assert (shipped / "mine_112.keras").stat().st_size < 0.55 * (run_folder / "best.keras").stat().st_size
    assert json.loads((shipped / "mine_112.json").read_text()) == SIDECAR | {"stored": "large convolutions as float16"}
    assert (shipped / "runs/mine_112/log.csv").read_text() == "epoch,loss\n1,0.5\n"
    arrays = stored_weights(shipped / "mine_112.keras")
    large = [a for a in arrays if a.ndim == 4 and a.size > install_pretrained.HALF_ABOVE]
    small = [a for a in arrays if a.ndim < 4 or a.size <= install_pretrained.HALF_ABOVE]  # heads, too
    assert {a.dtype for a in large} == {np.dtype(np.float16)}
    assert sum(a.size for a in large) > 0.85 * (1_439_507 - 537 * 139)
    assert np.dtype(np.float16) not in {a.dtype for a in small}


def test_plain_keras_reads_it_into_float32_and_says_the_same(shipped, run_folder, trained, faces_300w):
    model = keras.models.load_model(shipped / "mine_112.keras")
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    samples = read_samples(DATASETS["300w"], faces_300w, "test", quiet=True)
    images = FacePatches(samples, "square", 1.2, 112, margin=1.0).crops().astype(np.float32)
    (landmarks, pose), (landmarks_before, pose_before) = model(images), trained(images)
    away = np.abs(np.asarray(landmarks - landmarks_before)) * 112
    turned = np.abs(np.asarray(pose - pose_before)) * 65
    print(f"{away.mean():.4f} px on average, {away.max():.4f} at most; {turned.max():.4f} deg")
    assert 0 < away.mean() < 1e-2
    assert away.max() < 0.1
    assert turned.max() < 0.1


def test_paths_are_made_relative(shipped, run_folder):
    record = json.loads((shipped / "runs/mine_112/args.json").read_text())
    before = json.loads((run_folder / "args.json").read_text())
    assert record["flags"] == before["flags"] | {"data_dir": "300w"}
    assert record["command"] == ["train.py", "--data-dir", "300w", "--weights=w.h5", "--lr", "1e-3"]
    assert record["resumed_from"] == [{"flags": {"output": run_folder.parent.name}}]
    here = Path.cwd()
    inside = [str(here / "data/300w"), "../data", f"shape_models/x={here}/a//b", ""]
    assert install_pretrained.without_absolute_paths(inside) == ["data/300w", "../data", "shape_models/x=a/b", ""]


def test_what_cannot_be_shipped_changes_nothing(shipped, run_folder, trained, tmp_path):
    def refused(folder, name="mine_112"):
        before = {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()}
        with pytest.raises(InputError) as error:
            install_pretrained.main(install_pretrained.parse_args([str(folder), name, "--output", str(shipped)]))
        assert {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()} == before
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "../mine: a shipped model's name" in refused(run_folder, "../mine")
    assert "log.csv: cannot be read (No such file" in refused(tmp_path)
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run/args.json").write_text("{")
    assert "args.json: not JSON" in refused(tmp_path / "run")
    shutil.copy(run_folder / "args.json", tmp_path / "run")
    (tmp_path / "run/best.keras").unlink()
    assert "best.keras: no such model" in refused(tmp_path / "run")
    huge = keras.models.clone_model(trained)
    kernel = huge.get_layer("block_15_project").kernel
    kernel.assign(kernel + 70_000)
    checkpoints.save_model(huge, tmp_path / "run/best.keras", {})
    assert "beyond +-65504" in refused(tmp_path / "run")
