"""Examine a preset: read what it names, plan what will happen, and collect every concern's findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spyke_kohya.audit.base import check_base_model, check_resolution
from spyke_kohya.audit.captions import Rules, check_captions
from spyke_kohya.audit.duplicates import Compare, check_duplicates, check_held_out_apart, roles_of
from spyke_kohya.audit.expectations import check_expectations, check_heldout, meets
from spyke_kohya.audit.images import check_images, check_pictures
from spyke_kohya.audit.memory import check_memory
from spyke_kohya.audit.option_conflicts import check_options, check_schedule
from spyke_kohya.audit.output import check_output
from spyke_kohya.audit.repeats import check_repeats
from spyke_kohya.dataset.copies import alike
from spyke_kohya.dataset.pictures import Pictures
from spyke_kohya.dataset.scan import Caption, Scan, SizeOf, header_size, read_captions, scan, scan_folder
from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.command import path_option
from spyke_kohya.findings import Finding, errors_in, grouped
from spyke_kohya.formats.clip_tokens import DEFAULT_LIMIT, TokenCounter, read_token_counter, tokenizer_directories
from spyke_kohya.plan.plan import Plan, make_plan
from spyke_kohya.presets.loading import Loaded, shown_path
from spyke_kohya.presets.resolved import ResolvedDataset, resolve
from spyke_kohya.presets.training import TrainingPreset


@dataclass(frozen=True)
class AuditTools:
    """What an examination may use beside the preset.

    ``size_of`` reads an image's header; ``look`` decodes images, None leaves that out; ``compare`` finds those that
    look alike; ``environment`` and ``home`` lead to the tokenizer's vocabulary; ``memory_bytes`` is the machine's, None
    leaves that out.
    """

    size_of: SizeOf = header_size
    look: Callable[[Iterable[str]], Pictures] | None = None
    compare: Compare = alike
    environment: Mapping[str, str] = field(default_factory=dict)
    home: Path = Path()
    memory_bytes: int | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Examination:
    """A preset, all that is wrong with it, and its plan: None where sd-scripts could not start."""

    loaded: Loaded
    findings: tuple[Finding, ...]
    plan: Plan | None = None
    scan: Scan | None = None
    captions: tuple[Caption, ...] = ()

    @property
    def ok(self) -> bool:
        return not errors_in(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of ``validate``."""
        return {
            "preset": self.loaded.name,
            "kind": self.loaded.kind,
            "ok": self.ok,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def examine(
    loaded: Loaded,
    root: Path,
    options: Mapping[str, Any] | None = None,
    *,
    num_processes: int = 1,
    tools: AuditTools = AuditTools(),
) -> Examination:
    """Examine a loaded preset. ``options`` complete a dataset preset with what a training preset would say.

    The images' headers and the captions are read, and the images are decoded where the tools can; nothing but that
    decoding's own cache is written. Findings that many files of a folder share are one.
    """
    examination = _examine(loaded, root, {**loaded.options, **(options or {})}, num_processes, tools)
    return replace(examination, findings=tuple(grouped(examination.findings)))


def _examine(
    loaded: Loaded, root: Path, stated: Mapping[str, Any], num_processes: int, tools: AuditTools
) -> Examination:
    findings = list(loaded.findings)
    training = loaded.training
    where = shown_path(loaded.path, root)
    datasets: tuple[ResolvedDataset, ...] | None = None
    if loaded.dataset is not None and loaded.dataset_path is not None:
        datasets, doubts = resolve(loaded.dataset, stated, shown_path(loaded.dataset_path, root))
        findings += doubts
    if training:
        findings += _check_training(training, datasets or (), root, where, tools)
    if datasets is None:
        return Examination(loaded, tuple(findings))
    found = scan(datasets, root, tools.size_of)
    plan, faults = _plan(loaded, found, stated, num_processes, where if loaded.kind == "training" else "")
    plan = _sized(plan, stated, root)
    findings += [*faults, *check_repeats(datasets, steps_confirmed=meets(plan, training.expect if training else None))]
    captions = read_captions(found)
    findings += check_captions(found, captions, _rules(captions, training, stated, root, tools))
    findings += check_images(found, stated, is_complete=loaded.kind == "training")
    findings += _check_pictures(found, training.evaluate.heldout_dir if training else None, root, tools)
    if training:
        findings += check_heldout(training, where)
        findings += check_output(training.effective_options, plan, root, where)
        if plan:
            findings += check_expectations(plan, training.expect, where)
            findings += check_schedule(training.effective_options, plan, where)
    return Examination(loaded, tuple(findings), plan, found, captions)


def _check_training(
    training: TrainingPreset, datasets: tuple[ResolvedDataset, ...], root: Path, where: str, tools: AuditTools
) -> list[Finding]:
    options = training.effective_options
    findings = check_options(training, where, datasets)
    findings += check_base_model(options, root, where, allow_pickle=tools.allow_pickle)
    findings += check_resolution(options, [(dataset.where, dataset.resolution) for dataset in datasets], root)
    if tools.memory_bytes is not None and datasets:
        findings += check_memory(options, datasets, training.launch.target, (root, where), tools.memory_bytes)
    return findings


def _rules(
    captions: Iterable[Caption],
    training: TrainingPreset | None,
    options: Mapping[str, Any],
    root: Path,
    tools: AuditTools,
) -> Rules:
    """Return what captions are checked against; the vocabulary is read only where a caption could be too long."""
    limit = options.get("max_token_length") or DEFAULT_LIMIT
    counter = TokenCounter()
    if any(len(caption.text) > limit for caption in captions):
        under = path_option(options, "tokenizer_cache_dir", root) if options.get("tokenizer_cache_dir") else None
        counter = read_token_counter(tokenizer_directories(under, tools.environment, tools.home))
    return Rules(training.expect.trigger if training else None, counter, limit)


def _check_pictures(found: Scan, heldout_dir: str | None, root: Path, tools: AuditTools) -> list[Finding]:
    held_out = scan_folder(heldout_dir, ".txt", root, tools.size_of) if heldout_dir else None
    findings = check_held_out_apart(found, held_out)
    if tools.look is None:
        return findings
    roles = roles_of(found, held_out)
    pictures = tools.look(roles)
    return [*findings, *check_pictures(found, pictures), *check_duplicates(roles, pictures, tools.compare)]


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
    """Return the plan without a checkpoint size where the base is known not to be SD1.5.

    The estimate is for that one.
    """
    name = "pretrained_model_name_or_path"
    header = inspect_base_model(path_option(options, name, root)) if options.get(name) else None
    if plan is None or header is None or header.form == "missing" or header.family == "SD1.5":
        return plan
    return replace(plan, checkpoint_bytes=None, state_bytes=None)
