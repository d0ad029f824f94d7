"""Schedules and what a run leaves on disk, without training anything real."""

import json
from dataclasses import replace

import numpy as np
import pytest

import train
from asmnet_tf import cli
from asmnet_tf.config import DEFAULT_MODEL, FROZEN_LR, RECIPES, Phase
from asmnet_tf.data.annotations import read_samples, with_pose
from asmnet_tf.data.layouts import DATASETS
from asmnet_tf.evaluation.truth import held_out_fraction
from asmnet_tf.files import InputError
from asmnet_tf.network.loss import alpha_at
from asmnet_tf.shape.shape_model import ShapeModel
from asmnet_tf.training.run_folder import best_line, check_flags, content_hashes, make_sidecar, write_arguments
from asmnet_tf.training.schedule import Plan, as_flags, phase_at, phases_of_run


def flags_of(argv):
    args = train.parse_args(argv)
    return vars(args) | as_flags(args.phases)


def test_constant_schedule_with_inverse_time_decay():
    plan = Plan(replace(RECIPES["paper"], phases=(Phase(1, lr=1e-2),)), 0, steps_per_epoch=100)
    assert plan.lr_at(0) == 1e-2
    assert plan.lr_at(100_000) == pytest.approx(1e-2 / 2)


def test_cosine_schedule_with_warm_up():
    recipe = replace(RECIPES["tuned"], phases=(Phase(11, lr=1.0),), warmup_epochs=1.0)
    plan = Plan(recipe, 0, steps_per_epoch=10)
    assert [plan.lr_at(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert plan.lr_at(10) == pytest.approx(1.0)
    assert plan.lr_at(60) == pytest.approx(0.5)
    assert plan.lr_at(110) == pytest.approx(0.0, abs=1e-12)
    assert np.all(np.diff([plan.lr_at(s) for s in range(10, 111)]) < 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [2.0] * 3 + [1.0] * 3 + [0.5] * 3),
        (["--alpha-schedule", "epochs"], [2.0] * 3 + [1.0] * 3 + [0.5] * 3),
        (["--alpha-schedule", "release"], [2.0] * 2 + [1.0] * 2 + [0.5] * 5),  # thirds of 6 steps
        (["--alpha-schedule", "release", "--alpha", "3", "2", "0"], [3.0] * 2 + [2.0] * 2 + [0.0] * 5),
    ],
)
def test_alpha_of_a_run_with_9_epochs_of_6_steps(tmp_path, flags, expected):
    args = train.parse_args(["--recipe", "paper", "--epochs", "9", *flags])
    plan = Plan(cli.recipe_of(args), 0, steps_per_epoch=6, alpha_schedule=args.alpha_schedule)
    assert [alpha_at(epoch, plan.alpha_length, plan.recipe.alpha) for epoch in range(plan.epochs)] == expected
    write_arguments(tmp_path, flags_of(["--recipe", "paper", *flags]), {})
    recorded = json.loads((tmp_path / "args.json").read_text())["flags"]["alpha_schedule"]
    assert recorded == ("release" if "release" in flags else "epochs")


# --- phases -----------------------------------------------------------------------------------------------------------


def phases_of(*argv):
    return train.parse_args(argv).phases


def test_flags_replace_the_phases_of_the_recipe_by_one():
    first = RECIPES["tuned"].phases[0]
    assert phases_of() == RECIPES["tuned"].phases
    assert phases_of("--pose-weight", "3") == tuple(replace(p, pose_weight=3.0) for p in RECIPES["tuned"].phases)
    assert phases_of("--lr", "8e-4", "--epochs", "36") == (replace(first, epochs=36, lr=8e-4, input_size=224),)
    assert phases_of("--input-size", "64", "--augment", "none") == (replace(first, input_size=64, augment="none"),)
    assert phases_of("--recipe", "paper") == (Phase(150, lr=1e-2, augment="paper"),)
    (frozen,) = phases_of("--freeze-batch-norm", "--weights", "w.h5")
    assert (frozen.freeze_batch_norm, frozen.lr) == (True, FROZEN_LR)
    recorded = flags_of(["--recipe", "paper", "--epochs", "3"])
    assert [recorded[key] for key in ("epochs", "lr", "input_size", "augment", "freeze_batch_norm", "pose_weight")] == [
        *(3, 1e-2, 224, "paper", False, 0.5)
    ]


def test_fine_tuning_starts_from_the_shipped_model_with_its_batch_norm():
    args = train.parse_args(["--recipe", "finetune"])
    assert (args.weights, args.crop, args.batch_size) == (DEFAULT_MODEL, "square", 8)
    assert args.phases == RECIPES["finetune"].phases
    assert train.parse_args(["--recipe", "finetune", "--weights", "other.keras"]).weights == "other.keras"
    (phase,) = train.parse_args(["--recipe", "finetune", "--input-size", "64", "--epochs", "3"]).phases
    assert (phase.epochs, phase.input_size, phase.lr, phase.freeze_batch_norm) == (3, 64, FROZEN_LR, True)


def test_fine_tuning_tells_before_and_after():
    rows = [{"epoch": epoch, "val_nme_pct": value} for epoch, value in enumerate((8.0, None, 6.0, 7.0))]
    assert best_line(rows, 20) == "best validation NME 6.00 % (epoch 2) on 20 held-out faces, 8.00 % before"
    assert "--val-fraction" in best_line(rows, 2)


def test_held_out_faces_that_the_start_weights_saw_are_told(tmp_path, capsys):
    def sidecar(weights, *flags):
        made = make_sidecar(flags_of(["--weights", str(weights), *flags]), DATASETS["300w"], commit="abc")
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.keras"
        path.touch()
        path.with_suffix(".json").write_text(json.dumps(made))
        return path, capsys.readouterr().err

    clean, told = sidecar("imagenet")
    assert not told
    assert not sidecar(clean)[1]
    assert held_out_fraction([sidecar(clean)[0]], DATASETS["300w"]) == 0.1
    whole, told = sidecar(clean, "--val-fraction", "0")
    assert not told
    seen, told = sidecar(whole)
    assert str(whole) in told
    with pytest.raises(InputError, match=whole.name):
        held_out_fraction([seen], DATASETS["300w"])
    assert str(seen) in sidecar(seen)[1]  # and so on
    assert sidecar(whole, "--val-fraction", "0")[1] == ""
    assert "asmnet_300w_112_60" in sidecar("asmnet_300w_112_60")[1]  # held out by another rule


def test_the_term_is_used_where_it_is_asked_for():
    asked = ([], ["--recipe", "paper"], ["--alpha", "1", "0", "0"], ["--shape-model", "s.npz"])
    assert [flags_of(argv)["loss"] for argv in asked] == ["mse", "asm", "asm", "asm"]


def test_frozen_batch_norm_at_a_high_rate_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_args(["--freeze-batch-norm", "--weights", "w.h5", "--lr", "3e-4"])
    assert ended.value.code == 2
    assert "--lr 0.0003" in capsys.readouterr().err
    with pytest.raises(ValueError, match="freeze-batch-norm"):
        replace(RECIPES["tuned"].phases[0], freeze_batch_norm=True)


def test_rates_follow_the_replicas_but_a_frozen_phase_stays_where_it_is():
    live, frozen = Phase(1, lr=1e-3), Phase(2, freeze_batch_norm=True)
    assert [p.lr for p in phases_of_run((live, frozen), fine_tuning=False, scale=8)] == [8e-3, FROZEN_LR]
    (alone,) = phases_of_run((live, frozen), fine_tuning=True, scale=1)
    assert (alone.epochs, alone.lr) == (2, 2e-5)


def test_plans_of_three_phases():
    """Epochs are those of the whole run, the learning rate is that of the phase; best.keras is of the last size."""
    phases = (Phase(10, lr=1.0, input_size=32), Phase(4, lr=0.5, input_size=64), Phase(6, lr=0.1, input_size=64))
    plans = [Plan(replace(RECIPES["tuned"], phases=phases), number, steps_per_epoch=5) for number in range(3)]
    assert [(p.start, p.end, p.epochs, p.best_from, p.alpha_length) for p in plans] == [
        *((0, 10, 20, 0, 20), (10, 14, 20, 10, 20), (14, 20, 20, 10, 20))
    ]
    assert [plan.lr_at(plan.warmup_steps) for plan in plans] == [1.0, 0.5, 0.1]
    assert all(plan.lr_at(5 * plan.left[0].epochs) == pytest.approx(0, abs=1e-9) for plan in plans)
    assert [phase_at(phases, done) for done in (0, 9, 10, 13, 14, 19, 20)] == [0, 0, 1, 1, 2, 2, 2]
    assert plans[0].time_left(0.5, 60.0) == (  # 4 times the area
        "about 50 min on this machine: 10 epochs at 32 px, 4 epochs at 64 px, 6 epochs at 64 px"
    )
    assert plans[1].time_left(12.0, 1800.0) == "about 4.0 h on this machine: 2 epochs at 64 px, 6 epochs at 64 px"


# --- args.json --------------------------------------------------------------------------------------------------------


def test_a_deterministic_run_keeps_its_number_of_threads(tmp_path):
    write_arguments(tmp_path / "fixed", flags_of(["--deterministic", "--threads", "2"]), {})
    check_flags(tmp_path / "fixed", flags_of(["--deterministic", "--threads", "2", "--resume"]))
    with pytest.raises(
        InputError, match=r"args\.json: the run has --threads 2, now it is 4\. Resume with the same flags"
    ):
        check_flags(tmp_path / "fixed", flags_of(["--deterministic", "--threads", "4", "--resume"]))
    with pytest.raises(InputError, match="the run has --deterministic True, now it is False"):
        check_flags(tmp_path / "fixed", flags_of(["--threads", "2", "--resume"]))
    write_arguments(tmp_path / "free", flags_of(["--threads", "2"]), {})
    check_flags(tmp_path / "free", flags_of(["--threads", "4", "--resume"]))


@pytest.mark.parametrize("epochs", ["2", "4"])
def test_another_number_of_epochs_is_another_run(tmp_path, epochs):
    write_arguments(tmp_path, flags_of(["--epochs", "3"]), {})
    (tmp_path / "last.keras").touch()
    with pytest.raises(InputError, match=f"--epochs 3, now it is {epochs}.*--weights .*last.keras --name NEW"):
        check_flags(tmp_path, flags_of(["--epochs", epochs, "--resume"]))


def contents(folder, faces_300w, bias=0.0, labels=True, weights=b"w", mean=0.0, spec=DATASETS["300w"]):
    """`content_hashes` of a run whose files lie in `folder`."""
    folder.mkdir()
    samples = read_samples(DATASETS["300w"], faces_300w, "train", 4, quiet=True)
    lines = [f"{s.name},{i + bias},2,3" for i, s in enumerate(samples)]
    (folder / "poses.csv").write_text("\n".join(["name,yaw,pitch,roll", *lines]))
    samples = with_pose(samples, DATASETS["300w"], faces_300w, folder / "poses.csv" if labels else None)
    ShapeModel(np.full(136, mean), np.eye(136)[:, :2], np.ones(2), "300w", 4, 90, "square", 1.2).save(folder / "s.npz")
    (folder / "w.keras").write_bytes(weights)
    shape_model = ShapeModel.load(folder / "s.npz")
    return content_hashes(samples, folder if labels else None, shape_model, str(folder / "w.keras"), spec)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"bias": 0.5}, "--pose-labels"),
        ({"labels": False}, "--pose-labels"),
        ({"weights": b"v"}, "--weights"),
        ({"mean": 0.1}, "--shape-model"),
        ({"spec": replace(DATASETS["300w"], flip_pairs=((0, 2),))}, "--dataset"),
    ],
)
def test_a_run_goes_on_from_the_same_content_wherever_it_lies(tmp_path, faces_300w, change, told):
    args = flags_of(["--resume"])
    write_arguments(tmp_path, args, {}, content=contents(tmp_path / "before", faces_300w))
    now = contents(tmp_path / "moved", faces_300w, **change)
    if told is None:
        check_flags(tmp_path, args, now)
        return
    with pytest.raises(InputError, match=rf"args\.json: {told} changed since the run began"):
        check_flags(tmp_path, args, now)


def test_start_weights_that_are_left_out_are_named_before_what_follows_from_them(tmp_path):
    (tmp_path / "last.keras").touch()
    begun = flags_of(["--weights", "asmnet_300w", "--recipe", "tuned"])
    write_arguments(tmp_path, begun | {"epochs": 80}, {}, content={"weights": "sha256:1"})
    with pytest.raises(InputError, match="the run has --weights asmnet_300w, now it is none"):
        check_flags(tmp_path, flags_of(["--recipe", "tuned", "--resume"]), {"weights": "none"})


def test_a_run_goes_on_with_the_same_faces_only(tmp_path):
    args = flags_of([])
    write_arguments(tmp_path, args, {"train": 40, "skipped": 1})
    write_arguments(tmp_path, args, {"train": 40, "skipped": 1})
    with pytest.raises(InputError, match=r"'train': 40.*'train': 41.*Resume with the same data"):
        write_arguments(tmp_path, args, {"train": 41, "skipped": 0})
    assert len(json.loads((tmp_path / "args.json").read_text())["resumed_from"]) == 1
