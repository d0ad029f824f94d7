"""The pose convention and PnP, against hand-made rotations and two published annotations."""

import csv

import numpy as np
import pytest

from asmnet_tf.data import pose
from asmnet_tf.data.annotations import read_pts, read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.files import InputError

SPEC = DATASETS["300w"]


def project(angles_deg):
    """The mean face in image pixels, seen by the camera of pose.py: focal 2.4 x the side of the upright box."""
    turned, shift = pose.mean_face() @ pose.angles_to_matrix(np.asarray(angles_deg, float)).T, np.array([0, 0, 5.0])
    for _ in range(50):  # the box depends on where the head is
        points = turned + shift
        rays = points[:, :2] / points[:, 2:]
        tilt, upright = pose.turn_upright(rays, SPEC)
        low, high = upright.min(axis=0), upright.max(axis=0)
        c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
        shift[:2] -= ((low + high) / 2 @ np.array([[c, s], [-s, c]]) + rays.mean(axis=0)) * shift[2]
        shift[2] *= (high - low).max() * pose.FOCAL
    return rays * 400 + 200


def test_angles_and_matrices_are_inverse():
    angles = np.random.default_rng(0).uniform(-85, 85, (100, 3))
    matrices = pose.angles_to_matrix(angles)
    assert pose.matrix_to_angles(matrices) == pytest.approx(angles)
    assert matrices @ np.swapaxes(matrices, 1, 2) == pytest.approx(np.broadcast_to(np.eye(3), (100, 3, 3)))
    assert np.linalg.det(matrices) == pytest.approx(1.0)


def test_signs_are_those_of_the_convention():
    nose = pose.mean_face()[30]
    brow, chin = pose.mean_face()[27], pose.mean_face()[8]
    assert (pose.angles_to_matrix(np.array([30.0, 0, 0])) @ nose)[0] < -0.1  # towards the left edge
    assert (pose.angles_to_matrix(np.array([0, 30.0, 0])) @ nose)[1] < nose[1] - 0.1  # up (y points down)
    tilted = pose.angles_to_matrix(np.array([0, 0, 30.0])) @ (brow - chin)
    assert tilted[0] > 0.3  # the top of the head moves to the right: clockwise


def test_mean_face_is_symmetric_and_in_its_units():
    face = pose.mean_face()
    assert face[SPEC.flip_map] * [-1, 1, 1] == pytest.approx(face, abs=2e-5)
    assert np.linalg.norm(face[45] - face[36]) == pytest.approx(1.0, abs=1e-4)
    assert face[[36, 48], 2] == pytest.approx(face[36, 2], abs=2e-4)  # pitch zero


@pytest.mark.parametrize("angles", [(0, 0, 0), (40, 10, -20), (-55, -25, 30), (5, 30, -90)])
def test_pnp_finds_the_pose_of_the_mean_face(angles):
    assert pose.estimate_pose(project(angles), SPEC) == pytest.approx(angles, abs=0.01)


def turned(landmarks, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return landmarks @ np.array([[c, s], [-s, c]]) + [30.0, -70.0]


@pytest.mark.parametrize("layout", ["300w", "wflw", "cofw"])
def test_turning_landmarks_adds_exactly_that_to_roll_and_a_mirror_negates_yaw_and_roll(layout):
    spec, rng = DATASETS[layout], np.random.default_rng(7)
    landmarks = rng.uniform(0, 300, (6, spec.num_landmarks, 2))  # the points that are not rigid only set the camera
    for face, angles in zip(landmarks, rng.uniform(-50, 50, (6, 3))):
        for ours, theirs in spec.rigid_points:
            face[ours] = project(angles)[theirs] + rng.normal(0, 3, 2)
    before = pose.estimate_pose(landmarks, spec)
    for degrees in (-170, -33.3, 1, 30, 90, 180, 251):
        change = pose.estimate_pose(turned(landmarks, degrees), spec) - before - [0, 0, degrees]
        change[:, 2] = (change[:, 2] + 180) % 360 - 180
        assert np.abs(change).max() < 1e-6
        assert np.abs(pose.estimate_pose(turned(landmarks, degrees), spec)[:, 2]).max() <= 180
    mirrored = (landmarks * [-1, 1])[:, spec.flip_map]
    if dict(spec.rigid_points).keys() == {spec.flip_map[i] for i, _ in spec.rigid_points}:
        assert pose.estimate_pose(mirrored, spec) == pytest.approx(before * [-1, 1, -1], abs=0.01)


def test_turning_real_faces_turns_their_labels(real_data):
    landmarks = np.stack([s.landmarks for s in read_samples(SPEC, real_data / "300w", "train", limit=60, quiet=True)])
    before = pose.estimate_pose(landmarks, SPEC)
    after = pose.estimate_pose(turned(landmarks.astype(float), 137.0), SPEC)
    assert np.abs(after - before - [0, 0, 137.0]).max() < 1e-6


def test_degenerate_landmarks_have_no_pose():
    faces = np.zeros((3, 68, 2))
    faces[1] = np.nan
    faces[2] = np.arange(68)[:, None] * [1.0, 0.3]  # on one line
    assert np.isnan(pose.estimate_pose(faces, SPEC)).all()
    with pytest.raises(ValueError, match="300w has"):
        pose.estimate_pose(np.zeros((1, 98, 2)), SPEC)


def test_98_points_give_the_pose_of_their_68_counterparts():
    wflw, seen = DATASETS["wflw"], project((30.0, 5.0, -10.0))
    landmarks = seen[np.arange(98) % 68]  # the other points only set the box, hence the camera
    for ours, theirs in wflw.rigid_points:
        landmarks[ours] = seen[theirs]
    assert pose.estimate_pose(landmarks, wflw) == pytest.approx(pose.estimate_pose(seen, SPEC), abs=1e-3)


def test_units():
    assert pose.angles_to_unit(np.array([65.0, -32.5, 90.0])) == pytest.approx([1.0, -0.5, 1.0])
    assert pose.unit_to_angles(np.array([1.0, -0.5])) == pytest.approx([65.0, -32.5])


def test_cache_is_filled_once_and_survives_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("ASMNET_CACHE", str(tmp_path / "cache"))
    landmarks = np.stack([project((10, 0, 0)), project((-20, 5, 0))]).astype(np.float32)
    first = pose.cached_pose(landmarks, SPEC)
    (file,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(pose, "estimate_pose", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(pose.cached_pose(landmarks, SPEC), first)
    monkeypatch.undo()
    monkeypatch.setenv("ASMNET_CACHE", str(tmp_path / "cache"))
    file.write_bytes(file.read_bytes()[:50])
    assert np.array_equal(pose.cached_pose(landmarks, SPEC), first)
    monkeypatch.setattr(pose, "LABELS_VERSION", 99)  # of another definition: not read
    monkeypatch.setattr(pose, "estimate_pose", lambda landmarks, _: np.zeros((len(landmarks), 3)))
    assert not pose.cached_pose(landmarks, SPEC).any()
    monkeypatch.undo()
    monkeypatch.setenv("ASMNET_CACHE", str(file / "below a file"))  # cannot be written: computed, no error
    assert np.array_equal(pose.cached_pose(landmarks, SPEC), first)


def test_pose_labels_from_csv_and_from_the_releases_npy_files(tmp_path):
    (tmp_path / "p.csv").write_text("name,yaw,pitch,roll\na,1,-2.5,3\nb,4,5,6\n")
    labels = pose.read_pose_labels(tmp_path / "p.csv")
    assert labels["a"] == pytest.approx([1, -2.5, 3])
    (tmp_path / "npy/x").mkdir(parents=True)
    np.save(tmp_path / "npy/x/a.npy", np.array([0.5, -1.0, 0.1]))
    assert pose.read_pose_labels(tmp_path / "npy")["x/a"] == pytest.approx([32.5, -65.0, 6.5])
    np.save(tmp_path / "npy/x/b.npy", np.array([20.0, 1.0, 0.1]))
    with pytest.raises(InputError, match=r"b\.npy: holds .*expected yaw, pitch, roll in \[-1, 1\]"):
        pose.read_pose_labels(tmp_path / "npy")
    (tmp_path / "bad.csv").write_text("name,yaw,pitch,roll\na,1,2,x\n")
    with pytest.raises(InputError, match=r"bad\.csv, line 2"):
        pose.read_pose_labels(tmp_path / "bad.csv")


PLAIN_CSV = "name,yaw,pitch,roll\nlfpw/é,1.5,-2.5,3\nb,4,5.25,180\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN_CSV.encode("utf-8-sig"),
        PLAIN_CSV.encode("utf-16"),
        PLAIN_CSV.encode("utf-16-le"),
        PLAIN_CSV.encode("cp1252"),
        PLAIN_CSV.replace("\n", "\r").encode(),
        PLAIN_CSV.replace("\n", "\r\n\r\n").encode(),
        PLAIN_CSV.replace(",", "\t").encode(),
        PLAIN_CSV.replace(",", " , ").encode(),
        PLAIN_CSV.replace(",", ";").replace(".", ",").encode(),
        PLAIN_CSV.replace("yaw", "Yaw").replace("name", '"Name"').encode(),
        b"id,Roll,PITCH,yaw,name\n7,3,-2.5,1.5,./lfpw\\\xc3\xa9\n8,180,5.25,4,b\n",
        PLAIN_CSV.replace("1.5", '"1,5"').replace("-2.5", '"-2,5"').replace("5.25", '"5,25"').encode(),
    ],
)
def test_pose_labels_as_programs_write_them(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    labels = pose.read_pose_labels(tmp_path / "p.csv")
    assert {name: values.tolist() for name, values in labels.items()} == {
        "lfpw/é": [1.5, -2.5, 3],
        "b": [4, 5.25, 180],
    }


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ("a,1000,2,3", "line 2: .*within \\+-180"),
        ("a,1,2,3\n\nb,1,2,3\n./a,1,2,3", "line 5: 'a' for the second time"),
        ("a,1,5,2,5,3,5", "line 2: 7 fields for 4 columns .*a comma as decimal point"),
        ("a,1,2", "line 2: 3 fields for 4 columns"),
        ('a,"1,000",2.5,3', "line 2: a comma as decimal point in one number, a point in another"),
        ('a,"1,5",2,3\nb,1.5,2,3', "line 3: a comma as decimal point in one number, a point in another"),
        ("a,1,2,inf", "line 2: .*not finite"),
    ],
)
def test_pose_labels_that_make_no_sense_are_refused_by_their_cause(tmp_path, rows, cause):
    (tmp_path / "p.csv").write_text(f"name,yaw,pitch,roll\n{rows}\n")
    with pytest.raises(InputError, match=rf"p\.csv, {cause}"):
        pose.read_pose_labels(tmp_path / "p.csv")


@pytest.mark.parametrize("count", [6, 50])
def test_angles_of_the_other_sign_are_recognised(count, capsys):
    rng = np.random.default_rng(3)
    ours = rng.normal(0, 15, (count, 3))
    theirs = ours * [-1, 1, -1] + rng.normal(0, 2, (count, 3)) + [0, 5, 0]
    theirs[0], ours[0] = np.nan, np.nan  # no prediction, no label
    fixed, negated = pose.align_signs(theirs, ours, "theirs.npz")
    assert negated == ["yaw", "roll"]
    assert np.array_equal(fixed, theirs * [-1, 1, -1], equal_nan=True)
    assert capsys.readouterr().err.startswith("theirs.npz: yaw, roll ")


@pytest.mark.parametrize("factor", [np.pi / 180, -np.pi / 180, 1 / 65])
def test_angles_in_other_units_are_refused(factor):
    rng = np.random.default_rng(3)
    ours = rng.normal(0, 15, (30, 3))
    with pytest.raises(InputError, match=r"theirs\.npz: yaw varies by .* degrees, not radians"):
        pose.align_signs(factor * (ours + rng.normal(0, 2, (30, 3))), ours, "theirs.npz")


def test_angles_are_not_negated_by_chance(capsys):
    """Noise, too few faces, angles that a method never gives or never changes: as they are."""
    rng = np.random.default_rng(4)
    for count in (5, 7, 10, 30, 200):
        for _ in range(20):
            assert pose.align_signs(rng.normal(0, 9, (count, 3)), rng.normal(0, 9, (count, 3)), "x")[1] == []
    ours = rng.normal(0, 15, (4, 3))
    assert pose.align_signs(-ours, ours, "x")[1] == []
    ours = rng.normal(0, 15, (20, 3))
    assert pose.align_signs(ours * [0, np.nan, -1], ours, "x")[1] == ["roll"]
    assert capsys.readouterr().err.count("\n") == 1


def test_agrees_with_a_published_annotation_of_real_faces(real_data):
    """SPIGA's annotation of 224 LFPW test faces, after one constant per angle (checked here only, nothing is tuned)."""
    with open(real_data / "300w_lfpw_test_pose.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    theirs = np.array([[float(row[a]) for a in ("yaw", "pitch", "roll")] for row in rows])
    landmarks = np.stack([read_pts(real_data / f"300w/lfpw/testset/{row['name']}.pts", 68) for row in rows])
    ours = pose.estimate_pose(landmarks, SPEC)
    theirs, negated = pose.align_signs(theirs, ours, "SPIGA")
    constant = np.median(ours - theirs, axis=0)
    differences = np.abs(ours - theirs - constant).mean(axis=0)
    print("constants", constant.round(2), "mean absolute differences", differences.round(2), "deg")
    assert negated == ["yaw"]
    assert np.abs(constant).max() < 5
    assert differences.mean() < 1.5


def test_agrees_with_aflw2000_in_sign_and_size(real_data):
    """8 faces of AFLW2000-3D, up to 70 degrees of yaw, 300W-LP's own decomposition (roll innermost)."""
    io = pytest.importorskip("scipy.io")
    ours, theirs = [], []
    for path in sorted((real_data / "aflw2000").glob("*.mat")):
        content = io.loadmat(path)
        rotation = pose.angles_to_matrix(pose.estimate_pose(content["pt3d_68"][:2].T, SPEC))
        yaw = np.arcsin(rotation[0, 2])
        pitch, roll = np.arctan2(rotation[1, 2], rotation[2, 2]), np.arctan2(-rotation[0, 1], rotation[0, 0])
        ours.append(np.degrees([-yaw, pitch, roll]) * [-1, 1, 1])
        theirs.append(np.degrees(content["Pose_Para"][0, [1, 0, 2]]))
    difference = np.array(ours) - np.array(theirs)
    difference -= np.median(difference, axis=0)
    print("mean absolute differences", np.abs(difference).mean(axis=0).round(1), "deg")
    assert np.abs(difference).mean() < 7.0
    assert np.corrcoef(np.array(ours)[:, 0], np.array(theirs)[:, 0])[0, 1] > 0.98


@pytest.mark.slow
def test_shipped_mean_face_is_what_the_training_faces_give(real_data):
    from tools.fit_mean_face import fit_mean_face

    samples = read_samples(SPEC, real_data / "300w", "train", quiet=True)
    fitted = fit_mean_face(np.stack([sample.landmarks for sample in samples]))
    assert np.abs(fitted - pose.mean_face()).max() < 0.01
