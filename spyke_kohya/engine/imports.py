"""What an engine imports when it starts, read from its source: no list of ours that could fall behind."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


def required_modules(directory: Path, script: str) -> frozenset[str]:
    """Return the top-level names of all third-party modules that ``script`` and the modules it imports must find.

    Only imports that run at the start count: those in a function or behind ``try`` are optional. A file that can't be
    read or parsed adds nothing. Takes about a second on sd-scripts.
    """
    required: set[str] = set()
    seen: set[Path] = set()
    waiting = [directory / script]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in _imports_of(file, directory):
            local = list(_local_files(directory, name))
            waiting += local
            if not local and not (directory / name.partition(".")[0]).is_dir():
                required.add(name.partition(".")[0])
    return frozenset(required - set(sys.stdlib_module_names))


def _imports_of(file: Path, directory: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # on the engine's source, which is not ours
            body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return
    for node in _that_run_at_once(body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(directory).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _that_run_at_once(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if not isinstance(node, ast.If):
            yield node
        elif not any(word in ast.unparse(node.test) for word in ("TYPE_CHECKING", "__main__")):
            yield from _that_run_at_once(node.body)


def _local_files(directory: Path, name: str) -> Iterator[Path]:
    """Find the engine's own files that ``import name`` runs: the module's, and those of the packages around it."""
    parts = name.split(".") if name else []
    for length in range(1, len(parts) + 1):
        place = directory.joinpath(*parts[:length])
        yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())
