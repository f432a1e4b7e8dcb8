"""Give the steps and files of a resumed run their true numbers: sd-scripts counts its steps from 1 again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath

from spyke_kohya.engine.events import CheckpointAnnounced, CheckpointRemoved, Event, Step
from spyke_kohya.engine.filenames import FileName, parse_file_name, step_file


@dataclass(frozen=True)
class Numbering:
    """How a run counts: ``steps_before`` were trained before it, 0 where it began anew."""

    output_name: str
    steps_per_epoch: int
    total_steps: int
    steps_before: int = 0

    def parse(self, file: str) -> FileName | None:
        """Read a checkpoint's name as sd-scripts means it: an output name may itself end like an epoch."""
        is_final = PurePath(file).stem == self.output_name
        return FileName(self.output_name, "final", None) if is_final else parse_file_name(file)

    def true_step(self, file: str, after_step: int) -> int:
        """Return the step that a file was saved at; ``after_step`` of the engine counts where the name has no number.

        The name comes first: the bar leaves out steps that come within a tenth of a second.
        """
        match self.parse(file):
            case FileName(kind="step", number=int(number)):
                return number + self.steps_before
            case FileName(kind="epoch", number=int(number)):
                return number * self.steps_per_epoch
            case FileName(kind="final"):
                return self.total_steps
        return after_step + self.steps_before

    def true_name(self, file: str) -> str:
        """Return the name, in the output directory, of a file that the engine saves under its own."""
        named = self.parse(file)
        is_step = named is not None and named.kind == "step"
        return step_file(self.output_name, self.true_step(file, 0), PurePath(file).suffix) if is_step else file

    def true_event(self, event: Event) -> Event:
        """Return the event with its true step and file; that of a run that began anew is true as it is."""
        if not self.steps_before:
            return event
        match event:
            case Step(step=step):
                return replace(event, step=step + self.steps_before)
            case CheckpointAnnounced(path, step):
                return CheckpointAnnounced(self.true_name(PurePath(path).name), step + self.steps_before)
            case CheckpointRemoved(path):
                return CheckpointRemoved(self.true_name(PurePath(path).name))
        return event
