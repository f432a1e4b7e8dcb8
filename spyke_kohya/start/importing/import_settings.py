"""A training preset, and a dataset preset where the images were named by folder, from another front end's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toml

from spyke_kohya.engine.options import RESERVED, check_option, parser_defaults
from spyke_kohya.engine.targets import Target
from spyke_kohya.errors import PresetError
from spyke_kohya.presets.dataset import General
from spyke_kohya.presets.training import REQUIRED
from spyke_kohya.start.importing.command_line import ForeignSettings, read_command, read_config_file
from spyke_kohya.start.importing.kohya_ss import read_window
from spyke_kohya.start.writing import toml_lines, toml_value

# train_network.py's name of an option, and the dataset config's (sd-scripts v0.10.1 config_util.py:261)
_DATASET_NAMES = {
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "caption_extention": "caption_extension",
}
_FOLDERS = ("train_data_dir", "reg_data_dir")
_PREFIX = re.compile(r"(\d+)_?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Imported:
    """``files`` are the presets' texts by their paths; ``notes`` say what could not be carried over, and why."""

    name: str
    files: Mapping[Path, str]
    notes: tuple[str, ...]


def import_settings(text: str, root: Path, *, name: str | None, target: Target) -> Imported:
    """Turn settings into presets under ``root``; nothing is written. Raises PresetError where there is nothing to read.

    With ``train_data_dir`` the number at the head of a folder's name does count, so it becomes ``num_repeats``.
    """
    found = read_foreign(text)
    threads = found.values.pop("num_cpu_threads_per_process", None)
    name = _plain(name or str(found.values.get("output_name") or "imported"))
    files: dict[Path, str] = {}
    dataset = found.values.pop("dataset_config", None)
    folders = {key: found.values.pop(key) for key in _FOLDERS if found.values.get(key)}
    if folders and not dataset:
        dataset = f"presets/{name}_dataset.toml"
        files[root / dataset] = _dataset_text(folders, found, root)
    elif folders:
        found.notes.append(f"{', '.join(folders)}: sd-scripts ignores it beside --dataset_config")
    if not dataset:
        dataset = f"presets/{name}_dataset.toml"
        found.notes.append(f"there is no dataset: write {dataset}, or `spyke-kohya new` one")
    options = _sound_options(found, name)
    files[root / "presets" / f"{name}.toml"] = _training_text(str(dataset), options, threads, target, found.notes)
    return Imported(name, files, tuple(found.notes))


def read_foreign(text: str) -> ForeignSettings:
    """Read any of the three. Raises PresetError for a text that is none of them."""
    if text.lstrip().startswith("{"):
        return read_window(_parsed(json.loads, text, "JSON"))
    try:
        return read_config_file(_parsed(toml.loads, text, "TOML"))
    except PresetError:
        if "train_network.py" in text:
            return read_command(text)
        raise


def _parsed(parse: Any, text: str, kind: str) -> dict[str, Any]:
    try:
        document = parse(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as fault:
        remedy = "give a kohya_ss JSON preset, a --config_file TOML, or an accelerate launch ... train_network.py line"
        raise PresetError(f"it can't be read as {kind}: {fault}", remedy=remedy) from fault
    if not isinstance(document, dict) or not document:
        raise PresetError("there is nothing in it to import", remedy="give a file with settings")
    return document


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "imported"


def _sound_options(found: ForeignSettings, name: str) -> dict[str, Any]:
    """Return the options that a preset may set: none that the launcher keeps, none of a wrong kind, no mere default."""
    defaults = parser_defaults()
    options: dict[str, Any] = {}
    for key, value in found.values.items():
        if key in RESERVED:
            found.notes.append(f"{key} = {value!r}: {RESERVED[key]}")
        elif fault := check_option(key, value):
            found.notes.append(f"{key}: {fault[1]}")
        elif value != defaults[key] or key in REQUIRED:
            options[key] = value
    stand_ins = {"network_module": "networks.lora", "output_name": name, "output_dir": f"output/loras/{name}"}
    for key, value in stand_ins.items():
        if key not in options:
            found.notes.append(f"{key} was not set: it is now {value!r}")
            options[key] = value
    if "pretrained_model_name_or_path" not in options:
        found.notes.append("there is no base model: set pretrained_model_name_or_path")
    return options


def _training_text(
    dataset: str, options: Mapping[str, Any], threads: int | None, target: Target, notes: list[str]
) -> str:
    left = [f"#   {' '.join(note.split())}" for note in notes]
    lines = [
        "#:schema ../schemas/training.schema.json",
        *(["# Imported; this could not be carried over as it was:", *left] if left else ["# Imported."]),
        f"dataset = {toml_value(dataset)}",
        "",
        "[launch]",
        f"target = {toml_value(target)}",
        *([f"num_cpu_threads_per_process = {threads}"] if threads and threads > 0 else []),
        "",
        "[train_network]",
        *toml_lines(options, {}),
    ]
    return "\n".join(lines) + "\n"


def _dataset_text(folders: Mapping[str, str], found: ForeignSettings, root: Path) -> str:
    general = _general(found)
    subsets = [
        subset
        for key, folder in folders.items()
        for subset in _subsets(str(folder), root, found, is_reg=key == "reg_data_dir")
    ]
    size: dict[str, Any] = {key: general.pop(key) for key in ("resolution", "batch_size") if key in general}
    lines = [
        "#:schema ../schemas/dataset.schema.json",
        "# Imported: with --train_data_dir the number at the head of a folder's name was its repeats.",
        "",
        "[general]",
        *toml_lines(general, {}),
        "",
        "[[datasets]]",
        *toml_lines(size, {}),
    ]
    for subset in subsets:
        lines += ["", "  [[datasets.subsets]]", *toml_lines(subset, {}, "  ")]
    return "\n".join(lines) + "\n"


def _general(found: ForeignSettings) -> dict[str, Any]:
    """Return the options that a dataset preset can say itself, moved there."""
    general: dict[str, Any] = {}
    for key in list(found.values):
        name = _DATASET_NAMES.get(key, key)
        if name not in General.model_fields:
            continue
        value = found.values.pop(key)
        if name == "resolution":
            sides = [int(side) for side in re.findall(r"\d+", str(value))]
            value = sides[0] if len(set(sides)) == 1 else sides
        general[name] = value
    return general


def _subsets(folder: str, root: Path, found: ForeignSettings, *, is_reg: bool) -> list[dict[str, Any]]:
    """Return a subset for each folder ``N_name`` (sd-scripts v0.10.1 config_util.py:607)."""
    head: dict[str, Any] = {"is_reg": True} if is_reg else {}
    try:
        below = sorted(path for path in (root / Path(folder).expanduser()).iterdir() if path.is_dir())
    except (OSError, RuntimeError, ValueError):
        found.notes.append(f"{folder}: it can't be looked into here, so name its folders and their repeats yourself")
        return [head | {"image_dir": folder, "num_repeats": 1}]
    subsets = []
    for path in below:
        match = _PREFIX.fullmatch(path.name)
        if match is None or int(match[1]) < 1:
            found.notes.append(f"{path.name}: sd-scripts ignores a folder whose name does not begin with its repeats")
            continue
        written = f"{folder.rstrip('/')}/{path.name}"
        subsets.append(head | {"image_dir": written, "num_repeats": int(match[1]), "class_tokens": match[2]})
    if not subsets:
        found.notes.append(f"{folder}: there is no folder named like 10_name in it")
    return subsets
