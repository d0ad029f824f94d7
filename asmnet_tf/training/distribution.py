r"""Where training runs: one device, all GPUs of a machine, or several machines, through tf.distribute (TensorFlow).

A worker is a process, on a machine of its own or not; a replica is a device of a worker, with a copy of the weights.
Worker 0 is the chief: it alone writes files. TensorFlow is imported where it is needed, so that a wrong flag is told
at once.

$TF_CONFIG tells a worker which one it is, and the addresses of all. A cluster under Slurm, one task on each node with
all its GPUs: `srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash worker.sh --batch-size 512 ...` with this worker.sh.
`scontrol` lists the nodes in the order of SLURM_PROCID (by name, n10 would come before n2):

    hosts=$(scontrol show hostnames "$SLURM_STEP_NODELIST" |
        awk -v port=$((10000 + SLURM_JOB_ID % 20000)) '{printf "%s\"%s:%d\"", (NR > 1 ? "," : ""), $1, port + NR}')
    export TF_CONFIG='{"cluster": {"worker": ['$hosts']}, "task": {"type": "worker", "index": '$SLURM_PROCID'}}'
    exec python train.py --strategy multiworker "$@"
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from asmnet_tf.files import ENDINGS, EXIT_TRY_AGAIN, InputError, first_line, last_words, refusing

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# for one all-reduce: as long as a worker may lag behind, at worst while it decodes all its images for the first time
COLLECTIVE_TIMEOUT_S = 1800
_SEED_STRIDE = 0x9E3779B1  # between the random streams of replicas
_LOST = re.compile("collective|coordination|heartbeat|barrier|socket closed|connection (reset|refused)", re.IGNORECASE)


@dataclass(eq=False)
class Replicas:
    """The replicas that take part in a run, and what they exchange; by default this process alone.

    kind, devices: --strategy and --devices. worker, workers: number of this process, and of all.
    """

    kind: str = "one"
    devices: Sequence[str] | None = None
    worker: int = 0
    workers: int = 1

    @functools.cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """The tf.distribute strategy, in whose scope the variables of the training step are created.

        Made when it is first asked for. Raises: InputError for a device that is not there.
        """
        import tensorflow as tf

        names, physical = self.devices or (), tf.config.list_physical_devices
        if self.kind == "one" or (self.kind == "auto" and not names and len(physical("GPU")) < 2):
            return tf.distribute.get_strategy()
        cpus = 1 + max((int(name[4:]) for name in names if name.startswith("CPU:")), default=0)
        if cpus > 1:
            logical = [tf.config.LogicalDeviceConfiguration()] * cpus
            tf.config.set_logical_device_configuration(physical("CPU")[0], logical)
        there = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
        for name in names:
            if name not in there:
                raise InputError(f"--devices {name}: not on this machine, which has {', '.join(there)}.")
        return tf.distribute.MirroredStrategy(self.devices)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""
        return self.worker == 0

    @property
    def count(self) -> int:
        """How many replicas there are, those of all workers together."""
        return self.strategy.num_replicas_in_sync

    def part(self, count: int) -> slice:
        """Returns which of `count` things are this worker's: contiguous, without overlap, in the order of workers."""
        return slice(count * self.worker // self.workers, count * (self.worker + 1) // self.workers)

    def split(self, batch: Any) -> Any:
        """Splits this worker's batch, a structure of arrays (n, ...), among its replicas, for `strategy.run`."""
        import tensorflow as tf

        local = self.count // self.workers
        if local == 1:
            return batch

        def rows(context: tf.distribute.ValueContext) -> Any:
            part = Replicas(worker=context.replica_id_in_sync_group % local, workers=local).part
            return tf.nest.map_structure(lambda array: tf.convert_to_tensor(array[part(len(array))]), batch)

        return self.strategy.experimental_distribute_values_from_function(rows)

    def total(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the sum of `values` over all workers, float64, the same in all of them."""
        import tensorflow as tf

        values = np.asarray(values, np.float64)
        if self.workers == 1:
            return values
        local = self.count // self.workers

        def of_first(context: tf.distribute.ValueContext) -> tf.Tensor:
            return tf.constant(values if context.replica_id_in_sync_group % local == 0 else np.zeros_like(values))

        shares = self.strategy.experimental_distribute_values_from_function(of_first)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None).numpy()

    def take_from_chief(self, variables: Iterable[keras.Variable]) -> None:
        """Gives variables that each worker computed the chief's values: the last bits differ between machines."""
        for variable in variables:
            variable.assign(self.total(np.asarray(variable) * self.is_chief))

    def check_agreement(self, **values: int) -> None:
        """Raises: InputError, in every worker, if a value is not the same in all of them."""
        table = np.zeros((self.workers, len(values)))
        table[self.worker] = list(values.values())
        for name, column in zip(values, self.total(table).T):
            if (column != column[0]).any():
                told = ", ".join(f"{int(value)} in worker {k}" for k, value in enumerate(column))
                needed = "All workers need the same flags and data, and an --output folder that they share."
                raise InputError(f"{name.replace('_', ' ')}: {told}. {needed}")

    def part_seeds(self, model: keras.Model) -> None:
        """Gives the random layers of each replica but the first a stream of their own: else all drop the same units."""
        import tensorflow as tf

        states = [v.value for v in model.non_trainable_variables if "seed_generator_state" in v.path]
        if self.count == 1 or not states:
            return

        @tf.function
        def shift() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                step = tf.cast(tf.cast(replica, tf.int64) * _SEED_STRIDE, state.dtype)
                state.assign_add(tf.stack([step, tf.zeros_like(step)]))

        self.strategy.run(shift)


# --- who takes part ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(kind: str, devices: Sequence[str] | None = None, threads: int | None = None) -> Iterator[Replicas]:
    """Yields the replicas of `--strategy kind`; several workers once all of them have connected.

    Connecting is TensorFlow's first operation, so its number of threads is set here where several workers connect.

    A worker that fails inside the block prints one line and ends its process, with 2 after an InputError and with 75
    ("try again") where another worker was lost. The others then end within about 15 s.

    Raises: InputError if --devices or TF_CONFIG cannot be used.
    """
    if kind != "multiworker":
        yield Replicas(kind, devices)
        return

    import tensorflow as tf

    set_threads(threads)
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        resolver, worker, addresses = _tf_config()
        print(f"worker {worker} of {len(addresses)}, {addresses[worker]}: waiting for the others", file=sys.stderr)
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=COLLECTIVE_TIMEOUT_S)
        replicas = Replicas("multiworker", worker=worker, workers=len(addresses))
        try:
            replicas.strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
        except tf.errors.OpError as error:
            if _LOST.search(str(error)):
                raise
            told = f"worker {worker} cannot listen there ({first_line(error, 120)})"
            raise InputError(f"{addresses[worker]}: {told}. Is it this machine's, the port free?") from error
        signal.signal(signal.SIGTERM, on_terminate)  # TensorFlow took it for a notice of preemption, which nobody reads
        yield replicas
        replicas.total([0.0])  # a worker that leaves takes the connections of the others with it
    except ENDINGS as error:
        _leave(*last_words(error))
    except Exception as error:
        if not isinstance(error, tf.errors.OpError) or not _LOST.search(str(error)):
            _leave(traceback.format_exc(), 1)
        told = "another worker has ended or cannot be reached; if it ended by itself, its own last line says why"
        _leave(f"error: {told}. Start all workers again with --resume.", EXIT_TRY_AGAIN)


def prepare(seed: int, deterministic: bool = False, threads: int | None = None, mixed_precision: bool = False) -> None:
    """Seeds Python, NumPy and TensorFlow; sets threads, determinism and the global dtype policy. Before any operation.

    Sums are split among threads, so bits depend on their number: a deterministic run needs it fixed.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    set_threads(threads)
    if mixed_precision:
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        keras.mixed_precision.set_global_policy("mixed_float16" if has_gpu else "mixed_bfloat16")


def set_threads(count: int | None) -> None:
    """Sets TensorFlow's threads, before its first operation; the same number may be set again later."""
    import tensorflow as tf

    if count:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)


def _leave(message: str, code: int) -> NoReturn:
    """Ends the process without TensorFlow's own farewell, which waits for workers that are lost."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def _tf_config() -> tuple[tf.distribute.cluster_resolver.ClusterResolver, int, list[str]]:
    """Returns the resolver, the number of this worker and all addresses, of $TF_CONFIG."""
    import tensorflow as tf

    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    if "TF_CONFIG" not in os.environ:
        raise InputError(f"--strategy multiworker: TF_CONFIG is not set, in each worker to its {example}")
    broken = (ValueError, KeyError, TypeError, AttributeError)
    with refusing("TF_CONFIG: cannot be used", broken, f"Expected the form of {example}"):
        config = json.loads(os.environ["TF_CONFIG"])
        jobs, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        if not set(jobs) <= {"chief", "worker"} or not 0 <= index < len(jobs[kind]) or len(jobs.get("chief", [])) > 1:
            raise ValueError("cluster or task")
        order = [("chief", 0)] * ("chief" in jobs) + [("worker", i) for i in range(len(jobs.get("worker", [])))]
        addresses = [str(jobs[job][i]) for job, i in order]
    return tf.distribute.cluster_resolver.TFConfigClusterResolver(), order.index((kind, index)), addresses
