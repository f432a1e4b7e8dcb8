"""Examine a preset: read what it names, plan what will happen, and collect every concern's findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spyke_kohya.audit.base_model import check_base_model
from spyke_kohya.audit.captions import check_captions
from spyke_kohya.audit.expectations import check_expectations, meets
from spyke_kohya.audit.heldout import check_heldout
from spyke_kohya.audit.options import check_options
from spyke_kohya.audit.output import check_output
from spyke_kohya.audit.repeats import check_repeats
from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.command import expand_home
from spyke_kohya.findings import Finding, errors_in
from spyke_kohya.plan import Plan, make_plan
from spyke_kohya.presets.loading import Loaded, shown_path
from spyke_kohya.presets.resolved import ResolvedDataset, resolve
from spyke_kohya.scan import Scan, read_captions, scan


@dataclass(frozen=True)
class Examination:
    """A preset, all that is wrong with it, and its plan: None where sd-scripts could not start."""

    loaded: Loaded
    findings: tuple[Finding, ...]
    plan: Plan | None = None
    scan: Scan | None = None

    @property
    def ok(self) -> bool:
        return not errors_in(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of ``validate``."""
        return {
            "preset": self.loaded.name,
            "kind": self.loaded.kind,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def examine(
    loaded: Loaded, root: Path, options: Mapping[str, Any] | None = None, *, num_processes: int = 1
) -> Examination:
    """Examine a loaded preset. ``options`` complete a dataset preset with what a training preset would say.

    The images' headers and the captions are read; nothing is decoded and nothing is written.
    """
    findings = list(loaded.findings)
    training = loaded.training
    where = shown_path(loaded.path, root)
    if training:
        findings += check_options(training, where)
        findings += check_base_model(training.effective_options, root, where)
    if loaded.dataset is None or loaded.dataset_path is None:
        return Examination(loaded, tuple(findings))
    stated = {**loaded.options, **(options or {})}
    datasets, doubts = resolve(loaded.dataset, stated, shown_path(loaded.dataset_path, root))
    findings += doubts
    if datasets is None:
        return Examination(loaded, tuple(findings))
    found = scan(datasets, root)
    plan, faults = _plan(loaded, found, stated, num_processes, where if loaded.kind == "training" else "")
    plan = _sized(plan, stated, root)
    findings += faults
    findings += _check_dataset(loaded, datasets, found, plan)
    if training:
        findings += check_expectations(plan, training.expect, where) if plan else []
        findings += check_heldout(training, where)
        findings += check_output(training.effective_options, plan, root, where)
    return Examination(loaded, tuple(findings), plan, found)


def _check_dataset(
    loaded: Loaded, datasets: tuple[ResolvedDataset, ...], found: Scan, plan: Plan | None
) -> list[Finding]:
    expect = loaded.training.expect if loaded.training else None
    return [
        *check_repeats(datasets, steps_confirmed=meets(plan, expect)),
        *check_captions(found, read_captions(found), expect.trigger if expect else None),
    ]


def _plan(
    loaded: Loaded, found: Scan, stated: Mapping[str, Any], num_processes: int, where: str
) -> tuple[Plan | None, list[Finding]]:
    save_states = loaded.training is not None and loaded.training.launch.save_state
    plan, findings = make_plan(found, stated, num_processes=num_processes, save_states=save_states, where=where)
    if loaded.kind == "dataset":  # how long to train is said elsewhere
        findings = [finding for finding in findings if finding.code != "plan.steps-defaulted"]
    elif loaded.training is None:  # what is sound in it was counted, but nothing could be started
        plan = None
    return plan, findings


def _sized(plan: Plan | None, options: Mapping[str, Any], root: Path) -> Plan | None:
    """The plan without a checkpoint size where the base is known not to be SD1.5: the estimate is for that one."""
    name = options.get("pretrained_model_name_or_path")
    header = inspect_base_model(root / str(expand_home("pretrained_model_name_or_path", name))) if name else None
    if plan is None or header is None or header.form == "missing" or header.family == "SD1.5":
        return plan
    return replace(plan, checkpoint_bytes=None, state_bytes=None)
