"""Prediction files as other methods' authors write them: what is used, said, brought to our convention."""

import numpy as np
import pytest

from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.pose import estimate_pose, mean_face
from asmnet_tf.evaluation import report
from asmnet_tf.evaluation.predictions import read_predictions
from asmnet_tf.evaluation.records import Faces, Method
from asmnet_tf.evaluation.truth import find_truth, methods_of_files, protocol, read_files
from asmnet_tf.files import InputError

SPEC = DATASETS["300w"]
COUNT = 12
ROLLS = np.radians(np.linspace(-40, 40, COUNT))


def make_faces() -> Faces:
    rng = np.random.default_rng(0)
    turns = np.array([[[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]] for a in ROLLS])
    landmarks = mean_face()[:, :2] * 100 @ turns + 150 + rng.normal(0, 0.5, (COUNT, 68, 2))
    names = [f"lfpw/testset/image_{i:04d}" for i in range(COUNT)]
    return Faces(SPEC, names, landmarks, estimate_pose(landmarks, SPEC))


def theirs(tmp_path, faces: Faces, **changes):
    """Reads back a perfect prediction file with these changes."""
    arrays = {"names": np.array([f"images/{n.split('/')[-1]}.png" for n in faces.names]), "landmarks": faces.landmarks}
    np.savez(tmp_path / "theirs.npz", **(arrays | changes))
    return read_predictions(tmp_path / "theirs.npz")


def scored(faces: Faces, file) -> tuple[Method, dict]:
    (method,) = methods_of_files({"theirs": file}, faces, [])
    return method, report.score(report.measure([method], faces), faces, (0.08,))["theirs"]["all"]


@pytest.mark.parametrize("valid", [np.arange(COUNT) > 2, (np.arange(COUNT) > 2).astype(float)[:, None]])
def test_faces_that_are_not_valid_have_no_prediction(tmp_path, capsys, valid):
    faces = make_faces()
    landmarks = faces.landmarks.copy()
    landmarks[:3] = 0  # what was written for them does not matter
    file = theirs(tmp_path, faces, landmarks=landmarks, pose=faces.pose, valid=valid)
    _, numbers = scored(faces, file)
    assert (numbers["n"], numbers["n_scored"], numbers["pose_n_scored"]) == (COUNT, COUNT - 3, COUNT - 3)
    assert (numbers["nme_pct"], numbers["fr_pct@0.08"]) == (0, 100 * 3 / COUNT)
    assert f"3 of {COUNT} faces are not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("mask", np.zeros((COUNT, 68), bool)),
        ("valid", np.ones((COUNT, 68), bool)),
        ("valid", np.full(COUNT, 0.5)),
        ("scores", np.ones(COUNT)),
        ("image_size", np.ones((COUNT, 4))),
    ],
)
def test_arrays_that_are_not_used_are_named(tmp_path, capsys, key, array):
    faces = make_faces()
    assert scored(faces, theirs(tmp_path, faces, **{key: array}))[1]["n_scored"] == COUNT
    assert capsys.readouterr().err == f"{tmp_path / 'theirs.npz'}: not used: '{key}' {array.shape}\n"


def test_a_pose_of_the_other_sign_is_recognised_against_any_truth(tmp_path, capsys):
    """Of the prediction against a dataset's pose; of the file's own truth against PnP; both are in the protocol."""
    faces = make_faces()
    other = faces.pose * [1, 1, -1]
    method, numbers = scored(faces, theirs(tmp_path, faces, pose=other))
    assert numbers["pose_mae_deg"]["roll"] == pytest.approx(0, abs=1e-6)
    assert "theirs.npz, pose: roll " in capsys.readouterr().err

    own = theirs(tmp_path, faces, pose=other, landmarks_gt=faces.landmarks, pose_gt=other)
    samples, truth = find_truth({"theirs": own}, spec=None, data_dir=None)
    assert np.allclose(truth.pose, faces.pose)
    assert "theirs.npz, pose_gt: roll " in capsys.readouterr().err
    methods = [scored(truth, own)[0], method]
    numbers = report.score(report.measure(methods[:1], truth), truth, ())["theirs"]["all"]
    assert numbers["pose_mae_deg"]["roll"] == pytest.approx(0, abs=1e-6)
    told = protocol("test", samples, truth, methods)
    assert told["pose_labels"] == "pose_gt of the first prediction file; negated: roll"
    assert told["pose_negated"] == "roll of theirs; roll of theirs"


def test_predictions_of_another_frame_or_order_are_doubted(tmp_path, capsys):
    faces = make_faces()
    for landmarks in (faces.landmarks * 2.5, faces.landmarks / 2.5, faces.landmarks[:, SPEC.flip_map]):
        scored(faces, theirs(tmp_path, faces, landmarks=landmarks))
        assert "over 50 % on most faces" in capsys.readouterr().err
    landmarks = faces.landmarks + 8
    landmarks[:4] += 1000  # some faces lost: a weak method
    scored(faces, theirs(tmp_path, faces, landmarks=landmarks, landmarks_gt=faces.landmarks + 0.6))
    assert capsys.readouterr().err == ""


def test_a_file_where_predictions_are_saved_is_not_replaced(tmp_path, monkeypatch):
    theirs(tmp_path, make_faces())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="save-predictions writes there and might replace it"):
        read_files(["theirs=./theirs.npz"], tmp_path)
    assert list(read_files(["theirs=theirs.npz"], tmp_path / "evaluation")) == ["theirs"]
