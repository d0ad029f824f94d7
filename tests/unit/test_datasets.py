"""The readers, on files written by hand in the official formats."""

import re
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from asmnet_tf import datasets
from asmnet_tf.config import DATASETS
from asmnet_tf.files import InputError

SPEC = DATASETS["300w"]
WFLW = DATASETS["wflw"]
POINTS = np.stack([np.arange(68) * 2.0 + 10.25, 100.0 - np.arange(68) / 2], axis=1)  # 1-based, as in a file


def write_face(folder, stem, points=POINTS, header=True, ending=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"{x:.6f} {y:.6f}" for x, y in points)
    text = f"version: 1\nn_points:  {len(points)}\n{{\n{rows}\n}}\n" if header else rows + "\n"
    (folder / f"{stem}.pts").write_text(text)
    cv2.imwrite(str(folder / f"{stem}{ending}"), np.full((120, 160, 3), 90, np.uint8))


@pytest.mark.parametrize("header", [True, False])
def test_pts_with_and_without_header_are_one_based(tmp_path, header):
    write_face(tmp_path, "a", header=header)
    assert datasets.read_pts(tmp_path / "a.pts", 68) == pytest.approx(POINTS - 1)


PLAIN_PTS = "version: 1\nn_points:  68\n{\n" + "".join(f"{x} {y:.1f}\n" for x, y in POINTS) + "}\n"
ROWS = PLAIN_PTS.split("{\n")[1]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN_PTS.encode("utf-8-sig"),
        PLAIN_PTS.encode("utf-16"),
        PLAIN_PTS.encode("utf-16-be"),
        PLAIN_PTS.replace("\n", "\r").encode(),
        PLAIN_PTS.replace("\n", "\r\n").encode(),
        PLAIN_PTS.replace("\n", "\n\n").upper().encode(),
        ROWS.replace(" ", "\t").encode(),
        ROWS.replace(" ", "\xa0").encode("cp1252"),
        *(PLAIN_PTS.replace("5 ", f"5{between}").encode() for between in (",", ", ", ";", " , ", " ; ")),
        *(ROWS.replace(".", ",").replace(" ", between).encode() for between in (" ", ";", "\t", "; ", ", ")),
    ],
)
def test_pts_as_programs_write_them(tmp_path, content):
    (tmp_path / "a.pts").write_bytes(content)
    assert datasets.read_pts(tmp_path / "a.pts", 68) == pytest.approx(POINTS - 1, abs=0.06)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("12,5,30,1\n", r"b\.pts, line 1: .*commas as decimal point"),
        ("12,5 30.1\n", r"b\.pts, line 1: .*a comma as decimal point in one number, a point in another"),
        (PLAIN_PTS.replace("68", "70"), r"b\.pts: n_points says 70, but there are 68"),
        ("1 2\n3 4\n", r"b\.pts: 2 points, 68 expected"),
        ("1 2\nx 4\n", r"b\.pts, line 2: 'x 4', expected two numbers"),
        ("1 nan\n", r"b\.pts, line 1: '1 nan', expected two numbers"),
        ("1 2 3\n", r"b\.pts, line 1: '1 2 3', expected two numbers"),
        ("", r"b\.pts: 0 points, 68 expected"),
        ("\0\1\2", r"b\.pts: not a text file"),
    ],
)
def test_bad_pts_is_named(tmp_path, content, message):
    (tmp_path / "b.pts").write_text(content)
    with pytest.raises(InputError, match=message):
        datasets.read_pts(tmp_path / "b.pts", 68)


def test_300w_order_names_tags_and_the_line_on_what_is_missing(tmp_path, capsys):
    write_face(tmp_path / "lfpw/trainset", "image_0002", ending=".png")
    write_face(tmp_path / "lfpw/trainset", "image_0001", ending=".jpeg")
    write_face(tmp_path / "helen/trainset", "9_1")
    write_face(tmp_path / "afw", "10_1", header=False, ending=".JPG")
    samples = datasets.read_samples(SPEC, tmp_path, "train")
    names = ["helen/trainset/9_1", "lfpw/trainset/image_0001", "lfpw/trainset/image_0002", "afw/10_1"]
    assert [s.name for s in samples] == names
    assert [sorted(s.tags) for s in samples] == [["helen"], ["lfpw"], ["lfpw"], ["afw"]]
    assert samples[0].landmarks.dtype == np.float32
    assert samples[0].bbox == pytest.approx([9.25, 65.5, 143.25, 99.0])
    assert capsys.readouterr().err == "300W train: 4 of 3148 faces (HELEN 1/2000, LFPW 2/811, AFW 1/337)\n"
    assert [s.name for s in datasets.read_samples(SPEC, tmp_path, "train", limit=2)] == names[:2]
    assert capsys.readouterr().err == ""


def test_the_endings_of_files(tmp_path, capsys):
    for k, ending in enumerate((".bmp", ".JPG", ".webp", ".TIFF", ".PNG", ".jpeg")):
        write_face(tmp_path / "afw", f"{k}", ending=ending)
    (tmp_path / "afw/0.pts").rename(tmp_path / "afw/0.PTS")
    samples = datasets.read_samples(SPEC, tmp_path, "train", quiet=True)
    assert [s.name for s in samples] == [f"afw/{k}" for k in range(6)]
    assert all(s.read_image().shape == (120, 160, 3) for s in samples)
    assert capsys.readouterr().err == ""


def test_a_face_of_two_files_counts_once(tmp_path, capsys):
    write_face(tmp_path / "afw", "a")
    write_face(tmp_path / "afw", "b")
    (tmp_path / "afw/a.PTS").write_text("another program's")
    shutil.copy(tmp_path / "afw/b.jpg", tmp_path / "afw/b.png")
    samples = datasets.read_samples(SPEC, tmp_path, "train", quiet=True)
    assert [(s.name, s.image_path.name) for s in samples] == [("afw/a", "a.jpg"), ("afw/b", "b.jpg")]
    assert capsys.readouterr().err == f"{tmp_path / 'afw'}: 2 more files of the same faces (a.PTS), left out\n"


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_with_exif_orientation_is_upright_for_its_points(tmp_path, capsys, orientation):
    write_face(tmp_path / "afw", "a")
    write_face(tmp_path / "afw", "b", points=POINTS + np.array([0, 100]))  # in the upright image of 200 rows alone
    upright = np.zeros((200, 160, 3), np.uint8)
    upright[:100] = 200
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "afw/b.jpg", exif=exif, quality=100)
    a, b = datasets.read_samples(SPEC, tmp_path, "train")
    assert np.abs(b.read_image().astype(int) - upright).mean() < 2
    assert a.read_image().shape == (120, 160, 3)
    said = [line for line in capsys.readouterr().err.splitlines() if "EXIF" in line]
    assert said == [] if orientation == 1 else len(said) == 1 and "b.jpg" in said[0] and "1 of 2 faces" in said[0]


@pytest.mark.parametrize(
    "move", [lambda p: p + 1000, lambda p: p - [0, 90], lambda p: p * 3, lambda p: p[:, ::-1] + 100]
)
def test_a_face_outside_its_image_is_a_bad_sample(tmp_path, move):
    write_face(tmp_path / "afw", "a")
    write_face(tmp_path / "afw", "b", points=move(POINTS))
    with pytest.raises(InputError, match=r"b\.jpg: \d+ of 68 landmarks of afw/b .* 160 x 120 .*another size"):
        datasets.read_samples(SPEC, tmp_path, "train", quiet=True)
    for images in (True, False):
        bad = datasets.BadSamples(skip=True, images=images)
        assert [s.name for s in datasets.read_samples(SPEC, tmp_path, "train", quiet=True, bad=bad)] == ["afw/a"]
        assert list(bad.reasons) == ["afw/b"]


def test_points_outside_the_image_are_kept(tmp_path):
    write_face(tmp_path / "ibug", "far out", points=POINTS - 60.0)
    sample = datasets.read_samples(SPEC, tmp_path, "test")[0]
    assert sample.landmarks == pytest.approx(POINTS - 61.0, abs=1e-4)


def test_test_subsets_of_300w(tmp_path):
    for folder in ("helen/testset", "lfpw/testset", "ibug"):
        write_face(tmp_path / folder, "a")
    samples = datasets.read_samples(SPEC, tmp_path, "test")
    found = {name: datasets.select(samples, SPEC, name).tolist() for name in SPEC.subsets}
    assert found == {
        "full": [True, True, True],
        "common": [True, True, False],
        "challenging": [False, False, True],
        "helen": [True, False, False],
        "lfpw": [False, True, False],
        "ibug": [False, False, True],
        "afw": [False, False, False],
    }
    with pytest.raises(InputError, match=r"subset 'private': 300W has full"):
        datasets.select(samples, SPEC, "private")


def test_a_pts_without_image_is_left_out_and_said(tmp_path, capsys):
    write_face(tmp_path / "afw", "a")
    write_face(tmp_path / "afw", "b")
    (tmp_path / "afw/b.jpg").unlink()
    assert [s.name for s in datasets.read_samples(SPEC, tmp_path, "train", quiet=True)] == ["afw/a"]
    assert "1 .pts without an image (b.pts), left out" in capsys.readouterr().err


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        datasets.read_samples(SPEC, tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="no 300W train face in it"):
        datasets.read_samples(SPEC, tmp_path, "train")


def wflw_line(image="0--Parade/a.jpg", flags="0 1 0 0 0 1", shift=0.0):
    points = " ".join(f"{10 + shift + i / 3:.6f}" for i in range(196))
    return f"{points} 8 9 80 90 {flags} {image}"


def write_wflw(folder, lines, split="test"):
    path = folder / DATASETS["wflw"].splits[split][0].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    (folder / "WFLW_images/0--Parade").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "WFLW_images/0--Parade/a.jpg"), np.zeros((90, 90, 3), np.uint8))
    return path


def test_wflw_list_columns_flags_and_names(tmp_path):
    write_wflw(tmp_path, [wflw_line(), wflw_line(flags="1 0 1 1 1 0", shift=5)])
    samples = datasets.read_samples(WFLW, tmp_path, "test", quiet=True)
    assert [s.name for s in samples] == ["0--Parade/a#0", "0--Parade/a#1"]
    assert samples[0].tags == {"test", "expression", "blur"}
    assert samples[1].tags == {"test", "largepose", "illumination", "makeup", "occlusion"}
    assert samples[0].landmarks[0] == pytest.approx([10.0, 10 + 1 / 3], abs=1e-5)  # 0-based as it stands
    assert samples[1].landmarks[-1] == pytest.approx([15 + 194 / 3, 15 + 195 / 3], abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("/", "\\").encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r").replace(" ", "\t").encode(),
        lambda text: re.sub(r"(\d)\.(\d)", r"\1,\2", text).replace(" 0--", " ./0--").encode(),
        lambda text: text.replace(" ", ",").encode(),
        lambda text: text.replace(" ", "; ").replace("0--", ".\\0--").encode(),
    ],
)
def test_wflw_lists_as_programs_write_them(tmp_path, change):
    path = write_wflw(tmp_path, [wflw_line(), wflw_line(shift=5)])
    expected = datasets.read_samples(WFLW, tmp_path, "test", quiet=True)
    path.write_bytes(change(path.read_text()))
    samples = datasets.read_samples(WFLW, tmp_path, "test", quiet=True)
    assert [(s.name, s.image_path, s.tags) for s in samples] == [(s.name, s.image_path, s.tags) for s in expected]
    assert all(np.array_equal(s.landmarks, e.landmarks) for s, e in zip(samples, expected))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (wflw_line(shift=900), r"a\.jpg: 0 of 98 landmarks of 0--Parade/a#1 lie in its 90 x 90 pixels"),
        (wflw_line(image="..\\..\\secret.jpg"), "line 2: image name '../../secret.jpg' leaves the data folder"),
        (wflw_line().replace(".", ",", 3), "line 2: .*a comma as decimal point in one number, a point in another"),
        (wflw_line().split(" ", 1)[1], "line 2: 206 columns, 207 expected"),
        (wflw_line().replace("10.333333", "ten", 1), "line 2: a column that is not a number"),
        (wflw_line(image="../../secret.jpg"), "line 2: image name '../../secret.jpg' leaves the data folder"),
        (wflw_line(image="/etc/passwd"), "leaves the data folder"),
    ],
)
def test_bad_wflw_line_is_named(tmp_path, line, message):
    write_wflw(tmp_path, [wflw_line(), line])
    with pytest.raises(InputError, match=message):
        datasets.read_samples(WFLW, tmp_path, "test")


def test_bad_wflw_lines_are_skipped_and_the_names_of_the_others_stay(tmp_path):
    not_a_number = wflw_line().replace("10.333333", "ten", 1)
    path = write_wflw(tmp_path, [wflw_line(), not_a_number, "1 2 3", wflw_line(image="../a.jpg"), wflw_line(shift=5)])
    bad = datasets.BadSamples(skip=True)
    samples = datasets.read_samples(WFLW, tmp_path, "test", quiet=True, bad=bad)
    assert [s.name for s in samples] == ["0--Parade/a#0", "0--Parade/a#2"]
    assert list(bad.reasons) == [f"{path.name}, line {number}" for number in (2, 3, 4)]


def test_cofw_file(tmp_path):
    """A MATLAB v7.3 file as COFW's: column-major, images behind references, 29 x, 29 y, 29 occlusion flags."""
    spec = DATASETS["cofw"]
    image = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    with h5py.File(tmp_path / "COFW_test_color.mat", "w") as file:
        table = np.zeros((87, 2))
        table[:29, 0], table[29:58, 0], table[60, 0] = np.arange(29) + 1, np.arange(29) + 5, 1
        table[:58, 1] = 1 + np.arange(58) / 2
        file["phisT"] = table
        colour = file.create_dataset("#refs#/a", data=image.transpose(2, 1, 0))
        grey = file.create_dataset("#refs#/b", data=image[..., 0].T)
        cells = file.create_dataset("IsT", (1, 2), dtype=h5py.ref_dtype)
        cells[0, 0], cells[0, 1] = colour.ref, grey.ref
    samples = datasets.read_samples(spec, tmp_path, "test", quiet=True)
    assert [s.name for s in samples] == ["test/0000", "test/0001"]
    assert samples[0].landmarks[3] == pytest.approx([3.0, 7.0])
    assert samples[0].tags == {"test", "occlusion"}
    assert samples[1].tags == {"test"}
    assert np.array_equal(samples[0].read_image(), image)
    assert np.array_equal(samples[1].read_image(), np.repeat(image[..., :1], 3, axis=-1))
    assert [sample.image_size() for sample in samples] == [(30, 40, False)] * 2
    with h5py.File(tmp_path / "COFW_test_color.mat", "r+") as file:
        file["phisT"][:29, 1] += 30
    with pytest.raises(InputError, match=r"mat: 0 of 29 landmarks of test/0001 lie in its 30 x 40 pixels"):
        datasets.read_samples(spec, tmp_path, "test", quiet=True)


def faces_named(*names):
    return [datasets.Sample(name, Path("a.jpg"), np.zeros((1, 2)), np.zeros(4), frozenset()) for name in names]


@pytest.mark.parametrize(
    ("name", "photograph"),
    [
        ("helen/trainset/100032540_1", "helen/trainset/100032540"),
        ("afw/111076519_12", "afw/111076519"),
        ("mine/party_2", "mine/party"),
        ("lfpw/trainset/image_0001", "lfpw/trainset/image_0001"),  # these number photographs
        ("mine/photo_10", "mine/photo_10"),
        ("37--Soccer/37_Soccer_ball_37_45#12", "37--Soccer/37_Soccer_ball_37_45"),
        ("train/0007", "train/0007"),
    ],
)
def test_photograph_of_a_face(name, photograph):
    assert datasets.photograph(name) == photograph


def test_hold_out_keeps_photographs_whole_and_needs_no_other_face():
    names = [
        f"{source}/{k}_{face}" for source in ("helen/trainset", "afw") for k in range(1000, 2000) for face in (1, 2)
    ]
    samples = faces_named(*names)
    train, held = datasets.hold_out(samples, 0.1)
    assert {s.name for s in train} | {s.name for s in held} == set(names)
    assert len(train) + len(held) == len(names)
    assert not {datasets.photograph(s.name) for s in train} & {datasets.photograph(s.name) for s in held}
    for source in ("helen", "afw"):  # in expectation: 200 of 2,000, standard deviation 19
        assert 140 < sum(s.name.startswith(source) for s in held) < 260
    fewer = [s for s in samples if int(s.name[-3]) % 3]
    assert datasets.hold_out(fewer, 0.1)[1] == [s for s in held if s in fewer]
    assert [s.name for s in datasets.hold_out(samples[::-1], 0.1)[1]] == [s.name for s in held][::-1]
    assert datasets.hold_out(samples, 0.0) == (samples, [])


def test_of_few_photographs_the_one_with_the_smallest_hash_is_held_out():
    train, held = datasets.hold_out(faces_named("a/11_1", "a/11_2", "a/12_1"), 1e-9)
    assert [s.name for s in held] in (["a/11_1", "a/11_2"], ["a/12_1"])
    assert len(train) == 3 - len(held)
    train, held = datasets.hold_out(faces_named("a/11_1", "a/11_2", "a/11_3"), 1e-9)  # all of one: each by itself
    assert (len(train), len(held)) == (2, 1)
    assert datasets.hold_out([], 0.1) == ([], [])


def test_names_match_whole_with_ending_or_by_their_unique_last_part():
    wanted = ["lfpw/testset/image_0001", "helen/testset/7_1", "ibug/7_1"]
    assert datasets.match_names(wanted, ["ibug/7_1.jpg", "image_0001", "helen/testset/7_1"]) == [1, 2, 0]
    assert datasets.match_names(wanted[:1], ["helen/testset/image_0001"]) == [None]  # another folder's face
    assert datasets.match_names(wanted[1:], ["7_1"]) == [None, None]  # two faces of that name


@pytest.mark.parametrize(
    ("wanted", "given", "rows"),
    [
        # other folders, endings, separators
        ("lfpw/testset/x", "images/test/x.JPG", [0]),
        ("lfpw/testset/x", "./images/x.pts", [0]),
        ("lfpw/testset/x ibug/x", r"D:\300w\ibug\x.jpg D:\300w\lfpw\testset\x.png", [1, 0]),
        ("helen/testset/x ibug/x", "/home/helen/ibug/x.png /home/helen/helen/testset/x.jpg", [1, 0]),
        ("lfpw/testset/x", "lfpw/x.png", [0]),
        ("helen/testset/x ibug/x", "testset/x ibug/x", [0, 1]),
        ("0--Parade/x#0 0--Parade/x#1", "test/x.jpg#1 test/x.jpg#0", [1, 0]),
        ("a b", "images/b.png images/a.png", [1, 0]),
        # another folder of the dataset: another face
        ("lfpw/testset/x", "helen/trainset/x", [None]),
        ("lfpw/testset/x", "lfpw/trainset/x.jpg", [None]),
        ("lfpw/testset/x", "data/300W/HELEN/x.jpg", [None]),
        ("ibug/x", "afw/x", [None]),
        ("test/0001", "train/0001", [None]),
        ("lfpw/testset/x", "helen/trainset/x images/x", [1]),
        # more than one would do, on either side
        ("lfpw/testset/x", "images/x.jpg more/x.jpg", [None]),
        ("lfpw/testset/x", "lfpw/x.jpg lfpw/x.png", [None]),
        ("helen/testset/x ibug/x", "images/x.jpg", [None, None]),
        ("lfpw/testset/x", "lfpw/testset/x images/x", [0]),
    ],
)
def test_names_of_other_folders(wanted, given, rows):
    assert datasets.match_names(wanted.split(), given.split()) == rows


def test_flip_maps_are_involutions_that_mirror_the_contours():
    for spec in DATASETS.values():
        flip = np.array(spec.flip_map)
        assert np.array_equal(flip[flip], np.arange(spec.num_landmarks))
        assert tuple(flip[list(spec.outer_eye_corners)]) == spec.outer_eye_corners[::-1]
        contours = {frozenset(points) for points, _ in spec.contours}
        assert {frozenset(flip[list(points)].tolist()) for points in contours} == contours
        rigid = dict(spec.rigid_points)
        face = np.array(DATASETS["300w"].flip_map)
        assert all(rigid[int(flip[i])] == face[j] for i, j in rigid.items() if int(flip[i]) in rigid)


def test_official_counts():
    assert sum(s.expected for s in SPEC.splits["train"]) == 3148
    assert SPEC.subset_counts | {"full": 689, "common": 554, "challenging": 135} == SPEC.subset_counts
    assert list(WFLW.subset_counts.values()) == [2500, 326, 314, 698, 206, 736, 773]
