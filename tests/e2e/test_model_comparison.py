"""One network in three formats and a prediction file in one table: evaluate.py's comparison, as a user runs it."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import COUNTS_300W

from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS

FACES = sum(COUNTS_300W[name] for name in ("helen/testset", "lfpw/testset", "ibug"))
NAMES = ["net", "net.tflite", "net_saved", "theirs"]


@pytest.fixture(scope="module")
def compared(run_batch, trained_64, faces_300w, tmp_path_factory):
    """(folder of the outputs, outcome of the comparison of NAMES); Keras and TensorFlow write the other formats."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("compared")
    shutil.copy(trained_64 / "m.keras", folder / "net.keras")
    keras.models.load_model(folder / "net.keras").export(folder / "net_saved", verbose=False)
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "net_saved")).convert()
    (folder / "net.tflite").write_bytes(content)
    for name in ("net.json", "net_saved.json"):
        shutil.copy(trained_64 / "m.json", folder / name)

    samples = read_samples(DATASETS["300w"], faces_300w, "test", quiet=True)
    landmarks = np.stack([sample.landmarks for sample in samples]) + np.array([2.0, 0.0])
    landmarks[5] = np.nan  # a face their detector missed
    np.savez(folder / "theirs.npz", names=[sample.name for sample in samples], landmarks=landmarks)
    models = [folder / name for name in ("net.keras", "net.tflite", "net_saved")]
    more = ["--predictions", f"theirs={folder / 'theirs.npz'}", "--dataset", "300w", "--data-dir", faces_300w]
    (done,) = run_batch([("evaluate", [*models, *more, "--output", folder / "all"])], figures=True).done
    assert done.returncode == 0, done.stderr
    return folder, done


def scores_of(done) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


def test_the_formats_score_the_same(compared):
    folder, done = compared
    scores = scores_of(done)
    assert list(scores) == NAMES
    with open(folder / "all/per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lengths = np.array([float(row["interocular_px"]) for row in rows[:FACES]])
    errors = {n: np.array([float(row["nme_pct"]) for row in rows if row["method"] == n]) / 100 for n in NAMES[:3]}
    for name in ("net.tflite", "net_saved"):
        away = np.abs(errors[name] - errors["net"])
        print(f"{name}: at most {(away * lengths).max():.1e} px of {(errors['net'] * lengths).max():.0f} px")
        assert (away * lengths).max() < 1e-3  # pixels
        for angle, value in scores["net"]["full"]["pose_mae_deg"].items():
            assert scores[name]["full"]["pose_mae_deg"][angle] == pytest.approx(value, abs=1e-3)


def test_what_is_known_of_each_method(compared):
    folder, _ = compared
    document = json.loads((folder / "all/metrics.json").read_text("utf-8"))
    methods = document["methods"]
    assert [methods[name].get("format") for name in methods] == ["keras", "TFLite float32", "SavedModel", None]
    assert methods["net"]["parameters"] == 1_439_507
    assert methods["net.tflite"]["parameters"] is methods["net_saved"]["multiply_adds"] is None
    assert {methods[name]["crop"] for name in ("net", "net.tflite", "net_saved")} == {"square 1.2"}
    assert all(methods[name]["latency_ms"] > 0 for name in ("net", "net.tflite", "net_saved"))


def test_comparison(compared):
    folder, done = compared
    scores = scores_of(done)
    text = (folder / "all/summary.md").read_text("utf-8")
    assert "report.html" in done.stdout
    assert text.startswith(f"# 300W: 4 methods on {FACES} faces\n")
    for words in ("split: test", "inter-ocular (outer eye corners)", "thresholds: [0.08, 0.1]"):
        assert words in text.split("## Landmarks")[0]
    assert f"| net | full | {FACES} | {FACES} | {scores['net']['full']['nme_pct']:.2f} [" in text
    millions = json.loads((folder / "all/metrics.json").read_text("utf-8"))["methods"]["net"]["multiply_adds"] / 1e6
    assert f"| net | 1.440 M | {millions:.1f} M |" in text
    assert "| net.tflite | - | - |" in text
    page = (folder / "all/report.html").read_text("utf-8")
    assert page.count("<img ") == 3 + 3 * len(NAMES)
    pairs = json.loads((folder / "all/metrics.json").read_text("utf-8"))["comparisons"]["full"]
    assert [(pair["a"], pair["b"]) for pair in pairs][:3] == [("net", n) for n in ("net.tflite", "net_saved", "theirs")]
    assert len(pairs) == 6  # four methods: each with each
    same, _, theirs = pairs[:3]
    assert same["nme_difference_pct"] == pytest.approx(0, abs=1e-3)
    assert same["ci95"] == pytest.approx([0, 0], abs=1e-3)
    assert same["left_out"] == 0
    assert theirs["left_out"] == 1
    assert "- net and theirs, full: 1 of 21 faces have no landmarks of one or both." in text
