"""Follow a run by its console: what has happened so far, and the first thing that must stop it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from spyke_kohya.engine.events import (
    CheckpointAnnounced,
    CheckpointRemoved,
    DeviceReported,
    EngineWarning,
    Event,
    Header,
    Step,
)
from spyke_kohya.engine.targets import Target


class Planned(Protocol):
    """The numbers of a plan that the engine's header has too; None where a record doesn't have them."""

    @property
    def num_train_images(self) -> int | None: ...
    @property
    def num_reg_images(self) -> int | None: ...
    @property
    def batches_per_epoch(self) -> int | None: ...
    @property
    def total_steps(self) -> int | None: ...


@dataclass
class Progress:
    """What the console's events, with their true steps, add up to."""

    plan: Planned
    target: Target
    device: str = ""
    header: Header | None = None
    step: Step | None = None
    lowest: Step | None = None
    first_bad_step: int | None = None
    checkpoints: list[CheckpointAnnounced] = field(default_factory=list)
    warnings: int = 0

    def handle(self, event: Event) -> str | None:
        """Follow one event. Return why the run must not go on, on another device or unlike the plan; else None."""
        match event:
            case DeviceReported(device):
                self.device = device
                if device.split(":")[0] != self.target:
                    return f"the engine runs on the device {device}, and the preset's target is {self.target}"
            case Header():
                self.header = event
                return self._unlike_plan(event)
            case Step():
                self._follow_step(event)
            case CheckpointAnnounced():
                self.checkpoints.append(event)
            case CheckpointRemoved(path):
                self.checkpoints = [saved for saved in self.checkpoints if saved.path != path]
            case EngineWarning():
                self.warnings += 1
        return None

    def _follow_step(self, step: Step) -> None:
        self.step = step
        if step.avr_loss is None:
            return
        if not math.isfinite(step.avr_loss):
            self.first_bad_step = self.first_bad_step or step.step
        elif self.lowest is None or self.lowest.avr_loss is None or step.avr_loss < self.lowest.avr_loss:
            self.lowest = step

    def _unlike_plan(self, header: Header) -> str | None:
        planned = {
            "train images * repeats": (header.num_train_images, self.plan.num_train_images),
            "reg images": (header.num_reg_images, self.plan.num_reg_images),
            "batches per epoch": (header.batches_per_epoch, self.plan.batches_per_epoch),
            "total optimization steps": (header.total_steps, self.plan.total_steps),
        }
        off = [f"{name} {seen} (planned {plan})" for name, (seen, plan) in planned.items() if seen != plan]
        return f"the engine's own header differs from the plan: {', '.join(off)}" if off else None
