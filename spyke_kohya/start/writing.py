"""Presets as text: TOML with a comment for what was decided, written where nothing stands yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from spyke_kohya.errors import PresetError

Comments = Mapping[str, str]


def toml_value(value: object) -> str:
    """Return a plain value in TOML, as toml 0.10.2 and everyone else reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return repr(value)


def toml_lines(values: Mapping[str, object], comments: Comments, indent: str = "") -> list[str]:
    """One line a key, with its comment where there is one."""
    lines = []
    for key, value in values.items():
        line = f"{indent}{key} = {toml_value(value)}"
        lines.append(f"{line:<46} # {comments[key]}" if key in comments else line)
    return lines


def write_new(files: Mapping[Path, str]) -> None:
    """Write all of these, or none. Raises PresetError where one stands already, or can't be written."""
    for path in files:
        if path.exists() or path.is_symlink():
            raise PresetError(
                "there is such a file already", where=str(path), remedy="choose another name, or remove it"
            )
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except (OSError, UnicodeEncodeError) as fault:
            raise PresetError(f"it can't be written: {fault}", where=str(path), remedy="choose another name") from fault
