"""Whether a preset says which pictures its checkpoints will be evaluated on: after the training it is too late."""

from __future__ import annotations

from spyke_kohya.findings import Finding, warning
from spyke_kohya.presets.training import TrainingPreset


def check_heldout(preset: TrainingPreset, where: str) -> list[Finding]:
    """A warning where no held-out folder is named."""
    if preset.evaluate.heldout_dir is not None:
        return []
    message = "no held-out pictures are named: which checkpoint generalises can't be measured after this training"
    remedy = "set some aside, `spyke-kohya holdout DIR --count 8`, and name their folder: [evaluate] heldout_dir"
    return [warning("evaluate.no-heldout", f"{where}: [evaluate] heldout_dir", message, remedy)]
