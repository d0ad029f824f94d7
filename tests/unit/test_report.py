"""report.py and figures.py: every file is there, parses, and says what metrics.py says."""

import base64
import csv
import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose, mean_face
from asmnet_tf.evaluation import figures, metrics, report
from asmnet_tf.evaluation.records import Faces, Method, file_names
from asmnet_tf.files import InputError
from asmnet_tf.shape.shape_model import ShapeModel

SPEC = DATASETS["300w"]
THRESHOLDS = (0.08, 0.10)
LOG_COLUMNS = (
    *("epoch", "loss", "loss_landmarks", "loss_asm", "loss_pose", "alpha", "lr", "images_per_s", "seconds"),
    *("val_nme_pct", "val_yaw_deg", "val_pitch_deg", "val_roll_deg"),
)


def reject_constant(name: str):
    raise AssertionError(f"{name} in JSON")


def read_json(text: str):
    return json.loads(text, parse_constant=reject_constant)


def read_csv(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_faces(count: int = 20, **subsets) -> Faces:
    rng = np.random.default_rng(0)
    flat = mean_face()[:, :2] * 100 + 150
    landmarks = flat + rng.normal(0, 2, (count, 1, 2)) + rng.normal(0, 0.5, (count, 68, 2))
    masks = {name: np.asarray(mask, bool) for name, mask in subsets.items()}
    names = [f"lfpw/testset/image_{i:04d}" for i in range(count)]
    return Faces(SPEC, names, landmarks, estimate_pose(landmarks, SPEC), masks)


def make_method(faces: Faces, name: str = "ours", noise_px: float = 4.0, **changes) -> Method:
    rng = np.random.default_rng(len(name))
    landmarks = faces.landmarks + noise_px * rng.normal(size=faces.landmarks.shape)
    pose = None if faces.pose is None else faces.pose + rng.normal(0, 2, faces.pose.shape)
    method = Method(name, landmarks, pose, estimate_pose(landmarks, SPEC), {"parameters": 1_431_650})
    return replace(method, **changes)


def images(faces: Faces):
    return lambda i: np.full((300, 310, 3), 10 * (i % 20), np.uint8)


def assert_png(path, least: int = 100) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None, path
    assert min(picture.shape[:2]) >= least
    assert picture.std() > 1
    return picture


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of what is written, which need not wait for what is drawn."""
    monkeypatch.setattr(report, "_write_figures", lambda *arguments: [])


def test_scores_are_those_of_metrics():
    faces = make_faces(20, full=np.ones(20), common=np.arange(20) < 12)
    method = make_method(faces)
    scores = report.score(report.measure([method], faces), faces, THRESHOLDS)
    assert list(scores) == ["ours"]
    assert list(scores["ours"]) == ["full", "common"]  # as asked for
    errors = metrics.nme(method.landmarks, faces.landmarks, metrics.normaliser(faces.landmarks, SPEC))
    common = scores["ours"]["common"]
    assert common["n"] == 12
    assert common["nme_pct"] == pytest.approx(100 * errors[:12].mean())
    pupils = metrics.normaliser(faces.landmarks, SPEC, "inter-pupil")
    expected = 100 * metrics.nme(method.landmarks, faces.landmarks, pupils)[:12].mean()
    assert common["nme_interpupil_pct"] == pytest.approx(expected)
    assert common["auc_pct@0.10"] == pytest.approx(100 * metrics.gains(errors[:12], 0.10).mean())
    expected = np.abs(method.pose - faces.pose)[:12].mean(axis=0)
    assert list(common["pose_mae_deg"].values()) == pytest.approx(expected)
    expected = metrics.pose_errors(method.pose_pnp, faces.pose)[:12].mean(axis=0)
    assert list(common["pose_pnp_mae_deg"].values()) == pytest.approx(expected)


def test_report_files(tmp_path):
    faces = make_faces(20, full=np.ones(20), common=np.arange(20) < 12, challenging=np.zeros(20))
    methods = [make_method(faces, "ours"), make_method(faces, "theirs", 8.0, pose=None, pose_pnp=None, info={})]
    scores = report.write_report(
        tmp_path / "out", methods, faces, THRESHOLDS, protocol={"crop": "square"}, image_reader=images(faces)
    )
    out = tmp_path / "out"
    expected = {"metrics.json", "summary.md", "per_image.csv", "report.html"}
    expected |= {f"{stem}.{end}" for stem in ("ced", "failure_rate", "landmark_errors") for end in ("csv", "png")}
    expected |= {f"{name}_{kind}.png" for name in ("ours", "theirs") for kind in ("best", "median", "worst")}
    assert {path.name for path in out.iterdir()} == expected
    for path in out.glob("*.png"):
        assert_png(path)

    document = read_json((out / "metrics.json").read_text("utf-8"))
    assert document["protocol"] == {"crop": "square"}
    assert document["methods"]["ours"] == {"parameters": 1_431_650}
    assert document["scores"] == scores
    assert [pair["a"] for pair in document["comparisons"]["full"]] == ["ours"]
    assert document["scores"]["theirs"]["full"]["pose_mae_deg"] is None
    assert document["scores"]["ours"]["challenging"]["n"] == 0
    assert document["scores"]["ours"]["challenging"]["nme_pct"] is None

    rows = read_csv(out / "per_image.csv")
    assert len(rows) == 40
    ours = [row for row in rows if row["method"] == "ours"]
    assert [row["name"] for row in ours] == faces.names
    assert ours[0]["subsets"] == "full;common"
    assert ours[19]["subsets"] == "full"
    nme = np.array([float(row["nme_pct"]) for row in ours])
    assert nme.mean() == pytest.approx(scores["ours"]["full"]["nme_pct"], abs=1e-5)
    assert nme[:12].mean() == pytest.approx(scores["ours"]["common"]["nme_pct"], abs=1e-5)
    yaw = np.array([[float(row[f"yaw_{kind}_deg"]) for kind in ("pred", "gt")] for row in ours])
    assert np.abs(yaw[:, 0] - yaw[:, 1]).mean() == pytest.approx(
        scores["ours"]["full"]["pose_mae_deg"]["yaw"], abs=1e-5
    )
    theirs = next(row for row in rows if row["method"] == "theirs")
    assert theirs["yaw_pred_deg"] == theirs["yaw_pnp_deg"] == ""

    curve = [row for row in read_csv(out / "ced.csv") if (row["subset"], row["method"]) == ("full", "ours")]
    failing = [row for row in read_csv(out / "failure_rate.csv") if (row["subset"], row["method"]) == ("full", "ours")]
    assert float(curve[-1]["threshold_pct"]) == 10.0
    for row, opposite in zip(curve, failing):
        assert float(row["faces_pct"]) + float(opposite["fr_pct"]) == pytest.approx(100)
        if row["threshold_pct"] == "8.00":
            assert float(opposite["fr_pct"]) == pytest.approx(scores["ours"]["full"]["fr_pct@0.08"])
    assert not any(row["subset"] == "challenging" for row in read_csv(out / "ced.csv"))

    landmarks = read_csv(out / "landmark_errors.csv")
    assert [int(row["landmark"]) for row in landmarks] == list(range(68))
    mean = np.mean([float(row["ours"]) for row in landmarks])
    assert mean == pytest.approx(scores["ours"]["full"]["nme_pct"], abs=1e-5)  # every face is in `full`


def test_odd_method_names(tmp_path):
    faces = make_faces(3)
    names = ["a/b", "a\\b", "A b", "../../etc", "$x_{", "_hidden", "模型", "", "a|b\nc", "x" * 300]
    stems = file_names(names)
    assert len({stem.lower() for stem in stems}) == len(names)
    assert all(stem and set(stem) <= set("abcdefghijklmnopqrstuvwxyzABx_.-0123456789") for stem in stems)
    assert all(len(stem) < 80 and not stem.startswith(".") for stem in stems)
    methods = [make_method(faces, name) for name in names]
    scores = report.write_report(
        tmp_path, methods, faces, THRESHOLDS, protocol={"a|b": "c\nd"}, image_reader=images(faces)
    )
    assert len(list(tmp_path.glob("*_worst.png"))) == len(names)
    assert list(read_json(report.json_line(scores))) == names
    assert {row["method"] for row in read_csv(tmp_path / "per_image.csv")} == set(names)
    table = [
        line for line in (tmp_path / "summary.md").read_text("utf-8").splitlines() if line.startswith("| a\\|b c |")
    ]
    assert table
    lines = report.text_table(scores, THRESHOLDS).splitlines()
    assert len(lines) == 1 + len(names)


def test_names_that_are_no_utf8_or_look_like_formulas(tmp_path):
    faces = make_faces(4, **{"a$_$b": np.ones(4)})
    faces.names[0] = "lfpw/testset/im\udce8ge_$x_0001"
    faces = replace(faces, spec=replace(SPEC, title="My set $\\x$"))
    scores = report.write_report(
        tmp_path, [make_method(faces, "mod\udce8le")], faces, THRESHOLDS, protocol={}, image_reader=images(faces)
    )
    assert list(scores) == ["mod\udce8le"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".csv", ".json", ".md", ".html"}


def test_the_unit_of_errors_is_named(tmp_path, no_figures):
    faces = replace(make_faces(4), spec=replace(SPEC, outer_eye_corners=()))
    report.write_report(tmp_path, [make_method(faces)], faces, THRESHOLDS, protocol={})
    table = (tmp_path / "summary.md").read_text()
    assert "NME % of the box's diagonal" in table
    assert "inter-ocular" not in table.split("## Beside")[0]


def test_legend_shows_a_name_with_underscore_and_dollar(tmp_path):
    faces = make_faces(4)
    scores = report.score(report.measure([make_method(faces, "_a$b$")], faces), faces, THRESHOLDS)
    grid = report._grid(THRESHOLDS)
    shares = {("all", "_a$b$"): np.zeros(len(grid))}
    figure = figures.curves_figure("ced", grid, shares, faces, scores, THRESHOLDS)
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(texts) == 1
    assert texts[0].strip().startswith(r"_a\$b\$: ")


def test_published_numbers_only_beside_complete_subsets(tmp_path, no_figures):
    faces = make_faces(10, full=np.ones(10), common=np.arange(10) < 6, lfpw=np.arange(10) < 6)
    counts = {**SPEC.subset_counts, "full": 10, "lfpw": 6}
    faces = replace(faces, spec=replace(SPEC, subset_counts=counts))
    scores = report.write_report(tmp_path, [make_method(faces)], faces, THRESHOLDS, protocol={})
    text = (tmp_path / "summary.md").read_text("utf-8")
    section = text.split("## Beside the published numbers")[1]
    assert "| method | full |" in section
    assert "| ASMNet (published) | 5.50 |" in section
    assert f"| ours | {scores['ours']['full']['nme_pct']:.2f} |" in section
    assert "| ASMNet (published) | full | 1.62 | 1.80 | 1.24 |" in section
    assert "HopeNet" in section
    assert "- common: 6 of 554 faces; published numbers are not comparable" in section
    assert "- lfpw: all 6 faces are here, but no number was published for it." in section
    assert "4.82" not in section  # ASMNet's common


def test_the_published_table_of_wflw_only_beside_all_its_faces(tmp_path, no_figures):
    spec = DATASETS["wflw"]
    points = np.random.default_rng(1).normal(200, 40, (9, 98, 2))
    masks = {name: np.arange(9) < 9 - i for i, name in enumerate(spec.subsets)}
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    whole = Faces(replace(spec, subset_counts=counts), [f"face#{i}" for i in range(9)], points, None, masks)
    report.write_report(tmp_path, [Method("ours", points + 2)], whole, (0.10,), protocol={})
    section = (tmp_path / "summary.md").read_text("utf-8").split("## Beside the published numbers")[1]
    assert "| method | test | largepose | expression | illumination | makeup | occlusion | blur |" in section
    assert "| mnv2 (published) | 9.57 | 18.18 | 9.93 | 8.98 | 9.92 | 11.38 | 10.79 |" in section
    assert "| mnv2_r (published) | 9.41 | 17.86 | 9.78 | 8.90 | 9.67 | 11.25 | 10.66 |" in section
    assert "| ASMNet_nr (published) | 11.96 | 21.95 | 13.08 | 11.02 | 11.84 | 13.24 | 12.60 |" in section
    assert "| ASMNet (published) | 10.77 | 21.11 | 12.02 | 9.93 | 10.55 | 12.34 | 11.62 |" in section
    part = replace(whole, spec=replace(spec, subset_counts=counts | {"makeup": 206}))
    report.write_report(tmp_path, [Method("ours", points + 2)], part, (0.10,), protocol={})
    section = (tmp_path / "summary.md").read_text("utf-8").split("## Beside the published numbers")[1]
    assert "| ASMNet (published) | 10.77 | 21.11 | 12.02 | 9.93 | 12.34 | 11.62 |" in section
    assert "- makeup: 5 of 206 faces; published numbers are not comparable" in section
    report.write_report(tmp_path, [Method("ours", points + 2)], replace(whole, spec=spec), (0.10,), protocol={})
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert "(published)" not in text
    assert "- test: 9 of 2500 faces" in text


def test_no_published_numbers_for_a_part(tmp_path, no_figures):
    faces = make_faces(10, lfpw=np.ones(10))
    report.write_report(tmp_path, [make_method(faces)], faces, THRESHOLDS, protocol={})
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert "lfpw: 10 of 224 faces; published numbers are not comparable because" in text
    assert "(published)" not in text
    synthetic = replace(faces, spec=DATASETS["synthetic"])
    report.write_report(tmp_path, [make_method(faces)], synthetic, THRESHOLDS, protocol={})
    assert "published" not in (tmp_path / "summary.md").read_text("utf-8")


def test_single_face_and_failed_face(tmp_path):
    faces = make_faces(1)
    method = make_method(faces)
    scores = report.write_report(tmp_path / "one", [method], faces, THRESHOLDS, protocol={}, image_reader=images(faces))
    assert scores["ours"]["all"]["n"] == 1
    assert scores["ours"]["all"]["ci95"]["nme_pct"] == [None, None]
    assert_png(tmp_path / "one" / "ours_best.png")

    nothing = replace(
        method, landmarks=np.full_like(method.landmarks, np.nan), pose=None, pose_pnp=np.full((1, 3), np.nan)
    )
    scores = report.write_report(
        tmp_path / "none", [nothing], faces, THRESHOLDS, protocol={"x": float("nan")}, image_reader=images(faces)
    )
    document = read_json((tmp_path / "none" / "metrics.json").read_text("utf-8"))
    assert document["protocol"] == {"x": None}
    assert "| ours | all | 1 | 0 | - |" in (tmp_path / "none" / "summary.md").read_text("utf-8")
    assert document["scores"]["ours"]["all"]["nme_pct"] is None
    assert document["scores"]["ours"]["all"]["fr_pct@0.08"] == 100.0
    assert read_csv(tmp_path / "none" / "per_image.csv")[0]["nme_pct"] == ""
    read_json(report.json_line(scores))


def test_nme_never_stands_without_the_number_of_scored_faces(tmp_path, no_figures):
    """Terminal table, JSON line, metrics.json, Markdown, HTML and the legends; pose says it where it is fewer."""
    faces = make_faces(10, common=np.ones(10))
    faces = replace(faces, spec=replace(SPEC, subset_counts={**SPEC.subset_counts, "common": 10}))
    faces.pose[4] = np.nan
    method = make_method(faces)
    method.landmarks[[2, 7]], method.pose[7], method.pose_pnp[[2, 7]] = np.nan, np.nan, np.nan
    scores = report.write_report(tmp_path, [method, make_method(faces, "whole")], faces, THRESHOLDS, protocol={})
    nme = f"{scores['ours']['common']['nme_pct']:.2f}"
    document = read_json((tmp_path / "metrics.json").read_text("utf-8"))["scores"]
    for table in (scores, read_json(report.json_line(scores)), document):
        numbers = table["ours"]["common"]
        found = [numbers[key] for key in ("n", "n_scored", "pose_n_scored", "pose_pnp_n_scored")]
        assert found == [10, 8, 10 - 2, 10 - 3]
    header, ours, whole = report.text_table(scores, THRESHOLDS).splitlines()
    assert header.split()[2:4] == ["faces", "scored"]
    assert ours.split()[2:5] == ["10", "8", nme]
    assert ours.endswith(" (7 of 10)")
    assert whole.split()[2:4] == ["10", "10"]
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert f"| ours | common | 10 | 8 | {nme} [" in summary
    assert f"| ours | {nme} (8 of 10) |" in summary  # beside the published numbers, which are over all
    assert "| ours | common | 10 | 7 | PnP on landmarks |" in summary
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"<td>ours</td><td>common</td><td>10</td><td>8</td><td>{nme} [" in page
    assert f"<td>ours</td><td>{nme} (8 of 10)</td>" in page
    assert f" {nme} (8 / 10), " in figures._legend("ours", True, scores["ours"]["common"], THRESHOLDS)


def test_eyes_in_one_point_are_refused():
    faces = make_faces(3)
    faces.landmarks[1, 36:48] = 7.0
    with pytest.raises(InputError, match="image_0001: both eyes"):
        report.measure([make_method(faces, pose_pnp=None)], faces)


def test_worst_sheet_begins_with_the_face_that_failed():
    faces = make_faces(30)
    method = make_method(faces)
    method.landmarks[7] = np.nan
    method.landmarks[11] = faces.landmarks[11]
    sheets = figures.contact_sheets(report.measure([method], faces), faces, images(faces))
    texts = {stem: [text.get_text() for text in figure.axes[0].texts] for stem, figure in sheets}
    captions = {stem: [text for text in of if "image_" in text] for stem, of in texts.items()}
    assert captions["ours_worst"][0].startswith("- %")
    assert captions["ours_worst"][0].endswith("image_0007")
    assert captions["ours_best"][0].startswith("0.00 %")
    assert captions["ours_best"][0].endswith("image_0011")
    values = [float(text.split()[0]) for text in captions["ours_median"]]
    assert len(values) == 12
    assert values == sorted(values)


def test_sheet_marks_lie_on_the_landmarks():
    faces = make_faces(1)
    points = np.full((1, 68, 2), 50.0)
    points[0, 0], points[0, 1] = (0.0, 0.0), (100.0, 100.0)
    faces = replace(faces, landmarks=points, pose=None)
    method = Method("ours", points + np.array([10.0, 0.0]))
    identity = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    picture = figures._annotated(np.zeros((figures.TILE, figures.TILE, 3), np.uint8), identity, method, faces, 0)
    assert tuple(picture[50, 50]) == figures.GREEN
    assert tuple(picture[50, 60]) == figures.RED
    assert tuple(picture[100, 110]) == figures.RED
    assert tuple(picture[50, 70]) == (0, 0, 0)


def test_report_html_is_one_file_that_escapes_what_it_is_given(tmp_path):
    faces = make_faces(6, full=np.ones(6), common=np.arange(6) < 3)
    methods = [make_method(faces, "<script>&"), make_method(faces, "b|c", 6.0)]
    given = {"protocol": {"<i>": '"<b>'}, "image_reader": images(faces)}
    scores = report.write_report(tmp_path, methods, faces, THRESHOLDS, **given)
    page = (tmp_path / "report.html").read_text("utf-8")
    tags = Counter()
    sources = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags[tag] += 1
            sources.extend(value for key, value in attributes if key in ("src", "href"))

    Reader().feed(page)
    assert not {"script", "link", "i", "b"} & set(tags)
    assert tags["img"] == 3 + 6
    for source in sources:
        kind, data = source.split(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        assert cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR).std() > 1
    markdown = [line for line in (tmp_path / "summary.md").read_text("utf-8").splitlines() if line[:2] == "| "]
    assert tags["tr"] == len(markdown) - tags["table"]  # the same tables, without the line of dashes
    assert "&lt;script&gt;&amp;" in page
    assert f"<td>b|c</td><td>full</td><td>6</td><td>6</td><td>{scores['b|c']['full']['nme_pct']:.2f} [" in page


@pytest.mark.parametrize("also", ["pdf", "svg"])
def test_figures_for_papers(tmp_path, also):
    faces = make_faces(3)
    given = {"protocol": {}, "image_reader": images(faces), "also": also}
    for folder in ("a", "b"):
        report.write_report(tmp_path / folder, [make_method(faces, "v1.2")], faces, THRESHOLDS, **given)
    pictures = sorted(path for path in (tmp_path / "a").iterdir() if path.suffix == ".png")
    assert len(pictures) == 3 + 3
    for path in pictures:
        assert (
            path.with_suffix(f".{also}").read_bytes()[:5]
            == {"png": b"\x89PNG\r", "pdf": b"%PDF-", "svg": b"<?xml"}[also]
        )
        header = path.read_bytes()
        dots = header[header.index(b"pHYs") + 4 :][:4]
        assert round(int.from_bytes(dots, "big") * 0.0254) == 200
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "a").iterdir())) == 4 + 3 + 6 * 2


def test_one_bad_method_does_not_set_the_scale_of_the_others():
    faces = make_faces(5)
    methods = [make_method(faces, "a", 3.0), make_method(faces, "bad", 300.0), make_method(faces, "perfect", 0.0)]

    def top(chosen) -> float:
        measured = report.measure(chosen, faces)
        figure = figures.landmark_errors_figure(measured, [100 * one.points.mean(axis=0) for one in measured], faces)
        axes = figure.axes[0]
        named = [text.get_text() for text in axes.get_legend().get_texts() if "up to" in text.get_text()]
        assert all(name.startswith("bad") for name in named)
        assert len(named) == (len(chosen) > 1 and chosen[1].name == "bad")
        return axes.get_ylim()[1]

    alone = top(methods[:1])
    assert top(methods[:2]) == top(methods) == top([methods[0], methods[2]]) == alone
    assert top(methods[1:2]) > 20 * alone  # by itself it sets its own


@pytest.mark.parametrize("stem", ["ced", "failure_rate"])
def test_threshold_lines_are_labelled_and_legends_hide_nothing(stem):
    faces = make_faces(4, full=np.ones(4), common=np.arange(4) < 2)
    methods = [make_method(faces, name) for name in "abcdef"]
    grid = report._grid(THRESHOLDS)
    shares = {(subset, name): np.linspace(0, 100, len(grid)) for subset in ("full", "common") for name in "abcdef"}
    scores = report.score(report.measure(methods, faces), faces, THRESHOLDS)
    figure = figures.curves_figure(stem, grid, shares, faces, scores, THRESHOLDS)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {"threshold 8 %", "threshold 10 %"}
        assert_below(axes)


def assert_below(axes):
    legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert legend.y1 < label.y0
    assert legend.y0 >= 0


def test_what_does_not_fit_is_refused():
    faces = make_faces(3)
    method = make_method(faces)
    with pytest.raises(InputError, match="two methods are called 'ours'"):
        report.measure([method, method], faces)
    with pytest.raises(InputError, match=r"ours: landmarks of shape \(3, 29, 2\)"):
        report.measure([replace(method, landmarks=np.zeros((3, 29, 2)))], faces)
    with pytest.raises(InputError, match="no face"):
        report.measure([method], replace(faces, names=[]))
    with pytest.raises(ValueError, match="98"):
        report.measure([method], replace(faces, spec=DATASETS["wflw"]))


def test_json_line():
    faces = make_faces(4, full=np.ones(4), challenging=np.zeros(4))
    line = report.json_line(report.score(report.measure([make_method(faces)], faces), faces, THRESHOLDS))
    assert "\n" not in line
    numbers = read_json(line)["ours"]
    assert list(numbers["full"]) == [
        *("n", "n_scored", "nme_pct", "nme_interpupil_pct", "fr_pct@0.08", "auc_pct@0.08"),
        *("fr_pct@0.10", "auc_pct@0.10", "pose_mae_deg", "pose_n_scored", "pose_pnp_mae_deg", "pose_pnp_n_scored"),
    ]
    assert numbers["full"]["nme_pct"] == round(numbers["full"]["nme_pct"], 6)
    assert numbers["challenging"]["pose_mae_deg"] is None
    with_nan = {"m": {"s": {"n": np.int64(1), "nme_pct": float("nan"), "ci95": {}}}}
    assert report.json_line(with_nan) == '{"m": {"s": {"n": 1, "nme_pct": null}}}'


def test_text_table_is_aligned():
    faces = make_faces(6, full=np.ones(6), challenging=np.zeros(6))
    methods = [make_method(faces, "a"), make_method(faces, "a much longer name", pose=None, pose_pnp=None)]
    lines = report.text_table(report.score(report.measure(methods, faces), faces, THRESHOLDS), THRESHOLDS).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:3] == ["method", "subset", "faces"]
    assert "nan" not in "".join(lines).lower()


@pytest.mark.parametrize(
    "rows",
    [
        ["1,0.5,0.4,0.1,0.05,2.0,0.001,400,3.5,6.1,4.0,5.0,2.0"],
        ["1,0.5,0.5,0.0,0.0,0.0,0.0,400,3.5,,,,"],  # --loss mse, no validation
        ["1,0,0,0,0,0,0,0,0,0,0,0,0", "2,nan,0.4,,,2.0,0.001,,,,,,"],
        [f"{e},{1 / e},{0.9 / e},0.1,0.05,2,0.001,400,3,{6 if e % 5 == 0 else ''},,," for e in range(1, 61)],
    ],
)
def test_training_curves(tmp_path, monkeypatch, rows):
    save = figures.save_figure
    log = [[float(value) if value else None for value in row.split(",")] for row in rows]
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path)))
    figures.training_curves([dict(zip(LOG_COLUMNS, row)) for row in log], tmp_path / "curves.png")
    assert_png(tmp_path / "curves.png")
    drawn[0].draw_without_rendering()
    legends = [axes for axes in drawn[0].axes if axes.get_legend()]
    assert legends
    for axes in legends:
        assert_below(axes)


@pytest.mark.parametrize(("modes", "smoothing"), [(1, "many"), (8, {90: np.array([0.05])}), (8, "many")])
def test_shape_model_plots(tmp_path, modes, smoothing):
    rng = np.random.default_rng(0)
    mean = (mean_face()[:, :2] / 3).reshape(-1)
    vectors = np.linalg.qr(rng.normal(size=(136, modes)))[0]
    values = 0.01 / np.arange(1, modes + 1) ** 2
    model = ShapeModel(mean, vectors, values, "300w", 200, 100.0, "square", 1.2)
    if smoothing == "many":
        smoothing = {percent: rng.gamma(3, 1 / percent, 200) for percent in (80, 90.5, 97)}
    figures.shape_model_plots(tmp_path, model, smoothing, SPEC)
    names = ["300w_modes.png", "300w_smoothing.png", "300w_variance.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert_png(tmp_path / name)


def test_variance_marks_count_components():
    figure = figures._variance_figure(np.array([0.6, 0.3, 0.1]), [60, 61, 90, 100])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["60 %: 1 component", "61 %: 2 components", "90 %: 2 components", "100 %: 3 components"]
