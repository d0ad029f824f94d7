"""What a run does when: its phases, the learning rate by step, alpha by epoch, validations (standard library only)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from asmnet_tf.config import FINE_TUNING_LR, FROZEN_LR, Phase, Recipe

VALIDATIONS = 30  # per run, about; each costs the forward passes of the statistics


@dataclass(eq=False)
class Plan:
    """What a run does in one of its phases, beside its data, model and loss; epochs are counted over the whole run.

    start, end, epochs: how many are done before the phase, after it, after the run; best_from: before the first phase
    of this input size on end. There best.keras begins anew: it is a model of the last size, which the run is for.
    validate_every: epochs, None: so that there are about VALIDATIONS; the last epoch of a phase is always validated.
    """

    recipe: Recipe
    number: int
    steps_per_epoch: int
    alpha_schedule: str = "epochs"
    validate_every: int | None = None
    mixed_precision: bool = False
    xla: bool = False

    def __post_init__(self) -> None:
        phases, number = self.recipe.phases, self.number
        self.left, phase = phases[number:], phases[number]
        done = [0, *itertools.accumulate(phase.epochs for phase in phases)]
        self.start, self.end, self.epochs = done[number], done[number + 1], done[-1]
        others = [i for i in range(number) if phases[i].input_size != phase.input_size]
        self.best_from = done[max(others, default=-1) + 1]
        self.alpha_length = self.steps_per_epoch if self.alpha_schedule == "release" else self.epochs  # see `alpha_at`
        self.validate_every = self.validate_every or max(1, round(self.epochs / VALIDATIONS))
        warmup = min(self.recipe.warmup_epochs, phase.epochs / 5)  # short phases must not spend themselves warming up
        self.steps, self.warmup_steps = phase.epochs * self.steps_per_epoch, round(warmup * self.steps_per_epoch)

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of a step of the phase: warm-up, then inverse-time decay (paper) or cosine to 0."""
        peak, recipe = self.left[0].lr, self.recipe
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if recipe.schedule == "constant":
            return peak / (1 + recipe.inverse_time_decay * step)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def time_left(self, done: float, epoch_s: float) -> str:
        """Returns in words how long the rest takes after `done` epochs, where one of this phase takes `epoch_s`.

        Multiply-adds, and so the seconds of an epoch, grow with the area of the input.
        """
        left = [replace(self.left[0], epochs=max(1, math.ceil(self.end - done))), *self.left[1:]]
        areas = sum(phase.epochs * phase.input_size**2 for phase in left)
        minutes = areas / self.left[0].input_size ** 2 * epoch_s / 60
        told = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{max(1, round(minutes))} min"
        return f"about {told} on this machine: {', '.join(map(str, left))}"


def phases_of_run(phases: Sequence[Phase], fine_tuning: bool, scale: int) -> tuple[Phase, ...]:
    """Returns phases as they are run, their learning rates times `scale`, where batch norm is frozen FROZEN_LR at most.

    fine_tuning: whether a whole model is trained on at a rate that nobody chose: by the last phase alone, and gently.
    """
    phases = (replace(phases[-1], lr=FINE_TUNING_LR),) if fine_tuning else phases
    return tuple(replace(p, lr=min(p.lr * scale, FROZEN_LR if p.freeze_batch_norm else math.inf)) for p in phases)


def phase_at(phases: Sequence[Phase], done: int) -> int:
    """Returns the number of the phase that is next after `done` epochs; of the last one after all."""
    return sum(end <= done for end in itertools.accumulate(phase.epochs for phase in phases[:-1]))


def as_flags(phases: Sequence[Phase]) -> dict[str, object]:
    """Returns phases as args.json records them: under the flags' names what is the same in all, and the phases."""
    columns = {key: [vars(phase)[key] for phase in phases] for key in vars(phases[0])}
    common = {key: values[0] if len(set(values)) == 1 else None for key, values in columns.items()}
    whole = {"epochs": sum(columns["epochs"]), "input_size": phases[-1].input_size}
    return common | whole | {"phases": [vars(phase) for phase in phases]}
