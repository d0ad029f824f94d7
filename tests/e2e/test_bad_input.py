"""What the scripts cannot use ends them with exit code 2 and one line that names it; nothing that was there is lost.

Each case below is a function that prepares one bad thing in a folder of its own and returns the command; its decorator
gives what the error must name. The cases run one after the other in a few processes (see `run_batch`).
"""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, TrainedRun

from asmnet_tf.shape.shape_model import ShapeModel

# What may stand on stderr beside the error: a partial download, an absent side-car, an empty subset.
INFORMATION = re.compile(r".*: \d+ of \d+ faces \(.*\)$|.* is assumed$|.* left out$|.*: no face of it in ")


@dataclass(frozen=True)
class Place:
    """A case's own folder, and what is shared between cases and must stay as it is."""

    folder: Path
    faces_300w: Path
    faces_wflw: Path
    shape_models: Path
    run_300w: TrainedRun | None = None  # of a small network
    run_wflw: TrainedRun | None = None

    def data(self) -> list:
        return ["--dataset", "300w", "--data-dir", self.faces_300w]

    def copied_data(self) -> tuple[Path, list]:
        copy = self.folder / "faces"
        shutil.copytree(self.faces_300w, copy)
        return copy, ["--dataset", "300w", "--data-dir", copy]

    def copied_run(self) -> tuple[Path, list]:
        """A copy of the trained run, and the flags that resume it."""
        copy = self.folder / "tiny"
        shutil.copytree(self.run_300w.folder, copy)
        return copy, [*self.run_300w.flags, "--output", self.folder, "--name", "tiny", "--resume"]

    def train(self, *more) -> list:
        return [*self.data(), "--output", self.folder / "runs", "--input-size", 32, *more]

    def score(self, path: Path, *more) -> list:
        return ["--predictions", f"theirs={path}", "--output", self.folder / "out", *more]


LIGHT: dict = {}  # cases that fail before TensorFlow is imported
HEAVY: dict = {}


def case(*named: str, heavy: bool = False):
    """Registers a case; `named`: what its error line must contain."""

    def register(function):
        (HEAVY if heavy else LIGHT)[function.__name__] = (function, named)
        return function

    return register


# --- folders and flags ------------------------------------------------------------------------------------------------


@case("absent: no such folder", "--data-dir")
def missing_data_folder(place):
    return "train", ["--dataset", "300w", "--data-dir", place.folder / "absent", "--loss", "mse"]


@case("file: no such folder")
def data_folder_that_is_a_file(place):
    (place.folder / "file").write_text("kept")
    return "pca_builder", ["--dataset", "300w", "--data-dir", place.folder / "file"]


@case("empty: no 300W train face", "helen/trainset")
def empty_data_folder(place):
    (place.folder / "empty").mkdir()
    return "pca_builder", ["--dataset", "300w", "--data-dir", place.folder / "empty"]


@case("300w: no WFLW test face", "list_98pt_rect_attr_test.txt")
def another_dataset_s_folder(place):
    return "evaluate", place.score(perfect_file(place), "--dataset", "wflw", "--data-dir", place.faces_300w)


@case("faces: holds other files")
def synthetic_faces_into_a_folder_of_others(place):
    copy, _ = place.copied_data()
    (copy / "synthetic.json").unlink()
    return "pca_builder", ["--data-dir", copy, "--output", place.folder / "out"]


@case("300w: 1 shapes")
def one_face_for_a_shape_model(place):
    return "pca_builder", [*place.data(), "--limit", 1, "--output", place.folder / "out"]


def shapes_file(place, change=lambda shapes: shapes):
    """The command that fits eigen-shapes to a file of 20 shapes, changed."""
    mean = ShapeModel.load(place.shape_models / "300w_pca90.npz").mean_shape
    shapes = mean + np.random.default_rng(0).normal(0, 0.01, (20, 136))
    np.save(place.folder / "shapes.npy", change(shapes))
    flags = ["--dataset", "300w", "--shapes", place.folder / "shapes.npy"]
    return "pca_builder", [*flags, "--output", place.folder / "out"]


@case("absent.npy: no such file", "(N, 2L)")
def missing_shapes_file(place):
    return "pca_builder", ["--shapes", place.folder / "absent.npy", "--output", place.folder / "out"]


@case("shapes.npy: shape (20, 68, 2), 300W has (N, 136)", "--dataset")
def shapes_file_of_landmarks(place):
    return shapes_file(place, lambda shapes: shapes.reshape(20, 68, 2))


@case("shapes.npy: the mean's first point is", "network units")
def shapes_file_in_pixels(place):
    return shapes_file(place, lambda shapes: shapes * 224 + 112)


@case("shapes.npy, row 7: a value is not finite")
def shapes_file_with_nan(place):
    return shapes_file(place, lambda shapes: np.where(np.arange(20)[:, None] == 7, np.nan, shapes))


@case("shapes.npy: not a whole .npy file")
def shapes_file_cut_short(place):
    command = shapes_file(place)
    content = (place.folder / "shapes.npy").read_bytes()
    (place.folder / "shapes.npy").write_bytes(content[:-8])
    return command


@case("shapes.npy: not a whole .npy file")
def shapes_file_of_pickled_objects(place):
    bomb = np.empty(20, object)
    bomb[:] = [Bomb(place.folder / "exploded")] * 20
    return shapes_file(place, lambda _: bomb)


@case("300w: 1 shapes")
def shapes_file_of_one_shape(place):
    return shapes_file(place, lambda shapes: shapes[:1])


@case("file/models: this folder cannot be made")
def output_of_pca_builder_below_a_file(place):
    (place.folder / "file").write_text("kept")
    return "pca_builder", [*place.data(), "--output", place.folder / "file/models"]


@case("file/runs: this folder cannot be made")
def output_of_train_below_a_file(place):
    (place.folder / "file").write_text("kept")
    return "train", place.train("--loss", "mse", "--output", place.folder / "file/runs")


@case("file/out: this folder cannot be made")
def output_of_evaluate_below_a_file(place):
    (place.folder / "file").write_text("kept")
    return "evaluate", [*place.score(perfect_file(place)), *place.data(), "--output", place.folder / "file/out"]


@case("metrics.json: cannot be written")
def output_of_evaluate_that_is_in_the_way(place):
    (place.folder / "out/metrics.json").mkdir(parents=True)
    (place.folder / "out/metrics.json/note").write_text("kept")
    return "evaluate", [*place.score(perfect_file(place)), *place.data()]


@case("runs/asmnet_300w_asm: this run exists", "--resume")
def run_that_exists(place):
    folder = place.folder / "runs/asmnet_300w_asm"
    folder.mkdir(parents=True)
    (folder / "best.keras").write_text("kept")
    return "train", place.train("--shape-model", place.shape_models / "300w_pca90.npz")


@case("runs/absent: no such run to resume", "there are: mine, old/one")
def resume_of_a_run_that_does_not_exist(place):
    for name in ("mine", "old/one"):
        (place.folder / "runs" / name).mkdir(parents=True)
        (place.folder / "runs" / name / "args.json").write_text("{}")
    return "train", place.train("--loss", "mse", "--name", "absent", "--resume")


@case("runs/photos: no run of train.py", "me.jpg")
def resume_of_a_folder_of_others(place):
    (place.folder / "runs/photos").mkdir(parents=True)
    (place.folder / "runs/photos/me.jpg").write_text("kept")
    return "train", place.train("--loss", "mse", "--name", "photos", "--resume")


@case("'sideways'", "300W", "challenging")
def unknown_subset(place):
    return "evaluate", [*place.score(perfect_file(place)), *place.data(), "--subset", "full", "sideways"]


@case("no face of afw")
def subset_without_a_face(place):
    return "evaluate", [*place.score(perfect_file(place)), *place.data(), "--subset", "afw"]


# --- annotations ------------------------------------------------------------------------------------------------------


def spoiled_pts(place, change):
    copy, flags = place.copied_data()
    path = copy / "helen/trainset/face_000003.pts"
    path.write_text(change(path.read_text()))
    return "pca_builder", [*flags, "--output", place.folder / "out"]


@case("face_000003.pts: 66 points, 68 expected", "--dataset")
def pts_of_66_points(place):
    return spoiled_pts(place, lambda text: "\n".join(text.splitlines()[:-3]) + "\n}\n")


@case("face_000003.pts, line 5:", "two hundred")
def pts_with_letters(place):
    return spoiled_pts(place, lambda text: "\n".join([*text.splitlines()[:4], "two hundred", *text.splitlines()[5:]]))


@case("face_000003.pts, line 5:", "nan")
def pts_with_nan(place):
    return spoiled_pts(place, lambda text: "\n".join([*text.splitlines()[:4], "nan 3", *text.splitlines()[5:]]))


@case("face_000003.pts: 0 points, 68 expected")
def pts_without_points(place):
    return spoiled_pts(place, lambda text: "")


def spoiled_list(place, change):
    copy = place.folder / "faces"
    shutil.copytree(place.faces_wflw, copy)
    (path,) = copy.rglob("*_attr_train.txt")
    lines = path.read_text().splitlines()
    lines[2] = change(lines[2])
    path.write_text("\n".join(lines) + "\n")
    return "pca_builder", ["--dataset", "wflw", "--data-dir", copy, "--output", place.folder / "out"]


@case("list_98pt_rect_attr_train.txt, line 3: 206 columns, 207 expected")
def wflw_line_of_206_columns(place):
    return spoiled_list(place, lambda line: line.split(maxsplit=1)[1])


@case("list_98pt_rect_attr_train.txt, line 3:", "../../etc/passwd.jpg")
def wflw_image_outside_the_data(place):
    return spoiled_list(place, lambda line: line.rsplit(maxsplit=1)[0] + " ../../etc/passwd.jpg")


@case("list_98pt_rect_attr_train.txt, line 3:", "not a number")
def wflw_line_with_letters(place):
    return spoiled_list(place, lambda line: "one " + line.split(maxsplit=1)[1])


@case("poses.csv", "yaw, pitch, roll")
def pose_labels_without_roll(place):
    (place.folder / "poses.csv").write_text("name,yaw,pitch\nhelen/trainset/face_000000,1,2\n")
    return "train", place.train("--loss", "mse", "--pose-labels", place.folder / "poses.csv")


@case("poses.csv: no pose for helen/trainset/face_000001", "47 of 48")
def pose_labels_of_one_face(place):
    (place.folder / "poses.csv").write_text("name,yaw,pitch,roll\nhelen/trainset/face_000000,1,2,3\n")
    return "train", place.train("--loss", "mse", "--pose-labels", place.folder / "poses.csv")


# --- shape models -----------------------------------------------------------------------------------------------------


@case("absent.npz: no such shape model", "pca_builder.py")
def missing_shape_model(place):
    return "train", place.train("--shape-model", place.folder / "absent.npz")


@case("wflw_pca90.npz: eigen-shapes of wflw, not of 300w", "pca_builder.py --dataset 300w")
def shape_model_of_another_dataset(place):
    return "train", place.train("--shape-model", place.shape_models / "wflw_pca90.npz")


@case("300w_pca90.npz: fitted in square crops", "tight", "pca_builder.py --dataset 300w --crop tight")
def shape_model_of_another_crop(place):
    return "train", place.train("--recipe", "paper", "--shape-model", place.shape_models / "300w_pca90.npz")


@case("cut.npz: not a shape model")
def shape_model_cut_short(place):
    content = (place.shape_models / "300w_pca90.npz").read_bytes()
    (place.folder / "cut.npz").write_bytes(content[: len(content) // 2])
    return "train", place.train("--shape-model", place.folder / "cut.npz")


@case("odd.npz: its arrays do not fit together")
def shape_model_of_odd_shapes(place):
    model = ShapeModel.load(place.shape_models / "300w_pca90.npz")
    replace(model, eigenvalues=model.eigenvalues[:-1]).save(place.folder / "odd.npz")
    return "train", place.train("--shape-model", place.folder / "odd.npz")


# --- prediction files -------------------------------------------------------------------------------------------------


def arrays_of(place) -> dict[str, np.ndarray]:
    """A valid prediction file's arrays: the test faces' points from the .pts files."""
    names, landmarks = [], []
    for folder in ("helen/testset", "lfpw/testset", "ibug"):
        for path in sorted((place.faces_300w / folder).glob("*.pts")):
            names.append(f"{folder}/{path.stem}")
            landmarks.append(np.loadtxt(path.read_text().splitlines()[3:-1]) - 1)
    return {"names": np.array(names), "landmarks": np.array(landmarks)}


def prediction_file(place, **changes) -> Path:
    path = place.folder / "theirs.npz"
    np.savez(path, **(arrays_of(place) | changes))
    return path


def perfect_file(place) -> Path:
    return prediction_file(place)


@case("absent.npz: no such prediction file")
def missing_prediction_file(place):
    return "evaluate", place.score(place.folder / "absent.npz", *place.data())


@case("theirs.npz: no prediction for helen/testset/face_000000", "1 of 21")
def prediction_file_without_a_face(place):
    arrays = {key: value[1:] for key, value in arrays_of(place).items()}
    return "evaluate", place.score(prediction_file(place, **arrays), *place.data())


@case("theirs.npz", "helen/testset/face_000000")
def prediction_file_with_a_name_twice(place):
    names = arrays_of(place)["names"]
    names[1] = names[0]
    path = prediction_file(place, names=names, landmarks_gt=arrays_of(place)["landmarks"])
    return "evaluate", place.score(path)


@case("theirs.npz: landmarks is (21, 136)", "(21, L, 2)")
def prediction_file_of_flat_landmarks(place):
    flat = arrays_of(place)["landmarks"].reshape(21, 136)
    return "evaluate", place.score(prediction_file(place, landmarks=flat), *place.data())


@case("theirs.npz: pose is", "(21, 3)")
def prediction_file_of_two_angles(place):
    return "evaluate", place.score(prediction_file(place, pose=np.zeros((21, 2))), *place.data())


@case("theirs.npz: 98 points per face, 68 expected")
def prediction_file_of_98_points(place):
    return "evaluate", place.score(prediction_file(place, landmarks=np.zeros((21, 98, 2))), *place.data())


@case("theirs.npz: no array 'landmarks'")
def prediction_file_without_landmarks(place):
    path = place.folder / "theirs.npz"
    np.savez(path, names=arrays_of(place)["names"])
    return "evaluate", place.score(path, *place.data())


@case("theirs.npz: no prediction for helen/testset/face_000000", "21 of 21", "lfpw/trainset/0")
def prediction_file_of_another_folder_s_faces(place):
    names = np.array([f"lfpw/trainset/{i}" for i in range(21)])
    return "evaluate", place.score(prediction_file(place, names=names), *place.data())


@case("theirs.npz: landmarks_gt of 21 of 21 faces", " px for ", "other images")
def prediction_file_of_the_uncropped_images(place):
    landmarks = 2.5 * arrays_of(place)["landmarks"] + 40
    path = prediction_file(place, landmarks=landmarks, landmarks_gt=landmarks)
    return "evaluate", place.score(path, *place.data())


@case("theirs.npz: landmarks_gt of 21 of 21 faces", "1.4 px", "count from 1")
def prediction_file_that_counts_from_1(place):
    path = prediction_file(place, landmarks_gt=arrays_of(place)["landmarks"] + 1)
    return "evaluate", place.score(path, *place.data())


@case("theirs.npz: image size of helen/testset/face_000000 is 1024 x 768", "other images")
def prediction_file_of_images_of_another_size(place):
    path = prediction_file(place, image_size=np.array([768, 1024]))
    return "evaluate", place.score(path, *place.data())


@case("theirs.npz: landmarks of helen/testset/face_000000 lie all in one point", "21 of 21", "pixels")
def prediction_file_of_network_units(place):
    path = prediction_file(place, landmarks=arrays_of(place)["landmarks"] / 1000)
    return "evaluate", place.score(path, *place.data())


@case("theirs.npz: landmarks of ", "(1 of 21 faces)", "NaN for a face without a prediction")
def prediction_file_with_zeros_for_a_face(place):
    landmarks = arrays_of(place)["landmarks"]
    landmarks[3] = 0
    return "evaluate", place.score(prediction_file(place, landmarks=landmarks), *place.data())


@case("theirs.npz: landmarks_gt of ", "(1 of 21 faces)")
def prediction_file_of_true_landmarks_in_one_point(place):
    landmarks_gt = arrays_of(place)["landmarks"]
    landmarks_gt[3] = 7
    return "evaluate", place.score(prediction_file(place, landmarks_gt=landmarks_gt))


@case("theirs.npz: pose holds 1000", "degrees")
def prediction_file_of_1000_degrees(place):
    return "evaluate", place.score(prediction_file(place, pose=np.full((21, 3), 1000.0)), *place.data())


@case("theirs.npz: no landmarks_gt", "--dataset")
def prediction_file_without_truth_or_dataset(place):
    return "evaluate", place.score(perfect_file(place))


@case("--predictions", "--dataset")
def prediction_file_beside_a_model_without_dataset(place):
    path = prediction_file(place, landmarks_gt=arrays_of(place)["landmarks"])
    return "evaluate", [place.folder / "absent.keras", *place.score(path)]


@case("--split", "--dataset")
def split_of_a_prediction_file_s_own_faces(place):
    path = prediction_file(place, landmarks_gt=arrays_of(place)["landmarks"])
    return "evaluate", place.score(path, "--split", "val")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@case("theirs.npz: not a whole .npz file")
def prediction_file_of_pickled_objects(place):
    bomb = np.empty(21, object)
    bomb[:] = [Bomb(place.folder / "exploded")] * 21
    return "evaluate", place.score(prediction_file(place, names=bomb), *place.data())


@case("theirs.npz: not a whole .npz file")
def prediction_file_of_text(place):
    (place.folder / "theirs.npz").write_text("helen 1 2 3\n")
    return "evaluate", place.score(place.folder / "theirs.npz", *place.data())


@case("theirs.npz: not a whole .npz file")
def prediction_file_damaged_inside(place):
    path = place.folder / "theirs.npz"
    np.savez_compressed(path, **arrays_of(place))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("landmarks.npy").header_offset + 80  # where zlib itself gives up, before any checksum
    path.write_bytes(content[:start] + b"\xff" * 64 + content[start + 64 :])
    return "evaluate", place.score(path, *place.data())


@case("--predictions", "same NAME")
def two_prediction_files_of_one_name(place):
    path = perfect_file(place)
    return "evaluate", [*place.score(path), "--predictions", f"theirs={path}", *place.data()]


# --- what TensorFlow or the network are needed for --------------------------------------------------------------------


@case("face_000002.jpg: 20 bytes that do not decode", heavy=True)
def text_as_a_training_image(place):
    copy, flags = place.copied_data()
    (copy / "helen/trainset/face_000002.jpg").write_text("this is not an image")
    return "train", [*flags, "--loss", "mse", "--input-size", 32, "--output", place.folder / "runs"]


@case("face_000002.jpg: 0 bytes that do not decode", heavy=True)
def empty_test_image(place):
    copy, flags = place.copied_data()
    (copy / "ibug/face_000002.jpg").write_bytes(b"")
    return "evaluate", [place.run_300w.folder / "best.keras", *flags, "--output", place.folder / "out"]


@case("file/cache/", "this folder cannot be made", "--cache-dir", heavy=True)
def cache_below_a_file(place):
    (place.folder / "file").write_text("kept")
    return "train", place.train("--loss", "mse", "--cache", "disk", "--cache-dir", place.folder / "file/cache")


@case("face_000002.jpg: 20 bytes that do not decode", heavy=True)
def text_as_an_image_of_the_disk_cache(place):
    copy, flags = place.copied_data()
    (copy / "helen/trainset/face_000002.jpg").write_text("this is not an image")
    flags = [*flags, "--loss", "mse", "--input-size", 32, "--output", place.folder / "runs"]
    return "train", [*flags, "--cache", "disk", "--cache-dir", place.folder / "cache"]


@case("--input-size 16:", "32", heavy=True)
def input_size_16(place):
    return "train", place.train("--loss", "mse", "--arch", "mobilenet_v2", "--input-size", 16)


@case("--input-size 100000:", "1024", heavy=True)
def input_size_100000(place):
    return "train", place.train("--loss", "mse", "--arch", "mobilenet_v2", "--input-size", 100_000)


@case("--val-fraction", heavy=True)
def every_face_held_out(place):
    return "train", place.train("--loss", "mse", "--limit", 2, "--val-fraction", 0.9)


@case("absent.h5", heavy=True)
def missing_weights(place):
    return "train", place.train("--loss", "mse", "--weights", place.folder / "absent.h5")


@case("tiny/state.npz", heavy=True)
def resume_of_a_run_that_lost_its_state(place):  # starting anew would overwrite its best.keras
    copy, flags = place.copied_run()
    (copy / "state.npz").unlink()
    return "train", flags


@case("tiny/state.npz: not a whole .npz file", heavy=True)
def resume_of_a_damaged_state(place):
    copy, flags = place.copied_run()
    content = bytearray((copy / "state.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / "state.npz").write_bytes(content)
    return "train", flags


@case("tiny/state.npz: not a whole .npz file", heavy=True)
def resume_of_a_state_cut_short(place):
    copy, flags = place.copied_run()
    content = (copy / "state.npz").read_bytes()
    (copy / "state.npz").write_bytes(content[: len(content) // 2])
    return "train", flags


@case("tiny/args.json", "--arch asmnet", "mobilenet_v2", heavy=True)
def resume_with_another_architecture(place):
    _, flags = place.copied_run()
    return "train", [*flags, "--arch", "mobilenet_v2"]


@case("tiny/args.json", "--head pooled", "spatial", heavy=True)
def resume_with_another_head(place):
    _, flags = place.copied_run()
    return "train", [*flags, "--head", "spatial"]


@case("tiny/args.json", "--epochs 3, now it is 5", "--weights", "last.keras --name", heavy=True)
def resume_of_a_finished_run_for_more_epochs(place):
    _, flags = place.copied_run()
    return "train", [*flags, "--epochs", 5]


@case("tiny/args.json", "--shape-model changed since the run began", heavy=True)
def resume_with_another_shape_model(place):
    _, flags = place.copied_run()
    model = ShapeModel.load(place.shape_models / "300w_pca90.npz")
    replace(model, mean_shape=model.mean_shape + 1e-6).save(place.folder / "300w_pca90.npz")
    return "train", [*flags, "--shape-model", place.folder / "300w_pca90.npz"]


@case("absent.keras: no such model", heavy=True)
def missing_model(place):
    return "evaluate", [place.folder / "absent.keras", *place.data(), "--output", place.folder / "out"]


@case("best.keras: not a model that Keras loads", "truncated", heavy=True)
def model_cut_short(place):
    content = (place.run_300w.folder / "best.keras").read_bytes()
    (place.folder / "best.keras").write_bytes(content[: len(content) // 2])
    return "evaluate", [place.folder / "best.keras", *place.data(), "--output", place.folder / "out"]


@case("model.tflite: not a model that TFLite loads", heavy=True)
def tflite_cut_short(place):  # read on by the interpreter, this would end the process without a word
    (place.folder / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    return "evaluate", [place.folder / "model.tflite", *place.data(), "--output", place.folder / "out"]


@case("absent.tflite", "cannot be read", heavy=True)
def missing_tflite(place):
    return "evaluate", [place.folder / "absent.tflite", *place.data(), "--output", place.folder / "out"]


@case("saved: not a SavedModel that TensorFlow loads", heavy=True)
def saved_model_without_a_graph(place):
    (place.folder / "saved").mkdir()
    (place.folder / "saved/saved_model.pb").write_bytes(b"\xff" * 50)
    return "evaluate", [place.folder / "saved", *place.data(), "--output", place.folder / "out"]


@case("tiny: a folder without saved_model.pb", heavy=True)
def run_folder_instead_of_a_model(place):
    copy, _ = place.copied_run()
    return "evaluate", [copy, *place.data(), "--output", place.folder / "out"]


@case("last.keras: finds 98 landmarks, 300W has 68", "--dataset", heavy=True)
def model_of_98_points_on_68(place):
    return "evaluate", [place.run_wflw.folder / "last.keras", *place.data(), "--output", place.folder / "out"]


def spoiled_sidecar(place, text: str):
    shutil.copy(place.run_300w.folder / "best.keras", place.folder / "best.keras")
    (place.folder / "best.json").write_text(text)
    return "evaluate", [place.folder / "best.keras", *place.data(), "--output", place.folder / "out"]


@case("best.json: not JSON", heavy=True)
def sidecar_that_is_no_json(place):
    return spoiled_sidecar(place, "{crop: square")


@case("best.json: not a JSON object", heavy=True)
def sidecar_that_is_a_list(place):
    return spoiled_sidecar(place, "[]")


@case("best.json: crop is 'round'", heavy=True)
def sidecar_of_an_unknown_crop(place):
    return spoiled_sidecar(place, json.dumps({"crop": "round"}))


@case("best.json: crop_scale", heavy=True)
def sidecar_of_a_crop_scale_that_is_no_number(place):
    return spoiled_sidecar(place, '{"crop": "square", "crop_scale": NaN}')


# --- the checks -------------------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@dataclass(frozen=True)
class Outcome:
    done: object
    folder: Path
    before: dict[str, str]


def run_cases(cases: dict, run_batch, root: Path, small: bool, **shared) -> tuple[dict[str, Outcome], set[str]]:
    commands, befores = [], []
    for name, (prepare, _) in cases.items():
        folder = root / name
        folder.mkdir()
        commands.append(prepare(Place(folder, **shared)))
        befores.append(snapshot(folder))
    batch = run_batch(commands, small=small, fresh=not small)
    outcomes = {
        name: Outcome(done, root / name, before) for name, done, before in zip(cases, batch.done, befores, strict=True)
    }
    return outcomes, batch.modules


@pytest.fixture(scope="module")
def light(run_batch, faces_300w, faces_wflw, shape_models, tmp_path_factory):
    shared = {"faces_300w": faces_300w, "faces_wflw": faces_wflw, "shape_models": shape_models}
    before = {key: snapshot(folder) for key, folder in shared.items()}
    outcomes = run_cases(LIGHT, run_batch, tmp_path_factory.mktemp("light"), small=False, **shared)
    assert {key: snapshot(folder) for key, folder in shared.items()} == before
    return outcomes


@pytest.fixture(scope="module")
def heavy(run_batch, faces_300w, faces_wflw, shape_models, small_runs, tmp_path_factory):
    shared = {"faces_300w": faces_300w, "faces_wflw": faces_wflw, "shape_models": shape_models}
    shared |= {f"run_{name}": run for name, run in small_runs.items()}
    folders = [faces_300w, faces_wflw, shape_models, *(run.folder for run in small_runs.values())]
    before = [snapshot(folder) for folder in folders]
    outcomes, _ = run_cases(HEAVY, run_batch, tmp_path_factory.mktemp("heavy"), small=True, **shared)
    assert [snapshot(folder) for folder in folders] == before
    return outcomes


def check(outcome: Outcome, named: tuple[str, ...]) -> None:
    done = outcome.done
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line and not INFORMATION.match(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for words in named:
        assert words in lines[0]
    after = snapshot(outcome.folder)
    assert {key: after.get(key) for key in outcome.before} == outcome.before
    new = after.keys() - outcome.before.keys()
    assert not [name for name in new if ".writing-" in name or name.endswith((".npz", ".keras"))], new


@pytest.mark.parametrize("name", LIGHT)
def test_bad_input(light, name):
    outcomes, modules = light
    check(outcomes[name], LIGHT[name][1])
    assert "tensorflow" not in modules
    assert not (outcomes[name].folder / "exploded").exists()


@pytest.mark.parametrize("name", HEAVY)
def test_bad_input_of_the_network(heavy, name):
    check(heavy[name], HEAVY[name][1])


@pytest.mark.parametrize("script", ["pca_builder.py", "train.py", "evaluate.py"])
def test_a_script_s_own_exit_code_and_line(run_script, tmp_path, script):
    """As the cases above, but as a process: one for each script; and of flags that argparse refuses."""
    refused = run_script(script, "--dataset", "300v", expect=2)
    assert refused.stderr.splitlines()[-1].startswith(f"{script}: error: ")
    assert "Traceback" not in refused.stderr
    flags = ["--dataset", "300w", "--data-dir", tmp_path / "absent"]
    if script == "evaluate.py":
        flags.append(tmp_path / "best.keras")
    done = run_script(script, *flags, expect=2, cwd=tmp_path)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'absent'}: no such folder")


def test_a_model_that_cannot_be_read_ends_the_process(run_script, small_runs, faces_300w, tmp_path):
    """TensorFlow is loaded by then; its own words do not come."""
    content = (small_runs["300w"].folder / "best.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[:1000])
    flags = ["--dataset", "300w", "--data-dir", faces_300w, "--output", tmp_path / "out"]
    done = run_script("evaluate.py", tmp_path / "cut.keras", *flags, expect=2)
    partial, error = done.stderr.splitlines()
    assert INFORMATION.match(partial)
    assert error.startswith(f"error: {tmp_path / 'cut.keras'}: not a model")


@pytest.mark.parametrize("output", ["reader gone", "closed", "full"])
@pytest.mark.parametrize("printed", [1, 20_000])
def test_output_that_nobody_takes(output, printed):
    """As `| head -1`, `>&-` and `> /dev/full` do it, of a few lines (lost at the end) and of many (while running)."""
    code = f"from asmnet_tf import cli; cli.run(lambda args: [print('line') for _ in range({printed})], lambda: None)"
    if output == "closed":
        command, stdout = ["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code], None
    else:
        command, stdout = [sys.executable, "-c", code], open("/dev/full", "wb") if output == "full" else None  # noqa: SIM115
    if output == "reader gone":
        reader, writer = os.pipe()
        os.close(reader)
        stdout = os.fdopen(writer, "wb")
    run = {"cwd": REPO, "env": {**os.environ, "PYTHONUNBUFFERED": ""}, "text": True, "timeout": 60}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, **run)
    assert done.returncode == {"reader gone": 141, "closed": 0, "full": 2}[output]
    assert done.stderr.count("\n") == (output == "full")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("evaluate", []),
        ("evaluate", ["--predictions", "file.npz"]),
        ("train", ["--epochs", "0"]),
        ("train", ["--dataset", "300v"]),
        ("train", ["--lr", "nan"]),
        ("train", ["--val-fraction", "1"]),
        ("train", ["--cache", "ram"]),
        ("train", ["--arch", "mobilenet_v2", "--head", "spatial"]),
        ("train", ["--loss", "mse", "--alpha", "9", "9", "9"]),
        ("train", ["--extra-weight", "7"]),
        ("pca_builder", ["--pca-percent", "much"]),
        ("pca_builder", ["--pca-percent", "90", "0"]),
        ("pca_builder", ["--pca-percent", "101"]),
        ("pca_builder", ["--shapes", "shapes.npy", "--data-dir", "data/300w"]),
    ],
)
def test_flags_that_argparse_refuses(capsys, script, flags):
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as end:
        module.parse_args(flags)
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
