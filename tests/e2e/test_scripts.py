"""The three scripts in sequence, as a user runs them, on tiny folders in the real layouts."""

import csv
import json
import math
import shutil
import subprocess
import zipfile

import h5py
import numpy as np
import pytest
from conftest import COUNTS_300W, COUNTS_WFLW, REPO

from asmnet_tf.data.annotations import hold_out, pts_text, read_pts, read_samples
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.predictions import read_predictions

LOG_COLUMNS = [
    *("epoch", "loss", "loss_landmarks", "loss_asm", "loss_pose", "alpha", "lr", "images_per_s", "seconds"),
    *("val_nme_pct", "val_yaw_deg", "val_pitch_deg", "val_roll_deg"),
]
METRICS = [
    *("n", "n_scored", "nme_pct", "nme_interpupil_pct", "fr_pct@0.08", "auc_pct@0.08", "fr_pct@0.10", "auc_pct@0.10"),
    *("pose_mae_deg", "pose_n_scored", "pose_pnp_mae_deg", "pose_pnp_n_scored"),
]
HELEN, LFPW, IBUG = (COUNTS_300W[name] for name in ("helen/testset", "lfpw/testset", "ibug"))
SUBSETS_300W = {
    "full": HELEN + LFPW + IBUG,
    "common": HELEN + LFPW,
    "challenging": IBUG,
    "helen": HELEN,
    "lfpw": LFPW,
    "ibug": IBUG,
}
RUN_FILES = [
    *("args.json", "best.json", "best.keras", "curves.png", "last.json", "last.keras", "log.csv", "state.npz"),
    "tensorboard",
]
REPORT_FILES = [
    *("metrics.json", "summary.md", "per_image.csv", "ced.csv", "ced.png", "failure_rate.csv", "failure_rate.png"),
    *("landmark_errors.csv", "landmark_errors.png", "report.html"),
]


def parse_json(text: str):
    def refuse(name: str):
        raise AssertionError(f"{name} in JSON")

    return json.loads(text, parse_constant=refuse)


def scores_of(done: subprocess.CompletedProcess) -> dict:
    """The last line on stdout."""
    return parse_json(done.stdout.splitlines()[-1])


def read_log(folder) -> list[dict]:
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def saved_weights(path) -> dict[str, np.ndarray]:
    """All arrays of a .keras file, without TensorFlow."""
    arrays = {}
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as stored,
        h5py.File(stored, "r") as file,
    ):
        file.visititems(lambda name, entry: arrays.update({name: entry[()]} if isinstance(entry, h5py.Dataset) else {}))
    return arrays


def differences(ours: dict, theirs: dict) -> list[str]:
    """Where two scores of one method differ by more than the rounding of what is printed."""
    found = []
    for key in ours.keys() | theirs.keys():
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{inner}" for inner in differences(a, b)]
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, abs_tol=2e-5)):
            found.append(f"{key}: {a} {b}")
    return found


@pytest.fixture(scope="module")
def evaluation(run_script, run_300w, faces_300w, tmp_path_factory):
    """(scores, output folder) of evaluate.py on the trained model, all subsets."""
    output = tmp_path_factory.mktemp("evaluation") / "out"
    done = run_script(
        *("evaluate.py", run_300w.folder / "best.keras", "--dataset", "300w", "--data-dir", faces_300w),
        *("--save-predictions", "--output", output),
    )
    return scores_of(done), output


# --- before anything runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["pca_builder.py", "train.py", "evaluate.py"])
def test_help_imports_nothing_heavy(run_python, script):
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); script = sys.argv[2]; sys.argv = [script, '--help']\n"
        "try: runpy.run_path(script, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'numpy', 'cv2', 'tensorflow', 'keras', 'matplotlib', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python("-c", code, REPO, REPO / script)
    assert f"python {script}" in done.stdout  # the docstring's commands
    assert "--data-dir" in done.stdout


def test_a_program_computes_in_its_own_way_and_says_so_in_one_line(run_python, monkeypatch, tmp_path):
    """Whatever Keras is set to; without a GPU nothing else comes to stderr."""
    (tmp_path / "keras.json").write_text(
        '{"backend": "torch", "floatx": "float16", "image_data_format": "channels_first"}'
    )
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    model = ["--model", "asmnet_tf/pretrained/asmnet_300w.keras"]  # without it no Keras is there
    done = run_python("-m", "asmnet_tf.predict", "--no-draw", "--output", tmp_path / "out", *model, cwd=REPO)
    assert "1 face" in done.stdout
    (line,) = done.stderr.splitlines()
    assert [word for word in ("jax", "float16", "channels_first", "float32") if word not in line] == []


LIBRARY = """
import os, sys; sys.path.insert(0, sys.argv[1])
import asmnet_tf
names = asmnet_tf.pretrained_names()
assert not {"numpy", "tensorflow", "keras"} & set(sys.modules)
assert {"load_pretrained", "pretrained_sidecar", "pretrained_names"} <= set(dir(asmnet_tf))
assert not hasattr(asmnet_tf, "load_anything")
from asmnet_tf.files import InputError
def refused(call):
    try:
        call()
    except InputError as error:
        assert "asmnet_tf needs tensorflow, float32, channels_last" in str(error), error
        return True
def build():
    from asmnet_tf.network.asmnet import build_asmnet
    build_asmnet(input_size=32)
keras_file = os.path.join(sys.argv[1], "asmnet_tf/pretrained/asmnet_300w.keras")
calls = [lambda: asmnet_tf.FaceAligner(keras_file), lambda: asmnet_tf.load_pretrained("asmnet_300w"), build]
if os.environ.get("KERAS_BACKEND") == "jax":
    assert all(map(refused, calls))
    sys.exit()
import logging, cv2, keras, numpy as np, tensorflow as tf
before = [dict(os.environ), logging.root.level, logging.root.handlers[:], keras.config.dtype_policy().name]
assert asmnet_tf.FaceAligner(keras_file).detect(np.zeros((64, 64, 3), np.uint8)) == []
assert before == [dict(os.environ), logging.root.level, logging.root.handlers[:], keras.config.dtype_policy().name]
assert asmnet_tf.load_pretrained(names[0]).count_params() > 1_000_000
keras.config.set_floatx("float16")
assert all(map(refused, calls))
keras.config.set_floatx("float32")
keras.config.set_image_data_format("channels_first")
assert all(map(refused, calls))
"""


@pytest.mark.parametrize("backend", ["jax", ""])
def test_the_library_refuses_another_keras_and_changes_nothing_of_its_host(run_python, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    run_python("-c", LIBRARY, REPO)


# --- 300W -------------------------------------------------------------------------------------------------------------


def test_pca_builder_writes_one_plain_file_and_plots(shape_models):
    pictures = {"modes", "variance", "smoothing"}
    expected = {f"{name}_{picture}.png" for name in ("300w", "wflw") for picture in pictures}
    assert {p.name for p in shape_models.iterdir()} == expected | {"300w_pca90.npz", "wflw_pca90.npz"}
    with np.load(shape_models / "300w_pca90.npz", allow_pickle=False) as file:
        content = {key: file[key] for key in file}
    assert content["mean_shape"].shape == (136,)
    assert content["eigenvectors"].shape == (136, len(content["eigenvalues"]))
    assert (str(content["dataset"]), str(content["crop"])) == ("300w", "square")
    assert int(content["n_samples"]) == 48  # training faces only
    assert float(content["crop_scale"]) == 1.2


def test_pca_builder_reproduces_itself_and_takes_several_percentages(run_script, faces_300w, shape_models, tmp_path):
    flags = ("--dataset", "300w", "--data-dir", faces_300w, "--pca-percent", 90, 97.5, 100)
    done = run_script("pca_builder.py", *flags, "--output", tmp_path)
    assert {p.name for p in tmp_path.glob("*.npz")} == {f"300w_pca{p}.npz" for p in ("90", "97.5", "100")}
    assert len(done.stdout.splitlines()) == 3
    with np.load(shape_models / "300w_pca90.npz") as first, np.load(tmp_path / "300w_pca90.npz") as second:
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_run_folder(run_300w, faces_300w):
    assert sorted(p.name for p in run_300w.folder.iterdir()) == RUN_FILES  # no temporary file stays behind
    assert any((run_300w.folder / "tensorboard").iterdir())
    rows = read_log(run_300w.folder)
    assert list(rows[0]) == LOG_COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [float(row["alpha"]) for row in rows] == [2.0, 1.0, 0.5]  # a third of the epochs each
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert sum(line.startswith("epoch ") for line in run_300w.stdout.splitlines()) == 3
    nme = [float(row["val_nme_pct"]) for row in rows]
    for name, epoch in (("best", int(np.argmin(nme)) + 1), ("last", 3)):
        sidecar = parse_json((run_300w.folder / f"{name}.json").read_text())
        assert sidecar["epoch"] == epoch
        assert sidecar["val_nme_pct"] == pytest.approx(nme[epoch - 1])
        expected = {"dataset": "300w", "num_landmarks": 68, "input_size": 32, "crop": "square", "crop_scale": 1.2}
        assert {key: sidecar[key] for key in expected} == expected
        assert {"pose_range_deg", "commit", "recipe", "loss"} <= set(sidecar)
    record = parse_json((run_300w.folder / "args.json").read_text())
    samples = read_samples(DATASETS["300w"], faces_300w, "train", quiet=True)
    train, held_out = hold_out(samples, 0.1)
    assert record["counts"]["train"] == len(train)
    assert record["counts"]["validation"] == len(held_out) > 0
    assert record["flags"]["batch_size"] == 8
    assert f"the heads are fitted in closed form to {len(train)} faces" in run_300w.stdout


def test_a_finished_run_has_nothing_to_resume(run_batch, run_300w, shape_models, tmp_path):
    """From an equal shape model elsewhere; what is there stays as it is."""
    copy = tmp_path / "runs/tiny"
    shutil.copytree(run_300w.folder, copy)
    shutil.copy(shape_models / "300w_pca90.npz", tmp_path / "moved.npz")
    before = {path: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    flags = [*run_300w.flags, "--shape-model", tmp_path / "moved.npz", "--output", tmp_path / "runs"]
    (done,) = run_batch([("train", [*flags, "--name", "tiny", "--resume"])]).done
    assert done.returncode == 0, done.stderr
    assert "all 3 epochs are done" in done.stdout
    assert f"--weights {copy / 'last.keras'} --name" in done.stdout
    assert {path: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before


def test_evaluate_prints_every_number_for_every_subset(evaluation):
    scores, output = evaluation
    assert list(scores) == ["tiny"]
    assert {subset: numbers["n"] for subset, numbers in scores["tiny"].items()} == SUBSETS_300W
    for numbers in scores["tiny"].values():
        assert sorted(numbers) == sorted(METRICS)
        assert all(v is not None for v in numbers.values())
        for key in ("pose_mae_deg", "pose_pnp_mae_deg"):
            assert list(numbers[key]) == ["yaw", "pitch", "roll"]
            assert all(0 <= v <= 180 for v in numbers[key].values())
        assert all(0 <= v <= 100 for key, v in numbers.items() if "@" in key)
    full = scores["tiny"]["full"]
    parts = [scores["tiny"][name] for name in ("helen", "lfpw", "ibug")]
    assert full["nme_pct"] == pytest.approx(sum(p["n"] * p["nme_pct"] for p in parts) / full["n"], abs=1e-5)
    sheets = [f"tiny_{which}.png" for which in ("best", "median", "worst")]
    assert sorted(p.name for p in output.iterdir()) == sorted([*REPORT_FILES, *sheets, "tiny.npz"])
    stored = parse_json((output / "metrics.json").read_text())["scores"]["tiny"]["full"]
    assert stored["nme_pct"] == pytest.approx(full["nme_pct"], abs=1e-6)
    with open(output / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == full["n"]
    assert np.mean([float(row["nme_pct"]) for row in rows]) == pytest.approx(full["nme_pct"], abs=1e-3)


def test_one_method_has_nothing_to_be_compared_with(evaluation):
    assert parse_json((evaluation[1] / "metrics.json").read_text("utf-8"))["comparisons"] == {}
    assert "In pairs" not in (evaluation[1] / "report.html").read_text("utf-8")


def test_saved_predictions_score_the_same(run_batch, evaluation, faces_300w, tmp_path):
    scores, output = evaluation
    saved = output / "tiny.npz"
    assert read_predictions(saved).landmarks_gt is not None
    dataset = ["--dataset", "300w", "--data-dir", faces_300w]
    batch = run_batch(
        [
            ("evaluate", ["--predictions", f"again={saved}", *dataset, "--output", tmp_path / "with"]),
            ("evaluate", ["--predictions", f"again={saved}", "--output", tmp_path / "without"]),
            ("evaluate", ["--predictions", f"again={saved}", *dataset, "--subset", "ibug", "--output", tmp_path / "i"]),
        ],
        fresh=True,
    )
    assert [done.returncode for done in batch.done] == [0, 0, 0], batch.done
    assert not {"tensorflow", "keras"} & batch.modules
    with_faces, without_faces, ibug = map(scores_of, batch.done)
    for subset, numbers in scores["tiny"].items():
        assert differences(with_faces["again"][subset], numbers) == []
    assert list(without_faces["again"]) == ["all"]
    assert differences(without_faces["again"]["all"], scores["tiny"]["full"]) == []
    assert list(ibug["again"]) == ["ibug"]
    assert differences(ibug["again"]["ibug"], scores["tiny"]["ibug"]) == []


def test_the_val_split_is_what_training_held_out(run_batch, run_300w, faces_300w, tmp_path):
    data = ("--dataset", "300w", "--data-dir", faces_300w, "--split", "val", "--output", tmp_path)
    own, shipped = run_batch(
        [("evaluate", [run_300w.folder / "best.keras", *data]), ("evaluate", ["asmnet_300w_112_60", *data])]
    ).done
    scores = scores_of(own)["tiny"]["all"]
    assert scores["n"] == parse_json((run_300w.folder / "args.json").read_text())["counts"]["validation"]
    best = parse_json((run_300w.folder / "best.json").read_text())
    assert scores["nme_pct"] == pytest.approx(best["val_nme_pct"], rel=1e-3)
    assert best["hold_out"] == {"by": "photograph", "fraction": 0.1}
    assert shipped.returncode == 2
    assert "asmnet_300w_112_60.json: does not say which photographs were held out" in shipped.stderr


def test_perfect_and_missing_predictions(run_batch, faces_300w, tmp_path):
    samples = read_samples(DATASETS["300w"], faces_300w, "test", quiet=True)
    landmarks = np.stack([sample.landmarks for sample in samples])
    lost = landmarks.copy()
    lost[0] = np.nan  # a face that the method found nothing for
    np.savez(tmp_path / "perfect.npz", names=[s.name for s in samples], landmarks=landmarks)
    order = np.arange(len(samples))[::-1]  # a file's order is its own
    np.savez(tmp_path / "lost.npz", names=[f"{samples[i].name}.jpg" for i in order], landmarks=lost[order])
    flags = ["--dataset", "300w", "--data-dir", faces_300w, "--output", tmp_path / "out"]
    flags += ["--predictions", f"perfect={tmp_path / 'perfect.npz'}", f"lost={tmp_path / 'lost.npz'}"]
    scores = scores_of(*run_batch([("evaluate", flags)]).done)
    for subset, n in SUBSETS_300W.items():
        numbers = scores["perfect"][subset]
        assert (numbers["n"], numbers["nme_pct"], numbers["nme_interpupil_pct"]) == (n, 0, 0)
        assert [numbers[f"fr_pct@{t}"] for t in ("0.08", "0.10")] == [0, 0]
        assert [numbers[f"auc_pct@{t}"] for t in ("0.08", "0.10")] == [100, 100]
        assert numbers["pose_mae_deg"] is None  # the file brings no pose
        assert max(numbers["pose_pnp_mae_deg"].values()) == pytest.approx(0, abs=1e-3)
    full = scores["lost"]["full"]
    assert (full["n"], full["n_scored"], full["nme_pct"]) == (SUBSETS_300W["full"], SUBSETS_300W["full"] - 1, 0)
    assert full["fr_pct@0.08"] == pytest.approx(100 / SUBSETS_300W["full"], abs=1e-5)
    assert full["auc_pct@0.08"] == pytest.approx(100 - 100 / SUBSETS_300W["full"], abs=1e-5)


# --- the saved model --------------------------------------------------------------------------------------------------


def test_saved_model_runs_without_this_package(run_python, run_300w, tmp_path):
    """Plain Keras in an isolated process gives the numbers of the evaluation's own code."""
    from asmnet_tf.formats.keras_runners import compiled
    from asmnet_tf.network.checkpoints import load_model

    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8))
    model = run_300w.folder / "best.keras"
    plain = (
        "import json, sys, keras, numpy as np\n"
        "folder, path = sys.argv[1:]\n"
        "model = keras.models.load_model(path)\n"
        "assert 'asmnet_tf' not in sys.modules\n"
        "images = np.load(f'{folder}/images.npy')\n"
        "outputs = [np.asarray(o) for o in model(images, training=False)]\n"
        "as_float = [np.asarray(o) for o in model(images.astype(np.float32), training=False)]\n"
        "np.savez(f'{folder}/plain.npz', *outputs, *as_float)\n"
        "print(json.dumps([list(model.output_names), type(model).__name__, model.count_params()]))"
    )
    done = run_python("-I", "-c", plain, tmp_path, model)
    assert json.loads(done.stdout.splitlines()[-1]) == [["O_L", "O_P"], "Functional", 1_439_507]
    ours = compiled(load_model(model)[0])(np.load(tmp_path / "images.npy"))
    with np.load(tmp_path / "plain.npz") as a:
        assert a["arr_0"].shape == (5, 136)
        assert a["arr_1"].shape == (5, 3)
        for i in range(4):  # three epochs leave a network whose outputs are tens, not halves: relative to the largest
            expected = ours[i % 2].numpy()
            np.testing.assert_allclose(a[f"arr_{i}"], expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


# --- other ways to train ----------------------------------------------------------------------------------------------


def test_paper_recipe_needs_its_tight_shape_model_and_mse_needs_none(run_batch, faces_300w, tmp_path):
    data = ["--dataset", "300w", "--data-dir", faces_300w]
    train = [*data, "--input-size", 32, "--batch-size", 8, "--epochs", 1, "--output", tmp_path / "runs"]
    tight, models = tmp_path / "tight", [tmp_path / "runs/paper/best.keras", tmp_path / "runs/mse/last.keras"]
    release = ["--epochs", 2, "--batch-size", 24, "--alpha-schedule", "release", "--name", "release"]
    batch = run_batch(
        [
            ("pca_builder", [*data, "--crop", "tight", "--output", tight]),
            ("train", [*train, "--recipe", "paper", "--shape-model", tight / "300w_pca90.npz", "--name", "paper"]),
            ("train", [*train, "--loss", "mse", "--arch", "mobilenet_v2", "--val-fraction", 0, "--name", "mse"]),
            ("train", [*train, "--loss", "mse", *release]),
            ("evaluate", [*models, *data, "--subset", "challenging", "--output", tmp_path / "out"]),
        ],
        small=True,  # in ASMNet's place: of `paper` and `release`
    )
    for done in batch.done:
        assert done.returncode == 0, done.stderr
    paper, mse = (parse_json((tmp_path / f"runs/{name}/best.json").read_text()) for name in ("paper", "mse"))
    assert (paper["recipe"], paper["crop"], paper["crop_scale"], paper["landmark_loss"]) == ("paper", "tight", 1, "mse")
    assert (mse["loss"], mse["crop"], mse["architecture"], mse["val_nme_pct"]) == (
        "mse",
        "square",
        "mobilenet_v2",
        None,
    )
    (row,) = read_log(tmp_path / "runs/mse")
    assert row["val_nme_pct"] == ""  # nothing was held out
    assert float(row["loss_asm"]) == 0
    # 44 faces in batches of 24 are one step an epoch: the release's thirds are over in the second; ours would be at 1
    assert [float(row["alpha"]) for row in read_log(tmp_path / "runs/release")] == [2.0, 0.5]
    recorded = [parse_json((tmp_path / f"runs/{name}/args.json").read_text()) for name in ("release", "mse")]
    assert [record["flags"]["alpha_schedule"] for record in recorded] == ["release", "epochs"]
    scores = scores_of(batch.done[-1])
    assert {name: list(subsets) for name, subsets in scores.items()} == {
        "paper": ["challenging"],
        "mse": ["challenging"],
    }
    assert scores["paper"]["challenging"]["n"] == IBUG
    methods = parse_json((tmp_path / "out/metrics.json").read_text())["methods"]
    assert methods["paper"]["crop"] == "tight 1"
    assert methods["mse"]["crop"] == "square 1.2"


# --- WFLW -------------------------------------------------------------------------------------------------------------


def test_wflw_layout(run_batch, small_runs, faces_wflw, tmp_path):
    folder = small_runs["wflw"].folder
    assert sorted(p.name for p in folder.iterdir()) == RUN_FILES
    flags = [folder / "last.keras", "--dataset", "wflw", "--data-dir", faces_wflw, "--output", tmp_path]
    scores = scores_of(*run_batch([("evaluate", flags)]).done)["tiny98"]
    samples = read_samples(DATASETS["wflw"], faces_wflw, "test", quiet=True)
    expected = {name: sum(name in sample.tags for sample in samples) for name in DATASETS["wflw"].subsets}
    assert {name: numbers["n"] for name, numbers in scores.items()} == {k: n for k, n in expected.items() if n}
    assert scores["test"]["n"] == COUNTS_WFLW["test"]
    assert len(scores) > 3  # the seed gives several attributes
    for numbers in scores.values():
        assert sorted(numbers) == sorted(key for key in METRICS if "0.08" not in key)  # WFLW is scored at 0.10
        assert all(v is not None for v in numbers.values())


# --- real faces -------------------------------------------------------------------------------------------------------


def test_real_faces_are_read_and_scored(run_batch, real_data, tmp_path):
    """The true landmarks of the real LFPW and WFLW test faces, moved by a pixel: small errors, on the right faces."""
    commands, counts = [], {}
    for dataset in ("300w", "wflw"):
        samples = read_samples(DATASETS[dataset], real_data / dataset, "test", quiet=True)
        counts[dataset] = len(samples)
        landmarks = np.stack([sample.landmarks for sample in samples]) + np.array([1, 0])
        np.savez(tmp_path / f"{dataset}.npz", names=[sample.name for sample in samples], landmarks=landmarks)
        flags = ["--predictions", f"moved={tmp_path / dataset}.npz", "--output", tmp_path / dataset]
        commands.append(("evaluate", [*flags, "--dataset", dataset, "--data-dir", real_data / dataset]))
    batch = run_batch([*commands, ("pca_builder", ["--dataset", "300w", "--data-dir", real_data / "300w"])])
    for done in batch.done:
        assert done.returncode == 0, done.stderr
    for dataset, subset, done in zip(("300w", "wflw"), ("full", "test"), batch.done):
        numbers = scores_of(done)["moved"][subset]
        assert numbers["n"] == counts[dataset]
        assert 0 < numbers["nme_pct"] < 5
        assert max(numbers["pose_pnp_mae_deg"].values()) < 1.5
    assert "components from" in batch.done[-1].stdout


def test_a_layout_of_ones_own_from_its_description_to_a_prediction(run_batch, faces_300w, tmp_path):
    """21 points of the 68: described, fitted, trained, scored, predicted, exported; the model needs no description."""
    chosen = [17, 19, 21, 22, 24, 26, 36, 37, 39, 42, 44, 45, 0, 31, 30, 35, 16, 48, 62, 54, 8]
    for split in ("trainset", "testset"):
        (tmp_path / split).mkdir()
        for points in sorted((faces_300w / "helen" / split).glob("*.pts")):
            shutil.copy(points.with_suffix(".jpg"), tmp_path / split)
            landmarks = read_pts(points, 68)[chosen]
            (tmp_path / split / points.name).write_text(pts_text(landmarks))
    text = 'name = "mine"\nbased_on = "aflw21"\n[splits]\ntrain = "trainset"\ntest = "testset"\nval = 0.2\n'
    (tmp_path / "faces.toml").write_text(text)
    shapes, model = tmp_path / "shapes", tmp_path / "runs/m/best.keras"
    given = ["--dataset", tmp_path / "faces.toml"]
    train = [*given, "--input-size", "32", "--epochs", "1", "--batch-size", "4", "--name", "m"]
    train += ["--shape-model", shapes / "mine_pca90.npz", "--output", tmp_path / "runs"]
    begun = run_batch([("pca_builder", [*given, "--output", shapes]), ("train", train)], small=True)
    (tmp_path / "faces.toml").rename(tmp_path / "moved.toml")
    photo = next((tmp_path / "testset").glob("*.jpg"))
    flags = [photo, "--model", model, "--output", tmp_path / "out", "--min-score", "0.3"]
    evaluate = [model, "--dataset", tmp_path / "moved.toml", "--output", tmp_path / "ev"]
    tune = ["--dataset", "300w", "--data-dir", faces_300w, "--recipe", "finetune", "--weights", model, "--name", "68"]
    tune += ["--input-size", "32", "--epochs", "1", "--output", tmp_path / "runs"]
    seen = [*evaluate[:-1], tmp_path / "seen", "--boxes", "detector"]
    export = [model, "--to", "tflite", "--faces", "4", "--output", tmp_path / "m.tflite"]
    programs = ("evaluate", "evaluate", "asmnet_tf.predict", "asmnet_tf.export", "train")
    ended = run_batch(list(zip(programs, (evaluate, seen, flags, export, tune))), small=True)
    for done in (*begun.done, *ended.done):
        assert done.returncode == 0, done.stderr
    scores = scores_of(ended.done[0])["m"]["all"]
    assert scores["n_scored"] == len(list((tmp_path / "testset").glob("*.pts")))
    assert scores["pose_mae_deg"] is not None
    assert scores_of(ended.done[1])["m"]["all"]["n_scored"] > scores["n_scored"] / 2
    assert "landmark head was fitted anew to" in ended.done[-1].stdout  # 68 points, from a model of 21
    assert "held-out faces" in ended.done[-1].stdout.splitlines()[-1]
    scale, _, y = json.loads(model.with_suffix(".json").read_text())["description"]["detector_box"]
    assert 0.6 < scale < 1.1
    assert abs(y) < 0.15
    assert json.loads((tmp_path / "m.json").read_text())["description"]["name"] == "mine"
    predicted = json.loads((tmp_path / "out/predictions.json").read_text())
    assert predicted["points"].startswith("21 as in mine")
    for face in predicted["results"][0]["faces"]:
        assert len(face["landmarks"]) == 21
