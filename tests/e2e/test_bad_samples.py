"""`--on-bad-sample`: fail names the first bad face; skip leaves all of them out, counts them and lists them."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from forked import small_network

import evaluate
import pca_builder
import train
from asmnet_tf.data.annotations import read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation import report
from asmnet_tf.files import InputError
from asmnet_tf.shape.shape_model import ShapeModel

HEADER = "version: 1\nn_points: 68\n{\n"
SPOILT = {  # training faces: an annotation or an image that cannot be used, and the reason's words
    "afw/face_000001": ("pts", "67 points, 68 expected"),
    "helen/trainset/face_000003": ("pts", "expected two numbers"),
    "helen/trainset/face_000005": ("jpg", "do not decode"),
    "lfpw/trainset/face_000002": ("jpg", "bytes that do not decode"),
    "lfpw/trainset/face_000004": ("pts", "no head pose"),  # all points on one line: PnP has no answer
}


@pytest.fixture(scope="module")
def spoilt(faces_300w, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt") / "300w"
    shutil.copytree(faces_300w, folder)
    points = HEADER + "10 10\n" * 67
    (folder / "afw/face_000001.pts").write_text(points + "}\n")
    (folder / "helen/trainset/face_000003.pts").write_text(points + "nan 10\n}\n")
    (folder / "helen/trainset/face_000005.jpg").write_text("this is not an image")
    image = folder / "lfpw/trainset/face_000002.jpg"
    image.write_bytes(image.read_bytes()[:100])
    line = "".join(f"{i} {i}\n" for i in range(10, 78))
    (folder / "lfpw/trainset/face_000004.pts").write_text(f"{HEADER}{line}}}\n")
    (folder / "ibug/face_000002.jpg").write_bytes(b"")
    return folder


def data(folder) -> list[str]:
    return ["--dataset", "300w", "--data-dir", str(folder)]


def run(script, *argv) -> None:
    script.main(script.parse_args([str(arg) for arg in argv]))


def skipped(folder) -> dict[str, str]:
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def test_pca_builder_skips_annotations_only(spoilt, tmp_path, capsys):
    run(pca_builder, *data(spoilt), "--output", tmp_path, "--on-bad-sample", "skip")
    names = ["afw/face_000001", "helen/trainset/face_000003"]
    assert sorted(skipped(tmp_path)) == names
    assert f"{tmp_path / 'skipped.csv'}: 2 bad samples skipped, the first: " in capsys.readouterr().err
    assert ShapeModel.load(tmp_path / "300w_pca90.npz").n_samples == 48 - 2
    with pytest.raises(InputError, match=r"face_00000\d\.pts"):
        run(pca_builder, *data(spoilt), "--output", tmp_path)


def test_train_skips_every_kind(spoilt, tmp_path, monkeypatch, capsys):
    from asmnet_tf.network.asmnet import BUILDERS

    monkeypatch.setitem(BUILDERS, "asmnet", small_network)
    flags = [*data(spoilt), "--loss", "mse", "--input-size", 32, "--epochs", 1, "--batch-size", 16]
    flags += ["--val-fraction", 0, "--output", tmp_path, "--name", "skip", "--on-bad-sample", "skip"]
    run(train, *flags)
    reasons = skipped(tmp_path / "skip")
    assert sorted(reasons) == sorted(SPOILT)
    for name, (ending, words) in SPOILT.items():
        assert f"{name}.{ending}" in reasons[name] or "no head pose" in words
        assert words in reasons[name]
    assert capsys.readouterr().err.count("skipped.csv: 5 bad samples skipped") == 1
    counts = json.loads((tmp_path / "skip/args.json").read_text())["counts"]
    assert (counts["train"], counts["validation"], counts["skipped"]) == (48 - 5, 0, 5)

    copy = tmp_path / "repaired"  # a face more would be another order of the faces
    shutil.copytree(spoilt, copy)
    shutil.copy(copy / "helen/trainset/face_000004.pts", copy / "helen/trainset/face_000003.pts")
    flags[flags.index(str(spoilt))] = copy
    with pytest.raises(InputError, match=r"args\.json: the faces of the data changed"):
        run(train, *flags, "--resume")


def test_evaluate_skips_and_says_so(spoilt, faces_300w, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "_write_figures", lambda *_: [])
    samples = read_samples(DATASETS["300w"], faces_300w, "test", quiet=True)
    np.savez(tmp_path / "p.npz", names=[s.name for s in samples], landmarks=[s.landmarks for s in samples])
    flags = [*data(spoilt), "--predictions", f"p={tmp_path / 'p.npz'}", "--output", tmp_path]
    run(evaluate, *flags, "--on-bad-sample", "skip")
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["p"]
    assert (scores["full"]["n"], scores["challenging"]["n"], scores["full"]["nme_pct"]) == (21 - 1, 6 - 1, 0)
    assert list(skipped(tmp_path)) == ["ibug/face_000002"]
    assert json.loads((tmp_path / "metrics.json").read_text())["protocol"]["faces_skipped"] == 1

    cv2.imwrite(str(spoilt / "ibug/face_000002.jpg"), np.zeros((200, 200, 3), np.uint8))
    run(evaluate, *flags)
    assert not (tmp_path / "skipped.csv").exists()  # the list of the run before


def test_where_every_face_is_bad(faces_300w, tmp_path):
    for source in ("helen/trainset", "lfpw/trainset", "afw"):
        shutil.copytree(faces_300w / source, tmp_path / "faces" / source)
    for file in (tmp_path / "faces").rglob("*.pts"):
        file.write_text("nothing")
    with pytest.raises(InputError, match=r"all 48 train faces are bad, the first: .*face_000000\.pts, line 1"):
        run(pca_builder, *data(tmp_path / "faces"), "--output", tmp_path / "out", "--on-bad-sample", "skip")
