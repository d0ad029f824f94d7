"""The scripts in forked processes that have TensorFlow imported, with a small network or ASMNet: seconds a start."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
from conftest import REPO, TIMEOUT_S

PRELOADED = ["train", "asmnet_tf.training.trainer", "asmnet_tf.shape.shape_model", "asmnet_tf.evaluation.figures"]
PRELOADED += ["asmnet_tf.formats.exporters", "asmnet_tf.evaluation.scoring", "asmnet_tf.evaluation.report"]


def small_network(num_landmarks, input_size, dropout=0.2, **_):
    """In ASMNet's place: a start of train.py then costs two seconds instead of twenty, for nothing is traced."""
    import keras

    layers = keras.layers
    image = keras.Input((input_size, input_size, 3))
    features = layers.Conv2D(16, 3, strides=2, use_bias=False, name="Conv1")(layers.Rescaling(1 / 255)(image))
    features = layers.ReLU()(layers.BatchNormalization(name="bn_Conv1")(features))
    features = layers.Dense(256, name="features")(layers.GlobalAveragePooling2D()(features))
    features = layers.Dropout(dropout)(features)
    heads = ((2 * num_landmarks, "O_L"), (3, "O_P"))
    heads = [layers.Dense(units, name=name, dtype="float32")(features) for units, name in heads]
    return keras.Model(image, heads)


def run_commands(commands: list[tuple[str, list[str]]], folder: str | Path, small: bool, figures: bool) -> None:
    """Runs commands of the scripts, each as if it were the script's own, and writes `results.json` into a folder.

    It holds exit codes, what each printed, and the modules imported by the end; an exception that escapes is a
    traceback and exit code 1, as in Python.
    """
    from asmnet_tf import cli

    if small:
        from asmnet_tf.network.asmnet import BUILDERS

        BUILDERS["asmnet"] = small_network
    if not figures:
        from asmnet_tf.evaluation import figures as drawing
        from asmnet_tf.evaluation import report

        report._write_figures, drawing.training_curves = lambda *_: [], lambda *_: None
    done = []
    for script, argv in commands:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                module = importlib.import_module(script)
                cli.run(module.main, lambda module=module, argv=argv: module.parse_args(argv))
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
                code = 1
        done.append([code, out.getvalue(), err.getvalue()])
    results = json.dumps({"done": done, "modules": sorted(sys.modules)})
    (Path(folder) / "results.json").write_text(results)


def _run_commands(commands, folder: Path, *how: bool) -> None:
    os.chdir(folder)
    with open(folder / "printed", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_commands(commands, folder, *how)


def _train(
    argv: list[str], printed: Path, small: bool, fatal_write: int | None, last_step: int | None, phases: tuple | None
) -> None:
    """A process: train.py, which kills itself before its `fatal_write`-th renaming, has SIGTERM in its `last_step`."""
    import train
    from asmnet_tf import cli
    from asmnet_tf.config import RECIPES
    from asmnet_tf.network.asmnet import BUILDERS
    from asmnet_tf.training.distribution import Replicas

    with open(printed, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    replace, writes = os.replace, itertools.count(1)

    def fatal(source, target):
        if fatal_write is not None and next(writes) >= fatal_write:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    split, steps = Replicas.split, itertools.count(1)

    def preempted(replicas, batch):
        if isinstance(batch, dict) and next(steps) == last_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return split(replicas, batch)

    os.replace, Replicas.split = fatal, preempted
    if phases:
        RECIPES["tuned"] = dataclasses.replace(RECIPES["tuned"], phases=phases)
    if small:
        BUILDERS["asmnet"] = small_network
    cli.run(train.main, lambda: train.parse_args(argv))


class Forked:
    """Starts such processes, one at a time."""

    def __init__(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{Path(__file__).parent}")
            for name in ("TF_CPU_ALLOCATOR_USE_BFC", "TF_ENABLE_ONEDNN_OPTS"):  # as `cli.run` sets them
                patch.setenv(name, "true" if name.endswith("BFC") else "1")
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload(PRELOADED)
            warm_up = self.context.Process(target=int)  # waits for the imports
            warm_up.start()
            warm_up.join()

    def run_commands(self, commands: list[tuple[str, list[str]]], folder: Path, *how: bool) -> None:
        """`run_commands` in a process of its own, whose working folder is `folder`."""
        process = self.context.Process(target=_run_commands, args=(commands, folder, *how))
        process.start()
        process.join(TIMEOUT_S)
        process.kill()
        process.join()
        assert process.exitcode == 0, (folder / "printed").read_text()[-6000:]

    def train(
        self,
        argv,
        printed: Path,
        small=True,
        fatal_write: int | None = None,
        seconds: float | None = None,
        last_step: int | None = None,
        phases: tuple | None = None,
    ) -> int:
        """Runs train.py, with these `phases` of `tuned`, `seconds` at most and then killed; returns 0 or -SIGKILL."""
        how = (small, fatal_write, last_step, phases)
        process = self.context.Process(target=_train, args=([str(arg) for arg in argv], printed, *how))
        process.start()
        process.join(seconds or TIMEOUT_S)
        process.kill()  # of no effect where it has ended
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), printed.read_text()
        return process.exitcode
