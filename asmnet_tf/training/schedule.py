"""What a run does when: the learning rate by step, alpha by epoch, validations (standard library only)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

from asmnet_tf.config import FINE_TUNING_LR, FROZEN_LR, Phase, Recipe

VALIDATIONS = 30  # per run, about; each costs the forward passes of the statistics


@dataclass(frozen=True)
class Schedule:
    """The learning rate by step: warm-up, then constant with inverse-time decay (paper) or cosine to zero."""

    lr: float
    kind: str
    steps: int
    warmup_steps: int
    inverse_time_decay: float

    def at(self, step: int) -> float:
        """Returns the learning rate of `step`, counted from 0 over the phase."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.lr / (1 + self.inverse_time_decay * step)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Plan:
    """What a run does in one of its phases, beside its data, model and loss; epochs are counted over the whole run."""

    phases: tuple[Phase, ...]  # of the whole run
    number: int  # of this phase
    schedule: Schedule
    alphas: tuple[float, float, float]
    alpha_length: int  # what the epoch is compared with by `alpha_at`: the epochs, or the release's steps per epoch
    weight_decay: float = 0.0
    ema: float = 0.0  # momentum of the weights' moving average, which is then what is validated and saved; 0: none
    validate_every: int = 1  # epochs; the last one of a phase is always validated
    mixed_precision: bool = False
    xla: bool = False

    @property
    def phase(self) -> Phase:
        """This phase."""
        return self.phases[self.number]

    @property
    def start(self) -> int:
        """Returns how many epochs are done before this phase."""
        return sum(phase.epochs for phase in self.phases[: self.number])

    @property
    def end(self) -> int:
        """Returns how many epochs are done after it."""
        return self.start + self.phase.epochs

    @property
    def epochs(self) -> int:
        """Returns how many epochs the run has."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def best_from(self) -> int:
        """Returns after how many epochs best.keras begins anew: those before the first phase of this input size on end.

        A model is of one size, errors at another say little of it, and the last size is what the run is for.
        """
        other = [i for i in range(self.number) if self.phases[i].input_size != self.phase.input_size]
        return sum(phase.epochs for phase in self.phases[: max(other, default=-1) + 1])

    def time_left(self, done: float, epoch_s: float) -> str:
        """Returns in words how long the rest takes after `done` epochs, where one of this phase takes `epoch_s`.

        Multiply-adds, and so the seconds of an epoch, grow with the area of the input.
        """
        left = [replace(self.phase, epochs=math.ceil(self.end - done)), *self.phases[self.number + 1 :]]
        ratios = [(phase.input_size / self.phase.input_size) ** 2 for phase in left]
        minutes = epoch_s / 60 * sum(ratio * phase.epochs for ratio, phase in zip(ratios, left))
        told = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min"
        return f"about {told} on this machine: {', '.join(map(str, left))}"


def make_plan(
    recipe: Recipe,
    number: int,
    steps_per_epoch: int,
    alpha_schedule: str = "epochs",
    validate_every: int | None = None,
    mixed_precision: bool = False,
    xla: bool = False,
) -> Plan:
    """Returns the plan of a phase. validate_every: epochs; None: so that there are about VALIDATIONS in the run."""
    phase, epochs = recipe.phases[number], sum(phase.epochs for phase in recipe.phases)
    warmup = min(recipe.warmup_epochs, phase.epochs / 5)  # short runs must not spend themselves warming up
    schedule = Schedule(
        lr=phase.lr,
        kind=recipe.schedule,
        steps=phase.epochs * steps_per_epoch,
        warmup_steps=round(warmup * steps_per_epoch),
        inverse_time_decay=recipe.inverse_time_decay,
    )
    return Plan(
        phases=recipe.phases,
        number=number,
        schedule=schedule,
        alphas=tuple(recipe.alpha),
        alpha_length=steps_per_epoch if alpha_schedule == "release" else epochs,
        weight_decay=recipe.weight_decay,
        ema=recipe.ema,
        validate_every=validate_every or max(1, round(epochs / VALIDATIONS)),
        mixed_precision=mixed_precision,
        xla=xla,
    )


def phases_of_run(phases: Sequence[Phase], fine_tuning: bool, scale: int) -> tuple[Phase, ...]:
    """Returns phases as they are run, their learning rates times `scale`, where batch norm is frozen FROZEN_LR at most.

    fine_tuning: whether a whole model is trained on at a rate that nobody chose: by the last phase alone, and gently.
    """
    phases = (replace(phases[-1], lr=FINE_TUNING_LR),) if fine_tuning else phases
    rates = [min(p.lr * scale, FROZEN_LR) if p.freeze_batch_norm else p.lr * scale for p in phases]
    return tuple(replace(phase, lr=rate) for phase, rate in zip(phases, rates))


def phase_at(phases: Sequence[Phase], done: int) -> int:
    """Returns the number of the phase that is next after `done` epochs; of the last one after all."""
    ends = itertools.accumulate(phase.epochs for phase in phases[:-1])
    return sum(end <= done for end in ends)


def as_flags(phases: Sequence[Phase]) -> dict[str, object]:
    """Returns phases as args.json records them: under the flags' names what is the same in all, and the phases."""
    columns = {field.name: [getattr(phase, field.name) for phase in phases] for field in fields(Phase)}
    common = {name: values[0] if len(set(values)) == 1 else None for name, values in columns.items()}
    whole = {"epochs": sum(columns["epochs"]), "input_size": phases[-1].input_size}
    return common | whole | {"phases": [asdict(phase) for phase in phases]}
