"""Several methods in summary.md: protocol, every method, every subset, the pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose, mean_face
from asmnet_tf.evaluation import metrics, report
from asmnet_tf.evaluation.records import Faces, Method

SPEC = DATASETS["300w"]
SUBSETS = {"full": 20, "common": 12, "challenging": 0}
IN_PAIRS = "## In pairs, on the same faces"
PROTOCOL = {
    "dataset": "300w",
    "split": "test",
    "faces": 20,
    "normaliser": "inter-ocular (outer eye corners)",
    "pose_labels": "PnP",
    "thresholds": (0.08, 0.10),
}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """These tests are of what is written and need not wait for what is drawn."""
    monkeypatch.setattr(report, "_write_figures", lambda *arguments: [])


def make_faces() -> Faces:
    rng = np.random.default_rng(0)
    landmarks = mean_face()[:, :2] * 100 + 150 + rng.normal(0, 2, (20, 1, 2)) + rng.normal(0, 0.5, (20, 68, 2))
    masks = {"full": np.ones(20, bool), "common": np.arange(20) < 12, "challenging": np.zeros(20, bool)}
    return Faces(SPEC, [f"f/{i}" for i in range(20)], landmarks, estimate_pose(landmarks, SPEC), masks)


def make_method(faces: Faces, name: str, noise_px: float, **info) -> Method:
    landmarks = faces.landmarks + noise_px * np.random.default_rng(1).normal(size=faces.landmarks.shape)
    return Method(name, landmarks, None, estimate_pose(landmarks, SPEC), info)


def write(folder, methods, faces):
    scores = report.write_report(folder, methods, faces, (0.08, 0.10), protocol=PROTOCOL)
    return scores, json.loads((folder / "metrics.json").read_text("utf-8"))["comparisons"]


def rows_of(text: str, title: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = text.split(f"{title}\n", 1)[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_two_methods(tmp_path):
    faces = make_faces()
    good = make_method(faces, "good", 2.0, parameters=1_439_507, multiply_adds=256_000_000, crop="square 1.2")
    methods = [good, make_method(faces, "bad", 5.0, crop="tight 1", input_size=112)]
    scores, compared = write(tmp_path, methods, faces)
    text = (tmp_path / "summary.md").read_text("utf-8")

    assert text.startswith("# 300W: 2 methods on 20 faces\n")
    for words in (
        "split: test",
        "faces: 20",
        "normaliser: inter-ocular (outer eye corners)",
        "thresholds: [0.08, 0.1]",
    ):
        assert f"\n- {words}\n" in text
    rows = rows_of(text, "## Models")
    assert rows[0] == ["method", "parameters", "multiply-adds", "input px", "crop"]
    assert rows[2:] == [["good", "1.440 M", "256.0 M", "-", "square 1.2"], ["bad", "-", "-", "112", "tight 1"]]
    header, _, *rows = rows_of(text, "## Landmarks")
    assert header[:4] == ["method", "subset", "faces", "scored"]
    expected = [[name, subset, str(n), str(n)] for name in ("good", "bad") for subset, n in SUBSETS.items()]
    assert [row[:4] for row in rows] == expected
    assert rows[0][header.index("NME inter-ocular %")].startswith(f"{scores['good']['full']['nme_pct']:.2f} [")
    assert rows[0][header.index("AUC@0.08 %")].startswith(f"{scores['good']['full']['auc_pct@0.08']:.2f} [")
    assert "PnP on landmarks" in text
    assert "O_P" not in text  # neither gives one

    errors = [metrics.nme(m.landmarks, faces.landmarks, metrics.normaliser(faces.landmarks, SPEC)) for m in methods]
    by_hand = errors[0] - errors[1]
    pair = compared["full"][0]
    assert (pair["a"], pair["b"], pair["n"], pair["left_out"]) == ("good", "bad", 20, 0)
    assert pair["nme_difference_pct"] == pytest.approx(100 * by_hand.mean())
    assert pair["ci95"] == pytest.approx([100 * v for v in metrics.bootstrap_interval(by_hand)])
    assert (pair["a_better_pct"], pair["b_better_pct"]) == (100.0, 0.0)
    assert compared["common"][0]["n"] == 12
    assert compared["challenging"][0]["nme_difference_pct"] is None
    rows = rows_of(text, IN_PAIRS)[2:]
    low, high = pair["ci95"]
    assert rows[0] == [
        *("full", "good", "bad", "20"),
        f"{pair['nme_difference_pct']:+.2f} [{low:+.2f}, {high:+.2f}]",
        *("100.0", "0.0", "good"),
    ]
    assert rows[2] == ["challenging", "good", "bad", "0", "-", "-", "-", "-"]


def test_rounding_makes_no_winner(tmp_path):
    faces = make_faces()
    method = make_method(faces, "a", 2.0)
    farther = faces.landmarks + (method.landmarks - faces.landmarks) * (1 + 1e-5)
    _, compared = write(tmp_path, [method, replace(method, name="b", landmarks=farther)], faces)
    low, high = compared["full"][0]["ci95"]
    assert low < high < 0
    rows = rows_of((tmp_path / "summary.md").read_text("utf-8"), IN_PAIRS)
    assert rows[2] == ["full", "a", "b", "20", "-0.00 [-0.00, -0.00]", "0.0", "0.0", "-"]


def test_no_winner_where_the_interval_holds_zero(tmp_path):
    faces = make_faces()
    method = make_method(faces, "a", 2.0)
    write(tmp_path, [method, replace(method, name="b")], faces)
    rows = rows_of((tmp_path / "summary.md").read_text("utf-8"), IN_PAIRS)
    assert rows[2] == ["full", "a", "b", "20", "+0.00 [+0.00, +0.00]", "0.0", "0.0", "-"]


def test_faces_without_landmarks_are_counted(tmp_path):
    faces = make_faces()
    a, b = make_method(faces, "a|x", 2.0), make_method(faces, "b", 2.0)
    a.landmarks[[3, 15]] = np.nan
    _, compared = write(tmp_path, [a, b], faces)
    assert [compared[subset][0]["left_out"] for subset in ("full", "common")] == [2, 1]
    assert compared["full"][0]["b_better_pct"] == pytest.approx(10)  # the two faces that only b found
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert r"- a\|x and b, full: 2 of 20 faces have no landmarks of one or both." in text
    assert "| full | a\\|x | b | 18 |" in text


@pytest.mark.parametrize(("count", "pairs"), [(2, 1), (3, 3), (4, 6), (5, 4), (7, 6)])
def test_all_pairs_of_few_methods_and_the_first_against_each_of_many(count, pairs):
    errors = {f"m{i}": np.full(3, 0.01 * i) for i in range(count)}
    found = report.compare(errors, {"all": np.ones(3, bool)})["all"]
    assert len(found) == pairs
    if count > 4:
        assert {pair["a"] for pair in found} == {"m0"}
    assert all(pair["a"] < pair["b"] for pair in found)


def test_one_method_has_nothing_to_be_compared_with(tmp_path):
    faces = make_faces()
    _, compared = write(tmp_path, [make_method(faces, "a", 1.0)], faces)
    assert compared == {}
    assert IN_PAIRS not in (tmp_path / "summary.md").read_text("utf-8")
