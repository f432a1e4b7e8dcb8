"""The plan against what happened: every difference as a sentence, with its reason where the numbers show one."""

from __future__ import annotations

from collections.abc import Iterator

from spyke_kohya.record.record import Record, RecordedPlan


def deviations(record: Record, planned_steps: int | None, steps_run: int | None) -> list[str]:
    """Return what went otherwise than planned, a sentence each.

    ``planned_steps`` is what a person had planned, else [expect] total_steps. ``steps_run`` is the last trained step.
    """
    expected = planned_steps or record.preset.document.expect.total_steps
    counted = record.plan.total_steps or steps_run
    return [
        *_unlike_expected(expected, counted, steps_run, record),
        *_cut_short(counted, steps_run, record),
        *_missing(record),
    ]


def _unlike_expected(expected: int | None, counted: int | None, steps_run: int | None, record: Record) -> Iterator[str]:
    if not expected or not counted or expected == counted:
        return
    done = "run" if steps_run == counted else "counted by sd-scripts"
    yield f"{expected} steps planned, {counted} {done}, {_reason(expected, counted, record.plan)}"


def _reason(expected: int, counted: int, plan: RecordedPlan) -> str:
    folders = [folder for dataset in plan.folders for folder in dataset]
    in_all = sum(folder.per_epoch for folder in folders)
    regularisation = sum(folder.per_epoch for folder in folders if folder.is_reg)
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


def _cut_short(counted: int | None, steps_run: int | None, record: Record) -> Iterator[str]:
    if counted and steps_run is not None and steps_run < counted and record.status != "running":
        yield f"{steps_run} of {counted} steps run: {record.reason or 'the rest is not on record'}."


def _missing(record: Record) -> Iterator[str]:
    saved = {one.file for one in record.result.checkpoints}
    missing = [one.file for one in record.plan.checkpoints if one.file not in saved]
    if record.result.status and missing:
        yield f"{len(missing)} of the planned checkpoints were not saved whole: {', '.join(missing)}."
