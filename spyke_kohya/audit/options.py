"""The options against the target: what the engine can't do there, and what it does badly."""

from __future__ import annotations

from spyke_kohya.engine.targets import rules_broken
from spyke_kohya.findings import Finding
from spyke_kohya.presets.training import TrainingPreset


def check_options(preset: TrainingPreset, where: str) -> list[Finding]:
    """One finding for every rule of the target that the options, defaults included, break."""
    target = preset.launch.target
    return [
        Finding(
            rule.code,
            rule.severity,
            f"{where}: [train_network] {rule.option}",
            f"on {target}: {rule.reason}",
            rule.remedy,
        )
        for rule in rules_broken(target, preset.effective_options)
    ]
