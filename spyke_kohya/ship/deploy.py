"""Ship it: put a chosen checkpoint where ComfyUI, A1111 or Forge looks for LoRAs, with its history, undoably.

Which checkpoint to ship is left to ``shipment.py``; what a LoRA file is, to ``engine/lora_file.py``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from spyke_kohya import __version__
from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.lora_file import (
    LoraFile,
    alphas_of,
    data_sha256,
    first_not_finite,
    read_lora,
    write_with_metadata,
)
from spyke_kohya.errors import DeployError
from spyke_kohya.formats.tensor_file import TensorFileError
from spyke_kohya.ship.choose import Shipment

PROVENANCE_SUFFIX = ".spyke.json"
SCHEMA_VERSION = 1
_SUFFIX = ".safetensors"
_SPARE_BYTES = 1 << 20

Ui = Literal["ComfyUI", "A1111 or Forge"]

# Where each keeps its LoRAs, and what else tells it: a fresh install has no LoRA folder yet.
_LAYOUTS: tuple[tuple[Ui, str, tuple[str, ...]], ...] = (
    ("ComfyUI", "loras", ("comfy", "custom_nodes", "models/checkpoints")),
    ("A1111 or Forge", "Lora", ("webui.py", "models/Stable-diffusion", "extensions-builtin")),
)


@dataclass(frozen=True)
class Place:
    """A folder of LoRAs and whose it is."""

    ui: Ui
    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def provenance(self, name: str) -> Path:
        return self.folder / f"{name}{PROVENANCE_SUFFIX}"


@dataclass(frozen=True)
class Deployed:
    """A deployed file and what its provenance says; ``state`` is what is true of it now."""

    name: str
    file: Path
    state: Literal["as deployed", "changed since", "missing"]
    provenance: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "file": str(self.file), "state": self.state, **self.provenance}


def find_place(directory: Path) -> Place:
    """The LoRA folder of a UI's directory, or of the folder itself. Raises DeployError for any other directory."""
    if not directory.is_dir():
        raise DeployError(
            "no such directory", where=str(directory), remedy="name the directory of ComfyUI, A1111 or Forge"
        )
    for ui, folder, signs in _LAYOUTS:
        if directory.name == folder and directory.parent.name == "models":
            return Place(ui, directory)
        loras = directory / "models" / folder
        if loras.is_dir() or ((directory / "models").is_dir() and any((directory / sign).exists() for sign in signs)):
            return Place(ui, loras)
    raise DeployError(
        "neither ComfyUI nor A1111 or Forge: there is no models/loras and no models/Lora in it",
        where=str(directory),
        remedy="name the directory that holds its `models` folder",
    )


def deploy(
    shipment: Shipment,
    place: Place,
    *,
    now: datetime,
    replace: bool = False,
    link: bool = False,
    metadata: bool = False,
) -> Deployed:
    """Check the checkpoint, then put it into the place under its name, whole or not at all.

    The same file being there already is no fault. A different one is, unless ``replace``, which keeps it beside the new
    one. ``link`` makes a symbolic link; ``metadata`` adds the trigger and the run to the file's header. Raises
    DeployError.
    """
    lora = check_lora(shipment.checkpoint, shipment.base)
    if link and metadata:
        raise DeployError("a link can't have a header of its own", remedy="deploy with --link or with --metadata")
    header = _metadata_of(shipment) if metadata else {}
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        with _prepared(lora, place.file(shipment.name), header, link=link) as fresh:
            return _put(fresh, lora, shipment, place, now, replace=replace, how=("linked" if link else "copied"))
    except OSError as fault:
        raise _disk_fault(fault, place.folder) from fault


def check_lora(path: Path, base: Path | None = None) -> LoraFile:
    """The checkpoint's header, if the file can be used: whole, finite, of a known rank, made for the base's family.

    Raises DeployError.
    """
    where = str(path)
    try:
        lora = read_lora(path)
        alphas_of(lora)
        broken = first_not_finite(lora)
    except TensorFileError as fault:
        raise DeployError(str(fault), where=where, remedy="deploy another checkpoint with --step N") from fault
    if broken:
        message = f"its weights are not all numbers (the first such tensor is {broken}): it would draw black pictures"
        raise DeployError(message, where=where, remedy="deploy a checkpoint from before training diverged: --step N")
    family = inspect_base_model(base).family if base else "unknown"
    if "unknown" not in (family, lora.family) and family != lora.family:
        message = f"its keys are those of a LoRA for {lora.family}, and its base model {base} is {family}"
        raise DeployError(message, where=where, remedy="look into the preset: is this the file that it trained?")
    return lora


def undo(place: Place, name: str) -> str:
    """Take a deployed file away and put back what was there before it. Says what was done; raises DeployError."""
    record = _read_provenance(place.provenance(name))
    file = place.file(name)
    if _state_of(file, record) == "changed since":
        remedy = "move it away yourself, then undo again"
        raise DeployError("this file is not the one that was deployed", where=str(file), remedy=remedy)
    if record["how"] == "was there":
        place.provenance(name).unlink()
        return f"{file} was there before it was deployed, and stays"
    file.unlink(missing_ok=True)
    place.provenance(name).unlink()
    if not record["replaced"]:
        return f"removed {file}"
    (place.folder / record["replaced"]).replace(file)
    before = place.folder / _set_aside_name(place.provenance(name).name, record["deployed_at"])
    if before.is_file():
        before.replace(place.provenance(name))
    return f"removed what was deployed, and put back what {file} was before"


def deployed_in(place: Place) -> list[Deployed]:
    """What this project deployed there, by name; files are read to tell whether they are still the same."""
    found = []
    for path in sorted(place.folder.glob(f"*{PROVENANCE_SUFFIX}")):
        name, record = path.name.removesuffix(PROVENANCE_SUFFIX), _read_provenance(path)
        found.append(Deployed(name, place.file(name), _state_of(place.file(name), record), record))
    return found


def _metadata_of(shipment: Shipment) -> dict[str, str]:
    """``modelspec.trigger_phrase`` is the standard's own key (sd-scripts v0.10.1 sai_model_spec.py:57)."""
    known = {
        "modelspec.trigger_phrase": shipment.trigger,
        "spyke_kohya.run": shipment.run.name if shipment.run else None,
        "spyke_kohya.step": str(shipment.step) if shipment.step is not None else None,
    }
    return {name: value for name, value in known.items() if value}


@contextmanager
def _prepared(lora: LoraFile, target: Path, header: Mapping[str, str], *, link: bool) -> Iterator[Path]:
    """The new file under a name of its own beside ``target``, verified; gone if it isn't moved from there."""
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        if link:
            fresh.symlink_to(lora.path.resolve())
        else:
            _check_space(lora, target.parent)
            with fresh.open("xb") as stream:
                _write(lora, header, stream)
            _verify(lora, fresh, header)
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def _write(lora: LoraFile, header: Mapping[str, str], stream: BinaryIO) -> None:
    if header:
        write_with_metadata(lora, header, stream)
    else:
        with lora.path.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 22)
    stream.flush()
    os.fsync(stream.fileno())


def _verify(lora: LoraFile, fresh: Path, header: Mapping[str, str]) -> None:
    same = (
        data_sha256(read_lora(fresh)) == data_sha256(lora) if header else file_sha256(fresh) == file_sha256(lora.path)
    )
    if not same:
        raise DeployError("the copy differs from the checkpoint", where=str(fresh), remedy="check the disk, try again")


def _put(
    fresh: Path, lora: LoraFile, shipment: Shipment, place: Place, now: datetime, *, replace: bool, how: str
) -> Deployed:
    file, note = place.file(shipment.name), place.provenance(shipment.name)
    record = _provenance(fresh, lora, shipment, place, now, how)
    if _exists(file) and file_sha256(file) == record["sha256"]:
        if not note.is_file():
            _written(note, record | {"how": "was there"}).replace(note)
        return Deployed(shipment.name, file, "as deployed", _read_provenance(note))
    if _exists(file):
        if not replace:
            remedy = "choose another --name, or --replace it (the old one is kept)"
            raise DeployError("there is a different file of this name", where=str(file), remedy=remedy)
        record["replaced"] = _set_aside_name(file.name, record["deployed_at"])
    fresh_note = _written(note, record)
    if record["replaced"]:
        _set_aside(file, record["deployed_at"])
        _set_aside(note, record["deployed_at"])
    fresh.replace(file)
    fresh_note.replace(note)
    _sync_directory(place.folder)
    return Deployed(shipment.name, file, "as deployed", record)


def _set_aside(file: Path, deployed_at: str) -> None:
    """Keep an old file under a name that no UI lists."""
    if _exists(file):
        file.replace(file.with_name(_set_aside_name(file.name, deployed_at)))


def _set_aside_name(name: str, deployed_at: str) -> str:
    return f"{name}.replaced-{deployed_at.replace(':', '').replace('-', '').replace('T', '-')}"


def _provenance(
    fresh: Path, lora: LoraFile, shipment: Shipment, place: Place, now: datetime, how: str
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": shipment.name,
        "ui": place.ui,
        "how": how,
        "deployed_at": now.isoformat(timespec="seconds"),
        "sha256": file_sha256(fresh),
        "tensors_sha256": data_sha256(lora),
        "source": str(shipment.checkpoint.resolve()),
        "source_sha256": file_sha256(shipment.checkpoint),
        "run": shipment.run.name if shipment.run else None,
        "run_directory": str(shipment.run.resolve()) if shipment.run else None,
        "output_name": shipment.output_name,
        "step": shipment.step,
        "trigger": shipment.trigger,
        "verdict": shipment.verdict,
        "family": lora.family,
        "ranks": list(lora.ranks),
        "alphas": list(alphas_of(lora)),
        "replaced": None,
        "spyke_kohya": __version__,
    }


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        remedy = "`spyke-kohya list DIR` shows what was deployed"
        raise DeployError("nothing was deployed here under this name", where=str(path), remedy=remedy) from fault
    except ValueError as fault:
        raise DeployError(f"its provenance can't be read: {fault}", where=str(path)) from fault
    if not isinstance(record, dict) or not {"sha256", "how", "replaced", "deployed_at"} <= record.keys():
        raise DeployError("this is no provenance of a deployed LoRA", where=str(path))
    return record


def _state_of(file: Path, record: Mapping[str, Any]) -> Literal["as deployed", "changed since", "missing"]:
    if not file.exists():
        return "missing"
    return "as deployed" if file_sha256(file) == record["sha256"] else "changed since"


def _exists(file: Path) -> bool:
    return file.exists() or file.is_symlink()


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes; of a link's target, and "" where that is gone."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _written(path: Path, value: Mapping[str, Any]) -> Path:
    """The JSON in a file of its own beside ``path``, to be moved there."""
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return fresh


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(lora: LoraFile, folder: Path) -> None:
    needed, free = lora.path.stat().st_size + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        message = f"the disk is full: {free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are needed"
        raise DeployError(message, where=str(folder), remedy="make room, or deploy with --link")


def _disk_fault(fault: OSError, folder: Path) -> DeployError:
    full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room, or deploy with --link" if full else "give yourself the right to write there"
    return DeployError(f"can't write there: {fault.strerror}; nothing was changed", where=str(folder), remedy=remedy)
