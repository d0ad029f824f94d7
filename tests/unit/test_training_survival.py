"""Stopping, resuming, full disks and numbers that are not finite, with a network of a few layers in this process."""

import errno
import json
import os
import signal
import time
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from asmnet_tf import files
from asmnet_tf.config import AUGMENTATIONS, RECIPES, Phase
from asmnet_tf.data.annotations import read_samples, with_pose
from asmnet_tf.data.batches import TrainingBatches
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.data.patches import FacePatches
from asmnet_tf.evaluation import figures
from asmnet_tf.files import InputError
from asmnet_tf.network.loss import MultiTaskLoss
from asmnet_tf.training.run_folder import Progress, best_line, load_state, variables_by_path
from asmnet_tf.training.schedule import Plan
from asmnet_tf.training.trainer import Trainer

SPEC = DATASETS["300w"]
SIZE, EPOCHS, STEPS = 16, 3, 4


@pytest.fixture(scope="module")
def faces(faces_300w):
    samples = with_pose(read_samples(SPEC, faces_300w, "train", 24, quiet=True), SPEC, faces_300w, None)
    train, held_out = samples[:16], samples[16:]
    return [FacePatches(part, "square", 1.2, SIZE, cache="memory") for part in (train, held_out)]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Drawing curves.png costs more than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "training_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def new_trainer(faces):
    def make(folder, xla=False, dropout=0.5, steps=STEPS) -> Trainer:
        keras.utils.set_random_seed(0)
        image = keras.Input((SIZE, SIZE, 3))
        features = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
        features = keras.layers.ReLU()(keras.layers.BatchNormalization()(features))
        features = keras.layers.Dropout(dropout)(keras.layers.GlobalAveragePooling2D()(features))
        heads = [keras.layers.Dense(units, name=name)(features) for units, name in ((136, "O_L"), (3, "O_P"))]
        recipe = replace(RECIPES["tuned"], phases=(Phase(EPOCHS, lr=0.01),), weight_decay=0.01, ema=0.9)
        plan = Plan(recipe, 0, STEPS, xla=xla)
        train, held_out = faces
        batches = TrainingBatches(train, AUGMENTATIONS["tuned"], len(train) // steps, seed=0)
        loss = MultiTaskLoss(SPEC.flip_map, None, "mse")
        return Trainer(keras.Model(image, heads), batches, held_out, loss, plan, SPEC, folder, {})

    return make


def state(folder) -> tuple[dict, dict]:
    """The arrays and the progress of state.npz, without what the clock says."""
    arrays = files.read_arrays(folder / "state.npz")
    progress = json.loads(str(arrays.pop("progress")))
    for row in progress["rows"]:
        del row["seconds"], row["images_per_s"]
    return {name: array.tobytes() for name, array in arrays.items()}, progress


def go_on(trainer: Trainer) -> Trainer:
    trainer.go_on(*load_state(trainer.folder, EPOCHS))
    return trainer


def before_step(trainer: Trainer, number: int, act) -> None:
    """Lets `act(batch)` change the batch of that step, counted from 1 over this trainer's life."""
    step, count = trainer.step, [0]

    def stepped(batch):
        count[0] += 1
        return step(act(batch) if count[0] == number else batch)

    trainer.step = stepped


@pytest.fixture(scope="module")
def whole(new_trainer, tmp_path_factory):
    """The folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    new_trainer(folder).run()
    return folder


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored, and a run leaves an ignored signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code", "step"), [(signal.SIGTERM, 0, 6), (signal.SIGINT, 130, 8)])
def test_a_stopped_run_saves_its_step_and_goes_on_exactly(new_trainer, whole, tmp_path, number, code, step):
    stopped = new_trainer(tmp_path)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    before_step(stopped, step, lambda batch: signal.raise_signal(number) or batch)
    with pytest.raises(files.Stopped, match="go on with --resume") as ended:
        stopped.run()
    assert ended.value.code == code
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    progress = state(tmp_path)[1]
    assert (progress["epoch"], progress["step"]) == (1, step - STEPS)

    resumed = go_on(new_trainer(tmp_path))
    done = []
    before_step(resumed, 1, lambda batch: done.append(int(resumed.optimizer.iterations)) or batch)
    resumed.run()
    assert done == [step]
    assert state(tmp_path) == state(whole)


def with_nan(batch):
    return batch | {"landmarks_norm": tf.fill(batch["landmarks_norm"].shape, np.float32("nan"))}


def with_huge_numbers(batch):
    """A finite loss whose gradient's squared norm is not: Adam would keep an infinite second moment for ever."""
    return batch | {"landmarks_norm": tf.fill(batch["landmarks_norm"].shape, 1e19)}


@pytest.mark.parametrize("spoil", [with_nan, with_huge_numbers])
def test_what_is_not_finite_reaches_neither_weights_nor_files(new_trainer, tmp_path, spoil):
    trainer = new_trainer(tmp_path)
    before_step(trainer, 6, spoil)
    with pytest.raises(InputError, match=r"not finite in epoch 2, step 2\. The last good model is last\.keras"):
        trainer.run()
    for variable in (*trainer.model.variables, *trainer.optimizer.variables):
        assert np.isfinite(np.asarray(variable)).all(), variable.path
    assert state(tmp_path)[1]["epoch"] == 1
    assert all(np.isfinite(w).all() for w in keras.models.load_model(tmp_path / "last.keras").get_weights())


@pytest.mark.parametrize("file", ["last.keras", "state.npz"])
def test_a_full_disk_loses_nothing_of_the_epochs_before(new_trainer, whole, tmp_path, monkeypatch, file):
    trainer, rename = new_trainer(tmp_path), os.replace

    def full_in_epoch_2(source, target):
        if trainer.progress.epoch == 2 and os.path.basename(target) == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_in_epoch_2)
        with pytest.raises(InputError, match=rf"{file}: cannot be written \(No space left on device\)"):
            trainer.run()
    assert state(tmp_path)[1]["epoch"] == 1
    keras.models.load_model(tmp_path / "last.keras")
    assert not list(tmp_path.glob(".writing-*"))
    resumed = go_on(new_trainer(tmp_path))
    resumed.run()
    assert state(tmp_path) == state(whole)


def rekey(arrays: dict, old: str, new: str) -> None:
    arrays[new] = arrays.pop(old)


def put_text_for_a_loss(arrays: dict) -> None:
    progress = json.loads(str(arrays["progress"]))
    progress["rows"][0]["loss"] = "abc"
    arrays["progress"] = json.dumps(progress)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda arrays: rekey(arrays, "O_L/kernel", "O_Q/kernel"), ["O_L/kernel is new", "O_Q/kernel is not in"]),
        (lambda arrays: arrays.update({"O_P/bias": np.zeros(4)}), [r"O_P/bias is \(4,\), here \(3,\)"]),
        (lambda arrays: arrays.pop("adam_w/iteration"), ["adam_w/iteration is new"]),
        (lambda arrays: arrays.update({"O_P/bias": np.full(3, np.nan)}), ["damaged state"]),
        (put_text_for_a_loss, ["damaged state"]),
        (
            lambda arrays: rekey(arrays, "O_L/kernel", "v0"),
            ["an earlier version", "--weights .*last.keras --name"],
        ),
    ],
)
def test_a_state_of_another_model_is_refused_by_name(new_trainer, whole, tmp_path, change, told):
    arrays = files.read_arrays(whole / "state.npz")
    change(arrays)
    np.savez(tmp_path / "state.npz", **arrays)
    for words in told:
        with pytest.raises(InputError, match=words):
            go_on(new_trainer(tmp_path))


def test_a_state_stands_under_the_paths_of_its_variables(new_trainer, whole, tmp_path):
    trainer = new_trainer(tmp_path)  # the n-th that this process builds: Keras calls its layers conv2d_n
    stored = files.read_arrays(whole / "state.npz").keys() - {"progress"}
    assert stored == variables_by_path(trainer.model, trainer.optimizer).keys()
    assert len(stored) == len(trainer.model.variables) + len(trainer.optimizer.variables)
    assert {"conv2d/kernel", "O_L/bias", "adam_w/conv2d_kernel_momentum", "adam_w/iteration"} <= stored


def test_every_epoch_tells_its_images_per_second(new_trainer, tmp_path):
    """Also one of a single step, the first of which builds the graph, and one resumed after its last step."""
    trainer = new_trainer(tmp_path, steps=1)
    for epoch in range(2):
        before = time.perf_counter()
        row = trainer._train_epoch(epoch, trainer.batches.iterate(epoch))
        slowest = trainer.batches.batch_size / (time.perf_counter() - before)
        assert slowest <= row["images_per_s"] < 100 * slowest
        trainer.progress = Progress()
    stopped = new_trainer(tmp_path)
    before_step(stopped, STEPS, lambda batch: signal.raise_signal(signal.SIGTERM) or batch)
    with pytest.raises(files.Stopped):
        stopped.run()
    resumed = go_on(new_trainer(tmp_path))
    assert resumed.progress.step == STEPS
    row = resumed._train_epoch(0, iter(()))
    assert row["images_per_s"] == pytest.approx((STEPS - 1) * stopped.batches.batch_size / stopped.progress.timed[1])


def test_fewer_epochs_than_are_done_are_refused(new_trainer, whole, tmp_path):
    with pytest.raises(InputError, match=f"{EPOCHS} epochs are done, --epochs is {EPOCHS - 1}"):
        load_state(whole, EPOCHS - 1)


def test_xla_computes_the_same_step(new_trainer, tmp_path):
    """Without dropout: from one seed the two draw different numbers."""
    trainers = [new_trainer(tmp_path / name, xla=name == "xla", dropout=0.0) for name in ("plain", "xla")]
    losses = [t._train_epoch(0, t.batches.iterate())["loss"] for t in trainers]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for a, b in zip(*(t.model.get_weights() for t in trainers)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_weights_it_starts_from_are_epoch_0_and_may_stay_the_best(new_trainer, tmp_path, capsys):
    trainer = new_trainer(tmp_path)
    kernel = trainer.model.get_layer("O_L").kernel
    before = [w.copy() for w in trainer.model.get_weights()]
    before_step(trainer, 2, lambda batch: (kernel.assign(kernel * 0 + 50.0), batch)[1])  # ruined on the way
    trainer.run(score_start=True)
    assert [row["epoch"] for row in trainer.progress.rows] == list(range(EPOCHS + 1))
    start, last = trainer.progress.rows[0]["val_nme_pct"], trainer.progress.rows[-1]["val_nme_pct"]
    assert trainer.progress.best_nme == start < last
    for ours, theirs in zip(before, keras.models.load_model(tmp_path / "best.keras").get_weights()):
        assert np.array_equal(ours, theirs)
    line = best_line(trainer.progress.rows, trainer.faces_validated)
    assert f"{start:.2f} % (epoch 0)" in line
    assert f"ended worse than it began: {last:.2f} %" in line
    assert "epoch 0" in capsys.readouterr().out
    again = go_on(new_trainer(tmp_path))
    assert (again.progress.epoch, len(again.progress.rows), again.progress.best_nme) == (EPOCHS, EPOCHS + 1, start)


def test_a_run_killed_in_its_first_epoch_keeps_the_score_of_its_start(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path)
    before_step(trainer, 2, lambda batch: (os.kill(os.getpid(), signal.SIGTERM), batch)[1])
    with pytest.raises(files.Stopped):
        trainer.run(score_start=True)
    again = go_on(new_trainer(tmp_path))
    again.run(score_start=True)
    assert [row["epoch"] for row in again.progress.rows] == list(range(EPOCHS + 1))


def test_what_is_not_frozen_is_still_re_estimated(new_trainer, tmp_path):
    trainer = new_trainer(tmp_path)
    (norm,) = (layer for layer in trainer.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    before = norm.moving_mean.numpy()
    trainer._reestimate(0, 8)
    assert not np.allclose(norm.moving_mean.numpy(), before)
