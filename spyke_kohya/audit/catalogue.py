"""Every finding there is: why it is one, and where the behaviour was seen. ``docs/findings.md`` is made from it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from spyke_kohya.engine.targets import RULES

_OURS = "spyke-kohya's own rule"
_SD = "sd-scripts v0.10.1 "


@dataclass(frozen=True)
class Entry:
    """``why`` is for a person who has just met the finding; ``source`` says where its fact was seen."""

    why: str
    source: str


_WRITTEN: Mapping[str, Entry] = {
    "schema.no-such-preset": Entry("A preset is named by its path, or by its bare name in presets/.", _OURS),
    "schema.unreadable": Entry("The file is there and can't be read.", _OURS),
    "schema.not-utf8": Entry("sd-scripts opens a preset as UTF-8.", _SD + "config_util.py:691"),
    "schema.broken": Entry(
        "The file is no TOML (or JSON) to the parser that sd-scripts uses, toml 0.10.2, which is older than TOML 1.0.",
        _SD + "config_util.py:691",
    ),
    "schema.file-name": Entry(
        "sd-scripts chooses the parser by the file's ending, and takes only .json and .toml.",
        _SD + "config_util.py:680",
    ),
    "schema.unknown-key": Entry(
        "sd-scripts stops at an unknown key of a dataset; on its command line it takes abbreviations, so that "
        "--learning_rat=1 trains with a learning rate of 1. Unknown names are refused before.",
        _SD + "config_util.py:165; measured",
    ),
    "schema.wrong-type": Entry(
        "sd-scripts checks types as isinstance does: 1 is no float there, and true is a whole number.",
        _SD + "config_util.py:165",
    ),
    "schema.bad-choice": Entry("The option's parser takes only its own choices.", _SD + "train_util.py, its parsers"),
    "schema.unsafe-value": Entry(
        "argparse takes a word of a list that begins with - for the next option, so that the value would be lost.",
        "Python's argparse; measured",
    ),
    "schema.missing-key": Entry(
        "Without it sd-scripts fails, some of them only when the first checkpoint is to be saved.",
        _SD + "train_network.py:1296",
    ),
    "schema.mixed-subsets": Entry(
        "A dataset has either image folders or metadata files, for each kind has its own schema.",
        _SD + "config_util.py:317",
    ),
    "schema.reserved-option": Entry(
        "The launcher decides these for every run, so that the record of a run is always true.", _OURS
    ),
    "dataset.none": Entry("Without a dataset there is nothing to train on.", _SD + "config_util.py:165"),
    "dataset.no-subsets": Entry("A dataset without a subset has no images.", _SD + "config_util.py:317"),
    "dataset.fine-tuning": Entry("Datasets by metadata file are not planned here.", _OURS),
    "dataset.resolution": Entry("sd-scripts asserts a resolution for every dataset.", _SD + "train_util.py:1921"),
    "dataset.resolution-unusual": Entry(
        "Stable Diffusion 1.5 learnt to draw at 512x512, 2 at 768x768: far from that it repeats or blurs things.",
        "the models' own training sizes",
    ),
    "dataset.face-crop-aug-range": Entry("The option is two numbers, low,high.", _SD + "train_util.py:5413"),
    "dataset.batch-size": Entry(
        "sd-scripts divides by the batch size, so it must be 1 or more.", _SD + "train_util.py:1079"
    ),
    "dataset.bool-number": Entry(
        "true is 1 and false is 0 to sd-scripts where it expects a whole number.", _SD + "config_util.py:165"
    ),
    "dataset.bucket-limits": Entry(
        "min_bucket_reso above the resolution, or max_bucket_reso below it, is an AssertionError.",
        _SD + "train_util.py:747",
    ),
    "dataset.bucket-steps": Entry("train_network.py accepts only multiples of 64.", _SD + "train_network.py:175"),
    "dataset.resize-interpolation": Entry(
        "sd-scripts knows eight ways to resize; at others it stops for a dataset, and ignores them for a subset.",
        _SD + "utils.py:334, train_util.py:727",
    ),
    "dataset.caption-separator": Entry(
        "Python's split refuses an empty separator, in the middle of the run.", _SD + "train_util.py:884"
    ),
    "dataset.cache-latents": Entry(
        "Cached latents can't be varied at every step: sd-scripts stops with an AssertionError.",
        _SD + "train_network.py:582",
    ),
    "dataset.missing-folder": Entry(
        "sd-scripts warns of a folder that isn't one, drops the subset, and trains on the rest.",
        _SD + "train_util.py:1975",
    ),
    "dataset.parent-folder": Entry(
        "sd-scripts takes the images directly in image_dir and looks no deeper: a parent folder gives `No data found`, "
        "and exit code 0.",
        _SD + "train_util.py:2847, train_network.py:575",
    ),
    "dataset.deeper-images": Entry(
        "sd-scripts does not look into folders below image_dir.", _SD + "train_util.py:2847"
    ),
    "dataset.subset-dropped": Entry(
        "sd-scripts drops a subset with a warning, and trains on the rest: num_repeats below 1, no image, or a folder "
        "that an earlier subset of the dataset has named.",
        _SD + "train_util.py:2116",
    ),
    "dataset.image-twice": Entry(
        "sd-scripts keeps images by their path, so that one of two entries is lost.", _SD + "train_util.py:983"
    ),
    "dataset.info-cache": Entry(
        "With cache_info sd-scripts reads metadata_cache.json and not the folder, also when the folder has "
        "changed since.",
        _SD + "train_util.py:1992",
    ),
    "dataset.reg-unused": Entry(
        "Regularisation images are taken in order until they are as many as the training images x repeats; those after "
        "that are never used.",
        _SD + "train_util.py:2166",
    ),
    "dataset.reg-unequal": Entry(
        "When regularisation images run out, sd-scripts begins anew with the first: some are then seen twice as often "
        "as others.",
        _SD + "train_util.py:2166",
    ),
    "dataset.reg-overshoot": Entry(
        "sd-scripts counts a regularisation image with all its repeats, and stops after it: the last one overshoots.",
        _SD + "train_util.py:2166",
    ),
    "dataset.validation-split": Entry(
        "Outside of 0 to 1 nothing is validated, and above 1 images are lost to training.", _SD + "config_util.py:497"
    ),
    "dataset.validation-unseeded": Entry(
        "Without a validation_seed sd-scripts shuffles once for training and once for validation.",
        _SD + "train_util.py:142",
    ),
    "dataset.validation-overlap": Entry(
        "The training part is rounded up and the validation part is rounded on its own: one image can be in both.",
        _SD + "train_util.py:172",
    ),
    "dataset.empty-subset-with-split": Entry(
        "Splitting an empty folder raises `not enough values to unpack`.", _SD + "train_util.py:167"
    ),
    "images.none": Entry(
        "sd-scripts says `No data found`, trains nothing and ends with exit code 0.", _SD + "train_network.py:575"
    ),
    "images.unreadable": Entry(
        "sd-scripts takes 0x0 as the size of an image that it can't read, and then divides by it.",
        _SD + "train_util.py:1490, 287",
    ),
    "images.broken": Entry(
        "Only the header is read at the start. A damaged file stops the run when its batch comes, which can be hours "
        "later, or while latents are cached.",
        _SD + "train_util.py:2959",
    ),
    "images.no-bucket": Entry("There is no bucket for the image's shape or size.", _SD + "train_util.py:286-350"),
    "images.needs-bucket": Entry(
        "Without enable_bucket and without cached latents sd-scripts stops at an image that hasn't exactly "
        "the resolution.",
        _SD + "train_util.py:1631-1652",
    ),
    "images.stale-latents": Entry(
        "sd-scripts takes an image's size from the name of its cached latents, also when the image has changed since.",
        _SD + "train_util.py:2002",
    ),
    "images.upscaled": Entry(
        "An image smaller than its bucket is enlarged, and the LoRA learns the blur.", _SD + "train_util.py:286-300"
    ),
    "images.cropped": Entry(
        "An image is scaled to cover its bucket and cropped around the middle.", _SD + "train_util.py:2965"
    ),
    "images.exif-rotated": Entry(
        "sd-scripts loads pixels as they are stored; viewers turn them as EXIF says.", _SD + "train_util.py:2948"
    ),
    "images.transparent": Entry(
        "Transparency is dropped, not blended: what lies beneath trains, which most programs leave black.",
        _SD + "train_util.py:2956",
    ),
    "images.sixteen-bit": Entry(
        "Pillow's conversion to RGB cuts every level of a 16-bit or float image at 255.",
        _SD + "train_util.py:2956; measured with Pillow 13",
    ),
    "images.colours": Entry(
        "Pillow converts CMYK without its colour profile, so that colours shift.", _SD + "train_util.py:2956"
    ),
    "images.animated": Entry("Of an animation only the first frame is loaded.", _SD + "train_util.py:2948"),
    "images.not-taken": Entry(
        "sd-scripts lists .png .jpg .jpeg .webp .bmp, all in lower or all in upper case. (Names that begin with a dot, "
        "like a Mac's ._x.png, are never listed: glob leaves them out.)",
        _SD + "train_util.py:104, 2847",
    ),
    "images.same-stem": Entry(
        "The caption and the cached latents are named by the image's name without its ending.",
        _SD + "train_util.py:1947, strategy_sd.py:152",
    ),
    "images.duplicate": Entry(
        "A picture that is there twice is learnt twice as much, and num_repeats doesn't show it.", _OURS
    ),
    "images.near-duplicate": Entry(
        "Two copies in other sizes or formats count as two pictures. They are found by comparing 9x9 colours of "
        "each, which differ by less than a quarter of their contrast; `holdout` and `evaluate` go by the same rule.",
        _OURS,
    ),
    "images.mirrored": Entry("A mirrored copy adds nothing new, and swaps left and right.", _OURS),
    "images.in-two-roles": Entry(
        "A regularisation image is what the model should know without the LoRA, and a held-out one what it has not "
        "seen: a training image is neither.",
        _OURS,
    ),
    "images.alike-in-two-roles": Entry(
        "The same as images.in-two-roles, for pictures that look alike and whose files differ.", _OURS
    ),
    "captions.missing": Entry(
        "An image without a caption trains with class_tokens, or with an empty caption.", _SD + "train_util.py:2072"
    ),
    "captions.extension": Entry(
        "sd-scripts reads captions from .caption files unless caption_extension names another ending. It "
        "finds none here, and would train every image without a caption.",
        _SD + "train_util.py:1946",
    ),
    "captions.empty": Entry("sd-scripts asserts that a caption file has a line.", _SD + "train_util.py:1964"),
    "captions.blank": Entry(
        "sd-scripts takes the first line as the caption, also when that line is blank.", _SD + "train_util.py:1968"
    ),
    "captions.more-lines": Entry(
        "Without enable_wildcard only the first line of a caption is used.", _SD + "train_util.py:1968"
    ),
    "captions.not-utf8": Entry("sd-scripts opens captions as UTF-8, and stops at others.", _SD + "train_util.py:1957"),
    "captions.byte-order-mark": Entry(
        "Some editors write an invisible mark at the start of a file. sd-scripts reads it as part of the "
        "first tag, which is then another tag.",
        _SD + "train_util.py:1957",
    ),
    "captions.unreadable": Entry("sd-scripts stops at a caption that it can't open.", _SD + "train_util.py:1957"),
    "captions.too-long": Entry(
        "The text encoder reads 75 tokens (150 or 225 with max_token_length); the rest is cut off.",
        _SD + "strategy_base.py:234",
    ),
    "captions.trigger-missing": Entry(
        "The trigger is the word by which the character is learnt. [expect] trigger says that every caption "
        "begins with it.",
        _OURS,
    ),
    "captions.trigger-moves": Entry(
        "shuffle_caption moves, and tag dropout drops, every tag after the first keep_tokens.",
        _SD + "train_util.py:885",
    ),
    "captions.trigger-in-regularisation": Entry(
        "Regularisation images show what is not the character. With the trigger in their captions they teach "
        "the opposite.",
        _OURS,
    ),
    "captions.tag-everywhere": Entry(
        "A tag that is in every caption can't be separated from the trigger, so each learns half its meaning.",
        _OURS,
    ),
    "repeats.stated-twice": Entry(
        "A folder named 10_x says 10 repeats only with --train_data_dir. With a dataset preset num_repeats alone "
        "counts: the two do not multiply.",
        _SD + "config_util.py:607",
    ),
    "repeats.prefix-ignored": Entry(
        "A folder named 10_x says 10 repeats only with --train_data_dir; here each image is used once.",
        _SD + "config_util.py:607",
    ),
    "plan.steps-defaulted": Entry(
        "With neither max_train_epochs nor max_train_steps sd-scripts trains 1600 steps.",
        _SD + "train_util.py, its parser",
    ),
    "plan.steps-ignored": Entry("With both, max_train_epochs wins.", _SD + "train_network.py:799"),
    "plan.below-one": Entry(
        "sd-scripts divides by this number, or would train nothing: it must be 1 or more.", _SD + "train_network.py:799"
    ),
    "plan.too-long": Entry("A run of more than ten million steps is almost certainly a typing error.", _OURS),
    "plan.unexpected-steps": Entry(
        "[expect] total_steps says what was planned. 920 steps had been planned for the run of record, and 1840 were "
        "trained: the regularisation images double an epoch.",
        _SD + "train_util.py:2166",
    ),
    "options.learning-rate": Entry(
        "LoRAs are trained at about 1e-4; sd-scripts' default of 2e-6 is meant for whole models. Optimizers that find "
        "the rate themselves (Prodigy, DAdapt) want 1.",
        _SD + "train_util.py, its parser; common practice",
    ),
    "options.alpha-above-dim": Entry(
        "The LoRA's output is scaled by network_alpha / network_dim.", _SD + "networks/lora.py:72"
    ),
    "options.warmup-form": Entry(
        "From 1 on, lr_warmup_steps must be a whole number: 100.0 is refused.", _SD + "train_util.py:3664"
    ),
    "options.warmup-refused": Entry(
        "Schedulers without a warm-up raise ValueError for one.", _SD + "train_util.py:5293"
    ),
    "options.warmup-too-long": Entry(
        "The learning rate rises during all these steps, and there are not more steps than that.",
        _SD + "train_util.py:5276",
    ),
    "options.saves-too-rarely": Entry(
        "A checkpoint is saved at each step that is a multiple of save_every_n_steps; no step of this run is one.",
        _SD + "train_network.py:1497",
    ),
    "base.missing": Entry(
        "sd-scripts takes a path that isn't there for a repository's name, after 16 s of start-up.",
        "measured on sd-scripts v0.10.1",
    ),
    "base.from-hub": Entry("A name with one slash is a model on the Hugging Face hub.", _SD + "train_util.py"),
    "base.unreadable": Entry(
        "The header does not fit the file: it was cut short, or is something else.", "safetensors' format"
    ),
    "base.family": Entry(
        "Each family has its own script; train_network.py trains SD1.5, and SD2 with v2.", _SD + "train_network.py"
    ),
    "base.pickle": Entry(
        "A .ckpt or .pt is a pickle, a program: sd-scripts loads it with weights_only=False, so it runs.",
        _SD + "model_util.py:980",
    ),
    "base.dtype": Entry(
        "Weights in 8 bits were rounded; training in float32 does not bring back what was lost.", _OURS
    ),
    "output.not-a-directory": Entry("Checkpoints need a directory.", _SD + "train_network.py:1297"),
    "output.not-writable": Entry("sd-scripts would fail at the first checkpoint.", _SD + "train_network.py:1297"),
    "output.name": Entry(
        "output_name is the beginning of each checkpoint's file name, so it must be a plain name.",
        _SD + "train_util.py, get_step_ckpt_name",
    ),
    "output.disk": Entry("A full disk ends a run at a checkpoint, and leaves half of it.", _OURS),
    "output.overwrites": Entry("sd-scripts saves over a file of the same name.", _SD + "train_network.py:1296"),
    "output.in-use": Entry(
        "Two runs in one output directory overwrite each other's checkpoints.", _SD + "train_network.py:1296"
    ),
    "machine.memory": Entry(
        "On a Mac a GPU's memory is the machine's: what does not fit is swapped, 5 to 10 times slower. The estimate is "
        "the base in float32 and 4.54 GiB for each image of 512x512 in a batch (1.82 with mem_eff_attn, 0.21 with "
        "gradient_checkpointing).",
        "measured on sd-scripts v0.10.1, torch 2.14.1",
    ),
    "engine.missing": Entry(
        "A dry run shows the command also where there is no engine yet; a training can't start without one.", _OURS
    ),
    "engine.other-commit": Entry("Everything here was read in, and measured on, one release of sd-scripts.", _OURS),
    "evaluate.no-heldout": Entry(
        "The training loss can't tell which checkpoint generalises; the loss on pictures that were never trained can.",
        "measured on 57 public SD1.5 trainings: the lowest avr_loss picked worse than the average checkpoint in 91 %",
    ),
    "preset.drifted": Entry("The preset, its plan or the base model is no longer as `lock` recorded it.", _OURS),
    "engine.drifted": Entry("sd-scripts or a package beside it is no longer as it was recorded.", _OURS),
    "images.drifted": Entry("An image is no longer, byte for byte, as `lock` recorded it.", _OURS),
    "captions.drifted": Entry("A caption is no longer, byte for byte, as `lock` recorded it.", _OURS),
}


def _sentence(words: str) -> str:
    """Return a reason as a sentence; one that begins with an option's name keeps it as it is."""
    return f"{words[0].upper() if words.partition(' ')[0].isalpha() else words[0]}{words[1:]}."


CATALOGUE: Mapping[str, Entry] = {
    **_WRITTEN,
    **{rule.code: Entry(_sentence(rule.reason), rule.source) for rule in RULES},
}


def explanation(code: str) -> str:
    """Why there is a finding of this code, and where its fact was seen. Raises KeyError for no code."""
    entry = CATALOGUE[code]
    return (
        f"{code}\n{textwrap.fill(entry.why, 80, initial_indent='  ', subsequent_indent='  ')}\n  source: {entry.source}"
    )
