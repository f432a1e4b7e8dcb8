"""What will happen: the images, batches, steps and checkpoints of a run, as sd-scripts will count them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from spyke_kohya.dataset.scan import Scan
from spyke_kohya.engine.checkpoint_size import checkpoint_bytes, state_bytes
from spyke_kohya.engine.options import parser_defaults
from spyke_kohya.engine.schedule import PlannedCheckpoint, Saving, checkpoints, epochs_of, steps_per_epoch
from spyke_kohya.engine.states import NO_STATES, STATES_KEPT, StateSaving, state_saving
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.plan.epoch import DatasetPlan, SubsetPlan, count_datasets

StepsSource: TypeAlias = Literal["max_train_epochs", "max_train_steps", "default"]

_MOST_STEPS = 10_000_000
_AT_LEAST_ONE = (
    "gradient_accumulation_steps",
    "max_train_epochs",
    "max_train_steps",
    "save_every_n_steps",
    "save_every_n_epochs",
)


@dataclass(frozen=True)
class Plan:
    """A run before it runs. The numbers mean what sd-scripts means by them.

    ``checkpoint_bytes``, ``state_bytes`` (of each) and ``disk_bytes`` (of the checkpoints that remain and the states
    that are kept) are estimates, None where the network isn't known. ``states`` says how states are saved.
    """

    datasets: tuple[DatasetPlan, ...]
    gradient_accumulation_steps: int
    num_processes: int
    batches_per_epoch: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    steps_source: StepsSource
    checkpoints: tuple[PlannedCheckpoint, ...]
    checkpoint_bytes: int | None
    state_bytes: int | None = None
    states: StateSaving = NO_STATES

    @property
    def num_train_images(self) -> int:
        """Training images x repeats."""
        return sum(dataset.num_train_images for dataset in self.datasets)

    @property
    def num_reg_images(self) -> int:
        """Regularisation images x repeats, before they are repeated to match."""
        return sum(dataset.num_reg_images for dataset in self.datasets)

    @property
    def train_images(self) -> int:
        """Training images, each counted once."""
        return sum(subset.images for subset in self._subsets() if not subset.is_reg)

    @property
    def reg_images(self) -> int:
        """Regularisation images, each counted once."""
        return sum(subset.images for subset in self._subsets() if subset.is_reg)

    @property
    def reg_images_used(self) -> int:
        """Regularisation images that an epoch sees at all."""
        return sum(subset.used for subset in self._subsets() if subset.is_reg)

    @property
    def validation_images(self) -> int:
        """Images that are validated on."""
        return sum(dataset.validation_images for dataset in self.datasets)

    @property
    def validation_batches(self) -> int:
        """Batches of a whole validation, before max_validation_steps."""
        return sum(dataset.validation_batches for dataset in self.datasets)

    @property
    def disk_bytes(self) -> int | None:
        """Disk that the remaining checkpoints and the kept states take."""
        if self.checkpoint_bytes is None or self.kept_state_bytes is None:
            return None
        return self.checkpoint_bytes * len(self.checkpoints) + self.kept_state_bytes * self.states_kept

    @property
    def kept_state_bytes(self) -> int | None:
        """Disk that one kept state takes, with the epoch's checkpoint where that is put inside it."""
        inside = self.checkpoint_bytes if self.states.epoch_files_unasked else 0
        return None if self.state_bytes is None or inside is None else self.state_bytes + inside

    @property
    def states_kept(self) -> int:
        """How many states to resume from there are at the end: none is saved after the last epoch."""
        return min(STATES_KEPT, self.epochs - 1) if self.states.is_on else 0

    def _subsets(self) -> Iterator[SubsetPlan]:
        return (subset for dataset in self.datasets for subset in dataset.subsets)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as ``plan --json`` gives it."""
        names = (
            "num_train_images num_reg_images batches_per_epoch steps_per_epoch epochs total_steps validation_batches "
            "train_images reg_images reg_images_used validation_images gradient_accumulation_steps num_processes "
            "steps_source checkpoint_bytes state_bytes states_kept disk_bytes"
        )
        return {name: getattr(self, name) for name in names.split()} | {
            "buckets": [[[list(size), count] for size, count in dataset.buckets] for dataset in self.datasets],
            "folders": [[asdict(subset) for subset in dataset.subsets] for dataset in self.datasets],
            "checkpoints": [{"step": saved.step, "file": saved.file} for saved in self.checkpoints],
        }


def make_plan(
    scan: Scan,
    options: Mapping[str, object],
    *,
    num_processes: int = 1,
    save_states: bool = False,
    where: str = "",
) -> tuple[Plan | None, list[Finding]]:
    """Return what sd-scripts will do with the scanned datasets; None where it would stop with an exception.

    ``options`` are those that the training preset sets, ``where`` names it; with ``save_states`` the launcher has
    states saved. The findings say what stops a run, and what is
    probably a mistake though sd-scripts does it silently. Where there is nothing to train on, the plan has no steps.
    """
    seed = options.get("seed")
    datasets, findings = count_datasets(scan, seed if isinstance(seed, int) else None)
    place = f"{where}: [train_network]" if where else "[train_network]"
    findings += _length_findings(options, place)
    below_one = list(_below_one(options, place))
    findings += below_one
    batches = sum(dataset.batches for dataset in datasets or ())
    if datasets is not None and not batches:
        message = "there is nothing to train on: sd-scripts would say `No data found` and end with exit code 0"
        findings.append(
            error("images.none", "datasets", message, "put images into the folders that the dataset preset names")
        )
    if datasets is None or below_one:
        return None, findings
    total = _total_steps(parser_defaults() | dict(options), batches, num_processes)
    if total > _MOST_STEPS:
        message = f"the run would take {total} steps: at a second each, {total // 86_400} days"
        findings.append(error("plan.too-long", place, message, "lower the epochs, the steps or num_repeats"))
        return None, findings
    plan = _scheduled(datasets, batches, parser_defaults() | dict(options), _steps_source(options), num_processes)
    if save_states:
        states = state_saving(options, total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch)
        plan = replace(plan, states=states)
    return plan, findings


def _total_steps(options: Mapping[str, Any], batches: int, num_processes: int) -> int:
    """Optimizer steps; none without batches, for train_network.py:575 ends before it begins."""
    if not batches:
        return 0
    if options["max_train_epochs"] is None:
        return int(options["max_train_steps"])
    return int(
        options["max_train_epochs"] * steps_per_epoch(batches, num_processes, options["gradient_accumulation_steps"])
    )


def _scheduled(
    datasets: tuple[DatasetPlan, ...], batches: int, options: Mapping[str, Any], source: StepsSource, num_processes: int
) -> Plan:
    accumulated = options["gradient_accumulation_steps"]
    an_epoch = steps_per_epoch(batches, num_processes, accumulated)
    total = _total_steps(options, batches, num_processes)
    return Plan(
        datasets=datasets,
        gradient_accumulation_steps=accumulated,
        num_processes=num_processes,
        batches_per_epoch=batches,
        steps_per_epoch=an_epoch,
        epochs=epochs_of(total, an_epoch) if total else 0,
        total_steps=total,
        steps_source=source,
        checkpoints=tuple(checkpoints(saving_of(options), total, an_epoch)) if total else (),
        checkpoint_bytes=checkpoint_bytes(options),
        state_bytes=state_bytes(options),
    )


def saving_of(options: Mapping[str, Any]) -> Saving:
    """When sd-scripts saves, by its options with the parser's defaults."""
    return Saving(
        output_name=options["output_name"],
        extension=f".{options['save_model_as']}",
        every_n_steps=options["save_every_n_steps"],
        every_n_epochs=options["save_every_n_epochs"],
        n_epoch_ratio=options["save_n_epoch_ratio"],
        last_n_steps=options["save_last_n_steps"],
        last_n_epochs=options["save_last_n_epochs"],
    )


def _steps_source(options: Mapping[str, object]) -> StepsSource:
    if options.get("max_train_epochs") is not None:
        return "max_train_epochs"
    return "default" if options.get("max_train_steps") is None else "max_train_steps"


def _length_findings(options: Mapping[str, object], place: str) -> Iterator[Finding]:
    source = _steps_source(options)
    if source == "default":
        message = "max_train_epochs and max_train_steps are not set: sd-scripts silently trains 1600 steps"
        yield error("plan.steps-defaulted", place, message, "set max_train_epochs")
    elif source == "max_train_epochs" and options.get("max_train_steps") is not None:
        message = "max_train_epochs and max_train_steps are both set: sd-scripts ignores max_train_steps"
        yield warning("plan.steps-ignored", f"{place} max_train_steps", message, "remove one of them")


def _below_one(options: Mapping[str, object], place: str) -> Iterator[Finding]:
    """Numbers that sd-scripts divides by, or that leave nothing to train."""
    for name in _AT_LEAST_ONE:
        value = options.get(name)
        if isinstance(value, int) and value < 1:
            yield error(
                "plan.below-one",
                f"{place} {name}",
                f"{name} is {value}: it must be 1 or more",
                "correct it, or remove it",
            )


def explain(plan: Plan) -> list[str]:
    """Return the plan in words, one line a thought: how the steps come about, what is validated, what is saved."""
    if not plan.total_steps:
        return ["there is nothing to train on"]
    parts = [_dataset_words(dataset) for dataset in plan.datasets]
    if len(parts) == 1:
        lines = [f"{parts[0]}{_steps_words(plan)}"]
    else:
        lines = [f"dataset {index}: {part}" for index, part in enumerate(parts)]
        lines.append(f"together {plan.batches_per_epoch} batches an epoch{_steps_words(plan)}")
    if plan.validation_batches:
        images, batches = (
            _counted(plan.validation_images, "image"),
            _counted(plan.validation_batches, "batch", "batches"),
        )
        lines.append(f"validation on {images} in {batches}")
    return [*lines, _saving_words(plan), *_states_words(plan)]


def _dataset_words(dataset: DatasetPlan) -> str:
    """``23 images x 10 repeats = 230, + 100 regularisation images repeated to 230 = 460 batches an epoch``"""
    if not dataset.batches:
        return "nothing to train on"
    train = [subset for subset in dataset.subsets if not subset.is_reg]
    words = " + ".join(
        f"{_counted(subset.images, 'image')} x {_counted(subset.num_repeats, 'repeat')}" for subset in train
    )
    reg = [subset for subset in dataset.subsets if subset.is_reg]
    text = f"{words} = {dataset.num_train_images}{_regularisation_words(reg)}"
    twice = sum(subset.per_epoch for subset in dataset.subsets) - dataset.images_per_epoch
    if twice:
        text += f", - {twice} named twice"
    if dataset.batch_size == 1:
        return f"{text}{'' if not reg and not twice else f' = {dataset.batches}'} batches an epoch"
    if reg or twice:
        text += f" = {dataset.images_per_epoch}"
    return (
        f"{text} images, in batches of {dataset.batch_size} = {_counted(dataset.batches, 'batch', 'batches')} an epoch"
    )


def _regularisation_words(subsets: list[SubsetPlan]) -> str:
    images, used, per_epoch = (
        sum(getattr(subset, name) for subset in subsets) for name in ("images", "used", "per_epoch")
    )
    if not images:
        return ""
    share = f"{used} of {images}" if used < images else str(images)
    repeated = f" repeated to {per_epoch}" if per_epoch != used else ""
    return f", + {share} regularisation image{'' if images == 1 else 's'}{repeated}"


def _steps_words(plan: Plan) -> str:
    words = f", on {plan.num_processes} processes" if plan.num_processes > 1 else ""
    if plan.gradient_accumulation_steps > 1:
        words += f", {plan.gradient_accumulation_steps} to a step"
    if words:
        words += f" = {_counted(plan.steps_per_epoch, 'step')} an epoch"
    if plan.steps_source == "max_train_epochs":
        return f"{words}, x {_counted(plan.epochs, 'epoch')} = {_counted(plan.total_steps, 'step')}"
    default = ", sd-scripts' default" if plan.steps_source == "default" else ""
    return f"{words}, ended after {_counted(plan.total_steps, 'step')}{default}, in epoch {plan.epochs}"


def _saving_words(plan: Plan) -> str:
    saved = _counted(len(plan.checkpoints), "checkpoint")
    if plan.checkpoint_bytes is None:
        return saved
    in_all = plan.checkpoint_bytes * len(plan.checkpoints)
    return f"{saved} of about {plan.checkpoint_bytes / 1e6:.1f} MB, {in_all / 1e6:.0f} MB in all"


def _states_words(plan: Plan) -> list[str]:
    if not plan.states_kept:
        return []
    size = f" of about {plan.kept_state_bytes / 1e6:.0f} MB" if plan.kept_state_bytes else ""
    return [f"a state{size} at the end of each epoch to resume from, the last {plan.states_kept} kept"]


def _counted(number: int, word: str, plural: str = "") -> str:
    return f"{number} {word if number == 1 else plural or word + 's'}"
