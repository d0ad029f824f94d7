"""One network in three formats and a prediction file in one table: evaluate.py's comparison, as a user runs it."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import COUNTS_300W

from asmnet_tf.config import DATASETS
from asmnet_tf.datasets import read_samples
from asmnet_tf.prediction_files import write_predictions

FACES = sum(COUNTS_300W[name] for name in ("helen/testset", "lfpw/testset", "ibug"))
NAMES = ["net", "net.tflite", "net_saved", "theirs"]


@pytest.fixture(scope="module")
def compared(run_batch, run_300w, faces_300w, tmp_path_factory):
    """(folder of the outputs, outcome of the comparison): `all` compares NAMES, `one` reports on the network alone."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("compared")
    shutil.copy(run_300w.folder / "best.keras", folder / "net.keras")
    keras.models.load_model(folder / "net.keras").export(folder / "net_saved", verbose=False)
    content = tf.lite.TFLiteConverter.from_saved_model(str(folder / "net_saved")).convert()
    (folder / "net.tflite").write_bytes(content)
    for name in ("net.json", "net_saved.json"):
        shutil.copy(run_300w.folder / "best.json", folder / name)

    samples = read_samples(DATASETS["300w"], faces_300w, "test", quiet=True)
    landmarks = np.stack([sample.landmarks for sample in samples]) + np.array([2.0, 0.0])
    landmarks[5] = np.nan  # a face their detector missed
    write_predictions(folder / "theirs.npz", [sample.name for sample in samples], landmarks, None)
    (folder / "one").mkdir()
    (folder / "one/comparison.md").write_text("of an earlier report")
    models = [folder / name for name in ("net.keras", "net.tflite", "net_saved")]
    data = ["--dataset", "300w", "--data-dir", faces_300w]
    theirs = ["--predictions", f"theirs={folder / 'theirs.npz'}"]
    release = [*run_300w.flags, "--epochs", 2, "--batch-size", 24, "--alpha-schedule", "release"]
    batch = run_batch(
        [
            ("evaluate", [*models, *theirs, *data, "--output", folder / "all"]),
            ("evaluate", [models[0], *data, "--output", folder / "one"]),
            ("train", [*release, "--output", folder, "--name", "release"]),
        ]
    )
    for done in batch.done:
        assert done.returncode == 0, done.stderr
    return folder, batch.done[0]


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
    text = (folder / "all/comparison.md").read_text("utf-8")
    assert "comparison.md" in done.stdout
    assert text.startswith(f"# 300W: 4 methods on the same {FACES} faces\n")
    for words in ("split: test", "inter-ocular (outer eye corners)", "square 1.2", "FR and AUC at NME: 8 %, 10 %"):
        assert words in text.splitlines()[2]
    assert f"| net | 1.440 M | 5.308 M | 32 | square 1.2 | {scores['net']['full']['nme_pct']:.2f} ({FACES}) |" in text
    assert "| net.tflite | - | - | 32 | square 1.2 |" in text
    pairs = json.loads((folder / "all/metrics.json").read_text("utf-8"))["comparisons"]["full"]
    assert [(pair["a"], pair["b"]) for pair in pairs][:3] == [("net", n) for n in ("net.tflite", "net_saved", "theirs")]
    assert len(pairs) == 6  # four methods: each with each
    same, _, theirs = pairs[:3]
    assert same["nme_difference_pct"] == pytest.approx(0, abs=1e-3)
    assert same["ci95"] == pytest.approx([0, 0], abs=1e-3)
    assert same["left_out"] == 0
    assert theirs["left_out"] == 1
    assert "- net and theirs, full: 1 of 21 faces have no landmarks of one or both." in text


def test_one_method_leaves_no_comparison(compared):
    assert (compared[0] / "one/metrics.json").is_file()
    assert not (compared[0] / "one/comparison.md").exists()


def test_release_alpha_schedule_of_a_run(compared, run_300w):
    """44 faces in batches of 24 are one step an epoch: its thirds are over in the second epoch; ours would be at 1."""
    folder, _ = compared
    with open(folder / "release/log.csv", newline="") as file:
        assert [float(row["alpha"]) for row in csv.DictReader(file)] == [2.0, 0.5]
    with open(run_300w.folder / "log.csv", newline="") as file:
        assert [float(row["alpha"]) for row in csv.DictReader(file)] == [2.0, 1.0, 0.5]
    for run, expected in ((folder / "release", "release"), (run_300w.folder, "epochs")):
        assert json.loads((run / "args.json").read_text())["flags"]["alpha_schedule"] == expected
