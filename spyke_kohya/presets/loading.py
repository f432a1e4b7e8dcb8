"""Reads a preset by its name: a typed preset, or everything that is wrong with the file."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import toml

from spyke_kohya.engine.command import expand_tilde
from spyke_kohya.errors import UsageError
from spyke_kohya.findings import Finding, error, errors_in
from spyke_kohya.presets.dataset import DatasetConfig, parse_dataset_config
from spyke_kohya.presets.training import TrainingPreset, parse_training_preset, sound_options

Kind = Literal["dataset", "training"]
Document = dict[str, Any]

PRESETS = Path("presets")
# What toml 0.10.2 raises on a malformed document, beside its own TomlDecodeError (a ValueError).
_TOML_FAULTS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Loaded:
    """A preset as it was read. ``training`` and ``dataset`` are None where ``findings`` has errors of the file.

    ``options`` are the sound ones of a training preset, also where it has faults, so that the rest can be examined.
    ``dataset_path``, ``dataset_text`` and ``dataset_document`` are those of the dataset preset that it names.
    """

    name: str
    path: Path
    kind: Kind
    text: str
    findings: tuple[Finding, ...]
    training: TrainingPreset | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dataset: DatasetConfig | None = None
    dataset_path: Path | None = None
    dataset_text: str = ""
    dataset_document: Document = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not errors_in(self.findings)


@dataclass(frozen=True)
class _File:
    path: Path
    text: str = ""
    document: Document | None = None
    findings: list[Finding] = field(default_factory=list)


def load(name: str, root: Path, settings: Sequence[str] = ()) -> Loaded:
    """Load the preset ``name``, a path or a bare name, with ``--set`` settings put over its values.

    A missing or broken file raises nothing: it has findings under ``schema.``, as for any other fault.
    Raises UsageError for a setting that is not ``a.b=value``.
    """
    file = _read(name, root, is_preset_file=True)
    if file.document is None:
        kind: Kind = "training" if "train_network" in file.text or not file.text else "dataset"
        return Loaded(name, file.path, kind, file.text, tuple(file.findings))
    document = reduce(apply_setting, settings, file.document)
    text = file.text if document is file.document else toml.dumps(document)
    if document.keys() & TrainingPreset.model_fields:
        return _load_training(name, _File(file.path, text, document), root)
    config, findings = parse_dataset_config(document, shown_path(file.path, root))
    return Loaded(
        name,
        file.path,
        "dataset",
        file.text,
        tuple(findings),
        dataset=config,
        dataset_path=file.path,
        dataset_text=text,
        dataset_document=document,
    )


def load_document(name: str, path: Path, document: Document, root: Path) -> Loaded:
    """Load a training preset that is known as a document, as a run's record holds it, and not as a file."""
    return _load_training(name, _File(path, toml.dumps(document), document), root)


def find_preset(name: str, root: Path) -> Path:
    """Return the file that ``name`` means: a path where it looks like one, else ``presets/NAME.toml``."""
    given = Path(expand_tilde(name))
    if given.suffix in (".toml", ".json") or len(given.parts) > 1:
        return root / given
    return root / PRESETS / f"{name}.toml"


def apply_setting(document: Document, setting: str) -> Document:
    """Return ``document`` with one ``table.key=value`` put over it; the value is TOML, or else a plain string.

    sd-scripts lets ``max_train_epochs`` win over ``max_train_steps``, so setting either one takes the other away. The
    steps that are set are also those to expect.
    """
    dotted, equals, raw = setting.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(
            f"--set {setting!r} is not of the form table.key=value",
            remedy="write for example --set train_network.max_train_steps=20",
        )
    changed = deepcopy(document)
    value = _value(raw)
    _put(changed, keys, value, setting)
    if value is None or keys[:-1] != ["train_network"]:
        return changed
    if keys[-1] == "max_train_epochs":
        changed["train_network"].pop("max_train_steps", None)
    if keys[-1] == "max_train_steps":
        changed["train_network"].pop("max_train_epochs", None)
        expect = changed.get("expect")
        if isinstance(expect, dict) and "total_steps" in expect:
            expect["total_steps"] = value
    return changed


def _load_training(name: str, file: _File, root: Path) -> Loaded:
    where = shown_path(file.path, root)
    document = file.document or {}
    preset, findings = parse_training_preset(document, where)
    options = sound_options(document.get("train_network"))
    loaded = Loaded(name, file.path, "training", file.text, tuple(findings), training=preset, options=options)
    dataset_name = document.get("dataset")
    if not isinstance(dataset_name, str) or not dataset_name:
        return loaded
    dataset = _read(dataset_name, root, is_preset_file=False, named_by=f"{where}: dataset")
    config, faults = None, dataset.findings
    if dataset.document is not None:
        config, faults = parse_dataset_config(dataset.document, shown_path(dataset.path, root))
    return replace(
        loaded,
        findings=(*findings, *faults),
        dataset=config,
        dataset_path=dataset.path,
        dataset_text=dataset.text,
        dataset_document=dataset.document or {},
    )


def _read(name: str, root: Path, *, is_preset_file: bool, named_by: str = "") -> _File:
    path = find_preset(name, root)
    where = named_by or shown_path(path, root)
    try:
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            message = "it is a pipe or a device, which may never end"
            return _File(path, findings=[error("schema.unreadable", where, message, "name a preset file")])
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return _File(path, findings=[_no_such_preset(name, path, root, where)])
    except UnicodeDecodeError as fault:
        message = f"the file is not UTF-8: byte {fault.start} is 0x{fault.object[fault.start]:02x}"
        return _File(path, findings=[error("schema.not-utf8", where, message, "save it as UTF-8")])
    except (OSError, ValueError) as fault:  # ValueError: a name that no file can have
        message = f"the file can't be read: {getattr(fault, 'strerror', fault)}"
        return _File(path, findings=[error("schema.unreadable", where, message, "name a preset file")])
    try:
        document = json.loads(text) if path.suffix.lower() == ".json" else toml.loads(text)
    except _TOML_FAULTS as fault:
        return _File(path, text, findings=[_broken(fault, path, where)])
    if not isinstance(document, dict):
        message = "the file holds no table"
        return _File(path, text, findings=[error("schema.broken", where, message, "write a preset's tables")])
    if is_preset_file or path.suffix.lower() in (".toml", ".json"):
        return _File(path, text, document)
    other_name = error("schema.file-name", where, "sd-scripts reads only .toml and .json", "name it .toml")
    return _File(path, text, findings=[other_name])


def _no_such_preset(name: str, path: Path, root: Path, where: str) -> Finding:
    known = sorted(file.stem for file in (root / PRESETS).glob("*.toml"))
    close = get_close_matches(path.stem, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(known)}" if known else "name its file"
    return error("schema.no-such-preset", where, f"there is no preset `{name}`: {path} does not exist", hint)


def _broken(fault: Exception, path: Path, where: str) -> Finding:
    line = getattr(fault, "lineno", None)
    message = getattr(fault, "msg", None) or str(fault) or "it can't be parsed"
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    place = f"{where}, line {line}" if line else where
    remedy = "correct that line; sd-scripts reads it with the same parser"
    return error("schema.broken", place, f"broken {kind}: {message}", remedy)


def shown_path(path: Path, root: Path) -> str:
    """Return the path as a person would write it: relative to the root where it lies under it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _value(raw: str) -> object:
    if not raw.strip():
        return None
    try:
        return toml.loads(f"value = {raw}")["value"]
    except _TOML_FAULTS:
        return raw.strip()


def _put(document: Document, keys: list[str], value: object, setting: str) -> None:
    table: Any = document
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageError(f"--set {setting!r}: {'.'.join(keys[:-1])} is not a table", remedy="set a key of a table")
    if value is None:
        table.pop(keys[-1], None)
    else:
        table[keys[-1]] = value
