"""comparison.md: protocol, every method, every subset, the pairs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from asmnet_tf import comparison, metrics, report
from asmnet_tf.config import DATASETS
from asmnet_tf.pose import estimate_pose, mean_face

SPEC = DATASETS["300w"]
IN_PAIRS = "## In pairs, on the same faces"
PROTOCOL = {
    "dataset": "300w",
    "split": "test",
    "faces": 20,
    "normaliser": "inter-ocular (outer eye corners)",
    "pose_labels": "PnP",
    "thresholds": (0.08, 0.10),
}


def make_faces() -> report.Faces:
    rng = np.random.default_rng(0)
    landmarks = mean_face()[:, :2] * 100 + 150 + rng.normal(0, 2, (20, 1, 2)) + rng.normal(0, 0.5, (20, 68, 2))
    masks = {"full": np.ones(20, bool), "common": np.arange(20) < 12, "challenging": np.zeros(20, bool)}
    return report.Faces(SPEC, [f"f/{i}" for i in range(20)], landmarks, estimate_pose(landmarks, SPEC), masks)


def make_method(faces: report.Faces, name: str, noise_px: float, **info) -> report.Method:
    landmarks = faces.landmarks + noise_px * np.random.default_rng(1).normal(size=faces.landmarks.shape)
    return report.Method(name, landmarks, None, estimate_pose(landmarks, SPEC), info)


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
    text = (tmp_path / "comparison.md").read_text("utf-8")

    assert text.startswith("# 300W: 2 methods on the same 20 faces\n")
    protocol = text.splitlines()[2]
    for words in ("split: test", "faces: 20", "inter-ocular", "square 1.2, tight 1", "FR and AUC at NME: 8 %, 10 %"):
        assert words in protocol
    first, *rows = rows_of(text, "on the same 20 faces")
    assert first[1:5] == ["parameters", "multiply-adds", "input px", "crop"]
    assert first[5:] == ["full (20)", "common (12)", "challenging (0)"]
    expected = [f"{scores['good'][subset]['nme_pct']:.2f} ({n})" for subset, n in (("full", 20), ("common", 12))]
    assert rows[1] == ["good", "1.440 M", "256.000 M", "-", "square 1.2", *expected, "- (0)"]
    assert rows[2][:5] == ["bad", "-", "-", "112", "tight 1"]

    header, _, *rows = rows_of(text, "## Every subset")
    assert header[:4] == ["subset", "method", "faces", "scored"]
    assert [row[:2] for row in rows[:4]] == [["full", "good"], ["full", "bad"], ["common", "good"], ["common", "bad"]]
    assert rows[0][header.index("AUC@0.08 %")].startswith(f"{scores['good']['full']['auc_pct@0.08']:.2f} [")
    assert "PnP yaw / pitch / roll" in header
    assert "O_P yaw / pitch / roll" not in header  # neither gives one

    errors = [metrics.nme(m.landmarks, faces.landmarks, metrics.normaliser(faces.landmarks, SPEC)) for m in methods]
    by_hand = metrics.paired_bootstrap(*errors)
    pair = compared["full"][0]
    assert (pair["a"], pair["b"], pair["n"], pair["left_out"]) == ("good", "bad", 20, 0)
    assert pair["nme_difference_pct"] == pytest.approx(100 * by_hand.difference)
    assert pair["ci95"] == pytest.approx([100 * v for v in by_hand.interval])
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
    rows = rows_of((tmp_path / "comparison.md").read_text("utf-8"), IN_PAIRS)
    assert rows[2] == ["full", "a", "b", "20", "-0.00 [-0.00, -0.00]", "0.0", "0.0", "-"]


def test_no_winner_where_the_interval_holds_zero(tmp_path):
    faces = make_faces()
    method = make_method(faces, "a", 2.0)
    write(tmp_path, [method, replace(method, name="b")], faces)
    rows = rows_of((tmp_path / "comparison.md").read_text("utf-8"), IN_PAIRS)
    assert rows[2] == ["full", "a", "b", "20", "+0.00 [+0.00, +0.00]", "0.0", "0.0", "-"]


def test_faces_without_landmarks_are_counted(tmp_path):
    faces = make_faces()
    a, b = make_method(faces, "a|x", 2.0), make_method(faces, "b", 2.0)
    a.landmarks[[3, 15]] = np.nan
    _, compared = write(tmp_path, [a, b], faces)
    assert [compared[subset][0]["left_out"] for subset in ("full", "common")] == [2, 1]
    assert compared["full"][0]["b_better_pct"] == pytest.approx(10)  # the two faces that only b found
    text = (tmp_path / "comparison.md").read_text("utf-8")
    assert r"- a\|x and b, full: 2 of 20 faces have no landmarks of one or both." in text
    assert "| full | a\\|x | b | 18 |" in text


@pytest.mark.parametrize(("count", "pairs"), [(2, 1), (3, 3), (4, 6), (5, 4), (7, 6)])
def test_all_pairs_of_few_methods_and_the_first_against_each_of_many(count, pairs):
    errors = {f"m{i}": np.full(3, 0.01 * i) for i in range(count)}
    found = comparison.compare(errors, {"all": np.ones(3, bool)})["all"]
    assert len(found) == pairs
    if count > 4:
        assert {pair["a"] for pair in found} == {"m0"}
    assert all(pair["a"] < pair["b"] for pair in found)


def test_one_method_has_nothing_to_be_compared_with(tmp_path):
    faces = make_faces()
    write(tmp_path, [make_method(faces, "a", 1.0), make_method(faces, "b", 2.0)], faces)
    assert (tmp_path / "comparison.md").is_file()
    _, compared = write(tmp_path, [make_method(faces, "a", 1.0)], faces)
    assert compared == {}
    assert not (tmp_path / "comparison.md").exists()  # the earlier one would pass for this report's
