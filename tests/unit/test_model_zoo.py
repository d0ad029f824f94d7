"""What ships with the package: found by name, loaded in one line, without absolute paths, all of it in the wheel."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO

import asmnet_tf
from asmnet_tf.config import DEFAULT_MODEL
from asmnet_tf.data import sidecars
from asmnet_tf.data.geometry import crop_frame, crop_image, landmark_box
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.files import InputError
from asmnet_tf.formats.runners import open_model
from asmnet_tf.network import checkpoints
from asmnet_tf.network.asmnet import build_asmnet
from asmnet_tf.shape.shape_model import ShapeModel
from asmnet_tf.shape.training_shapes import load_for
from asmnet_tf.synthetic.renderer import render_face

PERCENTS = (80, 85, 90, 95, 97, 99)


def strings(value):
    """All strings in a JSON value, keys too."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("name", sidecars.pretrained_names())
def test_a_model_by_name(name):
    model, sidecar = asmnet_tf.load_pretrained(name), asmnet_tf.pretrained_sidecar(name)
    assert model.output_names == ["O_L", "O_P"]
    assert model.input_shape == (None, sidecar["input_size"], sidecar["input_size"], 3)
    assert model.output_shape[0] == (None, 2 * sidecar["num_landmarks"])
    assert {w.dtype for w in model.trainable_weights} == {"float32"}
    assert name in (sidecars.FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for file in ("args.json", "log.csv"):
        assert (sidecars.FOLDER / "runs" / name / file).is_file()


def test_the_default_model_as_tflite_says_what_its_keras_file_says():
    lite = sidecars.find_runnable(DEFAULT_MODEL)
    assert lite == sidecars.FOLDER / f"{DEFAULT_MODEL}.tflite"
    assert sidecars.find_runnable(lite.with_suffix(".keras")).suffix == ".keras"
    faces = [render_face(3, i) for i in range(3)]
    sidecar = sidecars.read_sidecar(lite)
    frames = [crop_frame(landmark_box(face.landmarks_68), sidecar["crop"], sidecar["crop_scale"]) for face in faces]
    crops = np.stack([crop_image(face.image, frame, sidecar["input_size"]) for face, frame in zip(faces, frames)])
    exact = asmnet_tf.load_pretrained(DEFAULT_MODEL)(crops.astype(np.float32), training=False)
    for ours, theirs in zip(open_model(lite).infer(crops), exact):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_unknown_name_lists_the_names_there_are():
    there = ", ".join(sidecars.pretrained_names())
    for load in (asmnet_tf.load_pretrained, asmnet_tf.pretrained_sidecar, checkpoints.load_model):
        with pytest.raises(InputError, match=f"asmnet_300v: no .*{there}"):
            load("asmnet_300v")
    with pytest.raises(InputError, match=r"300w_pca93: no such shape model.*300w_pca80, 300w_pca85"):
        ShapeModel.load("300w_pca93")
    with pytest.raises(InputError, match=r"runs/x\.keras: no such model"):
        checkpoints.load_model("runs/x.keras")
    with pytest.raises(InputError):
        asmnet_tf.load_pretrained("../pretrained/asmnet_300w_112_60")


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = sidecars.pretrained_names()[0]
    assert sidecars.find_model(name) == sidecars.FOLDER / f"{name}.keras"
    Path(name).write_text("a file of the user's")
    assert sidecars.find_model(name) == Path(name)


def test_weights_of_a_shipped_model_by_name():
    model = build_asmnet(input_size=32)
    weighted = sum(bool(layer.weights) for layer in model.layers)
    start = checkpoints.read_weights("asmnet_300w_112_60", (0.0, 1.0))
    assert len(checkpoints.set_weights(model, start, ("square", 1.2))) == weighted
    assert (start.input_range, start.crop) == ((-1.0, 1.0), ("square", 1.2))
    shipped = asmnet_tf.load_pretrained("asmnet_300w_112_60")
    assert np.array_equal(model.get_layer("O_L").kernel, shipped.get_layer("O_L").kernel)


@pytest.mark.parametrize("percent", PERCENTS)
def test_shape_models_by_name(percent, capsys):
    model = load_for(f"300w_pca{percent}", DATASETS["300w"], "square")
    assert (model.pca_percent, model.n_samples, model.num_landmarks) == (percent, 2014, 68)
    assert model.num_components == {80: 2, 85: 3, 90: 4, 95: 7, 97: 11, 99: 23}[percent]
    assert "ships with the package, fitted on 2014 of 3148 training faces" in capsys.readouterr().out
    assert np.allclose(model.eigenvectors.T @ model.eigenvectors, np.eye(model.num_components))


def test_the_default_shape_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Path("shape_models/300w_pca90.npz")
    assert sidecars.default_shape_model("300w", "square") == Path("300w_pca90")
    assert sidecars.default_shape_model("300w", "tight") == made  # absent: the error names it
    assert sidecars.default_shape_model("wflw", "square") == Path("shape_models/wflw_pca90.npz")
    ShapeModel.load("300w_pca97").save(made)
    assert sidecars.default_shape_model("300w", "square") == made


def test_no_absolute_path_is_shipped():
    for path in sidecars.FOLDER.rglob("*.json"):
        found = [s for s in strings(json.loads(path.read_text())) if s.rpartition("=")[2].startswith(("/", "\\", "~"))]
        assert found == [], path.name
    for path in sidecars.SHAPE_MODELS.glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            assert not [k for k in file.files if file[k].dtype.kind == "U" and "/" in str(file[k])], path.name


def test_what_is_loaded_by_name_is_in_the_wheel():
    patterns = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["asmnet_tf"]
    packed = {path for pattern in patterns for path in (REPO / "asmnet_tf").glob(pattern) if path.is_file()}
    needed = {*sidecars.FOLDER.glob("*.*"), *sidecars.SHAPE_MODELS.glob("*.npz")}
    assert len(needed) >= 3 + len(PERCENTS)
    assert needed <= packed
