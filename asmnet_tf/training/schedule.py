"""What a run does when: the learning rate by step, alpha by epoch, validations (standard library only)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from asmnet_tf.config import Recipe

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
        """Returns the learning rate of `step`, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.lr / (1 + self.inverse_time_decay * step)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Plan:
    """What a run does, beside its data, model and loss."""

    epochs: int
    schedule: Schedule
    alphas: tuple[float, float, float]
    alpha_length: int  # what the epoch is compared with by `alpha_at`: the epochs, or the release's steps per epoch
    weight_decay: float = 0.0
    ema: float = 0.0  # momentum of the weights' moving average, which is then what is validated and saved; 0: none
    validate_every: int = 1  # epochs; the last one is always validated
    mixed_precision: bool = False
    xla: bool = False


def make_plan(
    recipe: Recipe,
    steps_per_epoch: int,
    alpha_schedule: str = "epochs",
    validate_every: int | None = None,
    mixed_precision: bool = False,
    xla: bool = False,
) -> Plan:
    """Returns the plan of a run. validate_every: epochs; None: so that there are about VALIDATIONS."""
    epochs = recipe.epochs
    warmup = min(recipe.warmup_epochs, epochs / 5)  # short runs must not spend themselves warming up
    schedule = Schedule(
        lr=recipe.lr,
        kind=recipe.schedule,
        steps=epochs * steps_per_epoch,
        warmup_steps=round(warmup * steps_per_epoch),
        inverse_time_decay=recipe.inverse_time_decay,
    )
    return Plan(
        epochs=epochs,
        schedule=schedule,
        alphas=tuple(recipe.alpha),
        alpha_length=steps_per_epoch if alpha_schedule == "release" else epochs,
        weight_decay=recipe.weight_decay,
        ema=recipe.ema,
        validate_every=validate_every or max(1, round(epochs / VALIDATIONS)),
        mixed_precision=mixed_precision,
        xla=xla,
    )
