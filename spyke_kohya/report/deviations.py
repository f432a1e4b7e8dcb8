"""The plan against what happened: every difference as a sentence, with its reason where the numbers show one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def deviations(record: Mapping[str, Any], planned_steps: int | None, steps_run: int | None) -> list[str]:
    """What went otherwise than planned.

    ``planned_steps`` is what a person had in mind, else [expect] total_steps; ``record`` a run's record, or as much of
    one as there is; ``steps_run`` the last step that was trained.
    """
    document = record.get("preset", {}).get("document", {})
    expected = planned_steps or document.get("expect", {}).get("total_steps")
    counted = record.get("plan", {}).get("total_steps") or steps_run
    return [
        *_unlike_expected(expected, counted, steps_run, record),
        *_cut_short(counted, steps_run, record),
        *_missing(record),
    ]


def _unlike_expected(
    expected: int | None, counted: int | None, steps_run: int | None, record: Mapping[str, Any]
) -> Iterator[str]:
    if not expected or not counted or expected == counted:
        return
    done = "run" if steps_run == counted else "counted by sd-scripts"
    yield f"{expected} steps planned, {counted} {done}, {_reason(expected, counted, record.get('plan', {}))}"


def _reason(expected: int, counted: int, plan: Mapping[str, Any]) -> str:
    folders = [folder for dataset in plan.get("folders", []) for folder in dataset]
    in_all = sum(folder["per_epoch"] for folder in folders)
    regularisation = sum(folder["per_epoch"] for folder in folders if folder["is_reg"])
    if regularisation and expected * in_all == counted * (in_all - regularisation):
        return (
            "because of regularisation: repeated to match the training images, the regularisation images are "
            f"{regularisation} of the {in_all} images of an epoch."
        )
    if counted == 2 * expected and not folders:
        return (
            "twice as many: the usual cause is regularisation images, which sd-scripts repeats until they match the "
            "training images (the plan is not on record; --preset gives it)."
        )
    return "for a reason that the record doesn't show."


def _cut_short(counted: int | None, steps_run: int | None, record: Mapping[str, Any]) -> Iterator[str]:
    if counted and steps_run is not None and steps_run < counted and record.get("status", "finished") != "running":
        reason = record.get("reason")
        yield f"{steps_run} of {counted} steps run: {reason or 'the rest is not on record'}."


def _missing(record: Mapping[str, Any]) -> Iterator[str]:
    result = record.get("result", {})
    saved = {one["file"] for one in result.get("checkpoints", [])}
    missing = [one["file"] for one in record.get("plan", {}).get("checkpoints", []) if one["file"] not in saved]
    if result and missing:
        yield f"{len(missing)} of the planned checkpoints were not saved whole: {', '.join(missing)}."
