"""A dataset preset: sd-scripts' own dataset config, accepted exactly where sd-scripts accepts it.

The values with which it fails later are in ``resolved.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from spyke_kohya.engine.options import described, is_finite
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.presets.invalid import finding_of

# Checked as sd-scripts' voluptuous does it: by isinstance, so true is a whole number and 1 is no float.


def _a(expected: str, fits: Callable[[object], bool], form: Any) -> PlainValidator:
    """Make a check in sd-scripts' way; ``form`` is the nearest type for the JSON schema that editors use."""

    def read(value: object) -> object:
        if not fits(value):
            raise PydanticCustomError("wrong_type", "expected {expected}", {"expected": expected})
        if not is_finite(value):
            raise PydanticCustomError("wrong_type", "expected finite numbers")
        return value

    return PlainValidator(read, json_schema_input_type=form)


def _is(*types: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, types)


def _is_pair_of(kind: type) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(item, kind) for item in value)
    )


def _pair_of(kind: type) -> Any:
    return Annotated[list[kind], Field(min_length=2, max_length=2)]  # type: ignore[valid-type]


_TEXT = _a("text in quotes", _is(str), str)
Bool: TypeAlias = Annotated[bool | None, _a("true or false", _is(bool), bool)]
Int: TypeAlias = Annotated[int | None, _a("a whole number", _is(int), int)]
Float: TypeAlias = Annotated[float | None, _a("a number with a decimal point, like 1.0", _is(float), float)]
Number: TypeAlias = Annotated[int | float | None, _a("a number", _is(int, float), float)]
Text: TypeAlias = Annotated[str | None, _TEXT]
Table: TypeAlias = Annotated[dict[str, Any] | None, _a("a table", _is(dict), dict[str, Any])]
FloatPair: TypeAlias = Annotated[
    list[float] | None, _a("two numbers with a decimal point, like [1.0, 2.0]", _is_pair_of(float), _pair_of(float))
]
Resolution: TypeAlias = Annotated[
    int | list[int] | None,
    _a(
        "a whole number or two of them, like 512 or [512, 768]",
        lambda value: isinstance(value, int) or _is_pair_of(int)(value),
        int | _pair_of(int),
    ),
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class DatasetSettings(_Settings):
    """What can be set for a dataset, or under [general] for all of them."""

    batch_size: Int = None
    """Images a batch. Several images of one bucket share a batch; a bucket's last batch can be smaller."""

    resolution: Resolution = None
    """The training size in pixels: one side, or [width, height]. Buckets have at most this many pixels."""

    enable_bucket: Bool = None
    """Keep each image's aspect ratio by training it at the nearest of several sizes. Off, all are cropped to one."""

    min_bucket_reso: Int = None
    """The shortest side of a bucket in pixels, rounded down to a multiple of bucket_reso_steps."""

    max_bucket_reso: Int = None
    """The longest side of a bucket in pixels, rounded up to a multiple of bucket_reso_steps."""

    bucket_reso_steps: Int = None
    """Every bucket's sides are multiples of this many pixels, itself a multiple of 64."""

    bucket_no_upscale: Bool = None
    """Never enlarge an image: small ones get buckets of their own, whatever min_bucket_reso says."""

    validation_split: Float = None
    """The share of the training images, from 0.0 to 1.0, that is kept for validation and not trained on."""

    validation_seed: Int = None
    """Which images are kept for validation. Without it, they are drawn anew, and are trained on as well."""

    network_multiplier: Float = None
    """The strength at which the LoRA is applied while it is trained on this dataset."""


class SubsetSettings(_Settings):
    """What can be set for a folder of images, or further up for many of them."""

    num_repeats: Int = None
    """How often each image is seen in an epoch. The number in a folder's name is not read."""

    shuffle_caption: Bool = None
    """Shuffle a caption's tags at every step, after the first keep_tokens of them."""

    caption_separator: Text = None
    """What stands between the tags of a caption."""

    keep_tokens: Int = None
    """How many tags at the head of a caption stay in place when tags are shuffled or dropped."""

    keep_tokens_separator: Text = None
    """Text in a caption up to which tags stay in place, instead of counting keep_tokens."""

    secondary_separator: Text = None
    """Text that binds tags together while they are shuffled; it becomes caption_separator in the end."""

    enable_wildcard: Bool = None
    """Read {a|b} in a caption as a choice, and a caption of several lines as one line drawn from them."""

    caption_prefix: Text = None
    """Put before every caption, with a blank."""

    caption_suffix: Text = None
    """Put after every caption, with a blank."""

    caption_dropout_rate: Number = None
    """The share of steps, from 0 to 1, at which an image is trained without its caption."""

    caption_dropout_every_n_epochs: Int = None
    """Train without captions in every n-th epoch."""

    caption_tag_dropout_rate: Number = None
    """The share of tags, from 0 to 1, that is dropped at each step."""

    token_warmup_min: Int = None
    """How many tags a caption starts with when tags are added bit by bit."""

    token_warmup_step: Number = None
    """The step (below 1: the share of all steps) from which captions have all their tags."""

    color_aug: Bool = None
    """Vary colours at random. Can't be used with cached latents."""

    flip_aug: Bool = None
    """Mirror half of the images at random. Not for a character with a left and a right."""

    random_crop: Bool = None
    """Crop at random instead of around the middle. Can't be used with cached latents."""

    face_crop_aug_range: FloatPair = None
    """Enlarge faces by a factor drawn from [low, high], for files named with a face's place."""

    custom_attributes: Table = None
    """Anything, handed through to the trainer."""

    resize_interpolation: Text = None
    """How images are resized: lanczos, nearest, bilinear, linear, bicubic, cubic, area or box."""


class DreamBoothSettings(SubsetSettings):
    """What can be set for a folder of images with captions beside them."""

    caption_extension: Text = None
    """What caption files end with, like .txt; without it .caption is looked for."""

    class_tokens: Text = None
    """The caption of an image that has no caption file."""

    cache_info: Bool = None
    """Keep sizes and captions in metadata_cache.json in the folder, and believe it from then on."""


class General(DatasetSettings, DreamBoothSettings):
    """[general]: what holds for every dataset and subset that doesn't say otherwise."""


class DreamBoothSubset(DreamBoothSettings):
    """[[datasets.subsets]]: a folder of images with captions beside them."""

    image_dir: Annotated[str, _TEXT]
    """The folder. Only images directly in it are taken."""

    is_reg: Bool = None
    """Regularisation images: what the model should still know. They are repeated to match the training images."""

    alpha_mask: Bool = None
    """Read an image's transparency as the part that isn't learnt."""


class FineTuningSubset(SubsetSettings):
    """[[datasets.subsets]] with a metadata_file, sd-scripts' other kind of subset."""

    metadata_file: Annotated[str, _TEXT]
    """The JSON file that lists images and captions."""

    image_dir: Text = None
    """The folder that relative image paths are in."""

    alpha_mask: Bool = None
    """Read an image's transparency as the part that isn't learnt."""


class DreamBoothDataset(DatasetSettings, DreamBoothSettings):
    """[[datasets]]: folders trained at one resolution and batch size."""

    subsets: tuple[DreamBoothSubset, ...] = ()
    """The folders."""


class FineTuningDataset(DatasetSettings, SubsetSettings):
    """[[datasets]] whose subsets all have a metadata_file, or which has none."""

    subsets: tuple[FineTuningSubset, ...] = ()
    """The metadata files."""


def _kind_of(dataset: object) -> str | None:
    """Name the schema that sd-scripts would use; None for a mixture (sd-scripts v0.10.1 config_util.py:317)."""
    subsets = dataset.get("subsets", []) if isinstance(dataset, dict) else None
    if not isinstance(subsets, list):
        return "dreambooth"
    kinds = {isinstance(subset, dict) and "metadata_file" in subset for subset in subsets}
    return None if len(kinds) == 2 else "dreambooth" if kinds == {False} else "fine-tuning"


class DatasetConfig(_Settings):
    """A whole dataset preset."""

    general: General = General()
    """What holds for every dataset and subset that doesn't say otherwise."""

    datasets: tuple[
        Annotated[
            Annotated[DreamBoothDataset, Tag("dreambooth")] | Annotated[FineTuningDataset, Tag("fine-tuning")],
            Discriminator(_kind_of, custom_error_type="mixed_subsets", custom_error_message="mixed"),
        ],
        ...,
    ] = ()
    """The datasets, all trained in one run."""


_TABLES: Mapping[tuple[str, ...], type[_Settings]] = {
    (): DatasetConfig,
    ("general",): General,
    ("datasets", "dreambooth"): DreamBoothDataset,
    ("datasets", "fine-tuning"): FineTuningDataset,
    ("datasets", "dreambooth", "subsets"): DreamBoothSubset,
    ("datasets", "fine-tuning", "subsets"): FineTuningSubset,
}


def parse_dataset_config(document: Mapping[str, Any], where: str) -> tuple[DatasetConfig | None, list[Finding]]:
    """Return the preset, or None; and everything wrong with it: errors under ``schema.``, doubts under ``dataset.``.

    ``document`` is the parsed file. It is accepted exactly where sd-scripts accepts it, as ConfigSanitizer(True, True,
    False, True) does (sd-scripts v0.10.1 config_util.py:165).
    """
    try:
        config = DatasetConfig.model_validate(document)
    except ValidationError as faults:
        return None, [_finding_of(fault, where) for fault in faults.errors(include_url=False)]
    return config, list(_bools_for_numbers(config, where))


def _finding_of(fault: ErrorDetails, where: str) -> Finding:
    place = f"{where}: {_path_of(fault['loc'])}"
    if fault["type"] == "extra_forbidden" and (key := fault["loc"][-1]) in _HOMES:
        return error("schema.unknown-key", place, f"`{key}` can't be set here", f"move it to {_HOMES[str(key)]}")
    if fault["type"] == "mixed_subsets":
        message = "some subsets have a metadata_file and some don't: sd-scripts can't mix them in one dataset"
        return error("schema.mixed-subsets", place, message, "give each kind its own [[datasets]]")
    return finding_of(fault, place, _TABLES)


_HOMES: Mapping[str, str] = (
    dict.fromkeys(SubsetSettings.model_fields, "[general], [[datasets]] or [[datasets.subsets]]")
    | dict.fromkeys(DatasetSettings.model_fields, "[general] or [[datasets]]")
    | dict.fromkeys(
        DreamBoothSettings.model_fields.keys() - SubsetSettings.model_fields.keys(), "a dataset without metadata_file"
    )
    | dict.fromkeys(
        DreamBoothSubset.model_fields.keys() - DreamBoothSettings.model_fields.keys(), "[[datasets.subsets]]"
    )
    | {"metadata_file": "[[datasets.subsets]]", "subsets": "[[datasets]]", "datasets": "the top", "general": "the top"}
)


def _path_of(location: tuple[int | str, ...]) -> str:
    """Write ``datasets[0].subsets[1].num_repeats`` for Pydantic's location, which has the dataset's kind in it."""
    parts = [part for index, part in enumerate(location) if not (index == 2 and location[0] == "datasets")]
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return words.removeprefix(".")


def _bools_for_numbers(config: DatasetConfig, where: str) -> Iterator[Finding]:
    for path, settings in _tables_of(config):
        for name in sorted(settings.model_fields_set):
            kinds = get_args(type(settings).model_fields[name].annotation)
            value = getattr(settings, name)
            if isinstance(value, bool) and int in kinds:
                message = f"{described(value)} is no number, and sd-scripts takes it for {int(value)}"
                remedy = f"write {int(value)}, or what you meant"
                yield warning("dataset.bool-number", f"{where}: {path}{name}", message, remedy)


def _tables_of(config: DatasetConfig) -> Iterator[tuple[str, _Settings]]:
    yield "general.", config.general
    for index, dataset in enumerate(config.datasets):
        yield f"datasets[{index}].", dataset
        yield from ((f"datasets[{index}].subsets[{place}].", subset) for place, subset in enumerate(dataset.subsets))
