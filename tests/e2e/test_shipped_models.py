"""A shipped model by its name in the scripts; the mirrored image; a training that starts from shipped files."""

import json

import pytest

from asmnet_tf.data.sidecars import pretrained_names

NAME = "asmnet_300w_112_60"


@pytest.fixture(scope="module")
def outcomes(run_batch, faces_300w, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    data = ["--dataset", "300w", "--data-dir", faces_300w]
    score = [NAME, *data, "--subset", "full", "--output"]
    start = [*data, "--weights", NAME, "--output", folder, "--input-size", 32, "--batch-size", 16, "--epochs", 1]
    batch = run_batch(
        [
            ("evaluate", [*score, folder / "plain"]),
            ("evaluate", [*score, folder / "mirrored", "--flip", "--mean-shape", "300w_pca97"]),
            ("train", [*start, "--loss", "asm", "--name", "mine", "--head", "spatial", "--landmark-loss", "smooth_l1"]),
            ("evaluate", [f"{NAME}_x", *data, "--output", folder / "none"]),
        ]
    )
    return folder, dict(zip(("plain", "mirrored", "train", "unknown"), batch.done))


def scores_of(done) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_evaluate_by_name_and_mirrored(outcomes):
    folder, done = outcomes
    plain, mirrored = scores_of(done["plain"]), scores_of(done["mirrored"])
    assert (list(plain), list(mirrored)) == ([NAME], [f"{NAME} + mirrored", "mean_shape"])
    before, after = plain[NAME]["full"]["nme_pct"], mirrored[f"{NAME} + mirrored"]["full"]["nme_pct"]
    assert 0 < after < mirrored["mean_shape"]["full"]["nme_pct"]
    assert 0.5 * before < after < 1.2 * before != after  # a wrong flip map or sign would be far off
    methods = [json.loads((folder / name / "metrics.json").read_text())["methods"] for name in ("plain", "mirrored")]
    one, two = methods[0][NAME], methods[1][f"{NAME} + mirrored"]
    assert two["multiply_adds"] == 2 * one["multiply_adds"]
    assert (one.get("forward_passes"), two["forward_passes"]) == (None, 2)
    assert "+ mirrored" in (folder / "mirrored/summary.md").read_text("utf-8")
    assert one["file"] == NAME


def test_train_from_shipped_weights_and_shape_model(outcomes):
    folder, done = outcomes
    assert done["train"].returncode == 0, done["train"].stderr
    assert f"{NAME}: weights for " in done["train"].stdout
    assert "300w_pca90: the shape model that ships with the package" in done["train"].stdout
    flags = json.loads((folder / "mine/args.json").read_text())["flags"]
    assert {key: flags[key] for key in ("weights", "shape_model", "head", "landmark_loss")} == {
        "weights": NAME,
        "shape_model": "300w_pca90",
        "head": "spatial",
        "landmark_loss": "smooth_l1",
    }
    assert json.loads((folder / "mine/best.json").read_text())["head"] == "spatial"
    assert json.loads((folder / "mine/args.json").read_text())["counts"]["parameters"] == 1_477_715


def test_an_unknown_name_is_one_line(outcomes):
    done = outcomes[1]["unknown"]
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {NAME}_x: no such model, neither a file nor shipped. There are: ")
    assert line.endswith(f"{', '.join(pretrained_names())}.")
