"""Training steps of two worker processes with one core each against one process with one core.

    python tests/benchmarks/workers.py [STEPS]

Each process is bound to a core of its own (Linux). The batch of a worker is the batch of the one process, so that two
workers do twice the work in a step: the efficiency is images/s of both over twice those of one, and the rest is what
exchanging the gradients costs. The two ways take turns.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import harness
import numpy as np
from harness import Row

BATCH = 16  # for each process
SIZE = 112
TURNS = 3
STEPS = 20


def measure(steps: int) -> dict[str, float]:
    """Returns images/s of all workers together, of the steps after the first two."""
    harness.use(harness.OURS)
    import training_parts

    from asmnet_tf import config
    from asmnet_tf.network import loss
    from asmnet_tf.network.asmnet import build_asmnet
    from asmnet_tf.training import trainer
    from asmnet_tf.training.distribution import joined
    from asmnet_tf.training.schedule import Plan

    with joined("multiworker" if "TF_CONFIG" in os.environ else "one", threads=1) as replicas:
        recipe = config.RECIPES["tuned"]
        with replicas.strategy.scope():
            model = build_asmnet(68, SIZE, recipe.dropout, 0.0)
        loss = loss.MultiTaskLoss(training_parts.SPEC.flip_map, training_parts.random_shape_model(), "wing")
        plan = Plan(recipe, 0, steps_per_epoch=100)
        batches = type("Batches", (), {"batch_size": BATCH * replicas.count})
        trainer = trainer.Trainer(model, batches, None, loss, plan, training_parts.SPEC, Path(), {}, replicas)
        batch = replicas.split(training_parts.random_batch(BATCH, SIZE))
        seconds = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            float(trainer.step(batch)["loss"])
            seconds.append(time.perf_counter() - start)
        return {"images_per_s": BATCH * replicas.count / float(np.median(seconds[2:]))}


def start(core: int, steps: int, task: dict | None) -> subprocess.Popen:
    """Starts a worker process on one core."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    if task is not None:
        environment["TF_CONFIG"] = json.dumps(task)
    command = ["taskset", "-c", str(core), sys.executable, __file__, "--worker", str(steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=harness.ROOT)


def images_per_s(cores: list[int], steps: int) -> float:
    """Returns images/s of one process for each core, together."""
    tasks: list[dict | None] = [None]
    if len(cores) > 1:
        sockets = [socket.socket() for _ in cores]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
        for one in sockets:
            one.close()
        tasks = [
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}} for i in range(len(addresses))
        ]
    processes = [start(core, steps, task) for core, task in zip(cores, tasks)]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a worker failed; see above")
    return json.loads(printed[0].strip().splitlines()[-1])["images_per_s"]


def rows(steps: int = STEPS) -> list[Row]:
    """Measures one and two processes in turns."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    turns = [(images_per_s(cores[:1], steps), images_per_s(cores, steps)) for _ in range(TURNS)]
    one, two = (float(np.median(values)) for values in zip(*turns))
    efficiency = float(np.median([b / (2 * a) for a, b in turns]))
    detail = f"{two:.1f} against {one:.1f} images/s, {SIZE} px, batch {BATCH} a process; efficiency {efficiency:.2f}"
    return [Row("two workers, one core each", "one process, one core", 2 * efficiency, "", detail)]


if __name__ == "__main__":
    if "--worker" in sys.argv:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        chosen = [int(argument) for argument in sys.argv[1:] if argument.isdecimal()]
        harness.main(lambda: rows(*chosen))
