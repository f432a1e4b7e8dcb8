"""The order of the rooms, and who may use what: one table, checked from the code, and shown in CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.commands import PROJECT

# From the ground up: a room may import itself and what stands above it in this table, and nothing below.
ROOMS = {
    "findings": "what a finding is",
    "errors": "every way to end other than well, each with its exit code",
    "files": "hash a file, write a file whole",
    "formats": "other people's file formats: safetensors, TensorBoard's events, CLIP's tokens",
    "process": "start, signal and read processes, and know which run",
    "engine": "all that is known of sd-scripts and accelerate",
    "presets": "what was asked: presets read, with all their faults",
    "dataset": "what is on the disk: images, captions, copies",
    "plan": "what will happen: images, batches, steps, checkpoints",
    "record": "what is known of a run: its directory, its record, who holds it",
    "audit": "what is wrong: one module a concern",
    "repeat": "what decides a training, and what of it has changed",
    "run": "make it happen: launch, supervise, resume",
    "rank": "judge its checkpoints",
    "evaluate": "measure its checkpoints, and render samples",
    "report": "show it: text, pictures, pages",
    "ship": "put a checkpoint where it is used",
    "start": "write presets for a person",
    "session": "examine, prepare, run, rank: what `api` and `cli` both call",
    "api": "every command for notebooks and programs",
    "cli": "parse, call one function, print, exit: one file a command",
}
APART = {"programs": "stand-alone programs that run under the engine's Python; never imported"}

# What only these may import or use. Everything else is given it as an argument.
ONLY = {
    "subprocess": {"process.engine_process"},
    "psutil": {"process.process_table"},
    "click": {"cli"},
    "torch": set(),
    "accelerate": set(),
    "diffusers": set(),
    "transformers": set(),
    "safetensors": set(),
    "library": set(),  # sd-scripts' own package
    "os.environ": {"cli"},
    "os.getenv": {"cli"},
    "Path.home": {"cli", "api"},
    "datetime.now": {"cli", "api", "session"},
    "time.time": {"cli", "api", "session"},
    "time.sleep": {"cli", "process"},
    "sys.stdout": {"cli"},
    "sys.stderr": {"cli"},
}


@dataclass(frozen=True)
class Use:
    """A name that a module imports or uses; ``is_typing``: for type checkers alone."""

    module: str
    line: int
    name: str
    is_typing: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.line} uses {self.name}"


def modules_of(package: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each module by its dotted name below the package; a folder's own is its name."""
    trees = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and parts[0] not in APART:
            trees[name] = ast.parse(file.read_text(encoding="utf-8"))
    return trees


def uses_of(module: str, tree: ast.Module) -> Iterator[Use]:
    """Yield everything that a module imports, and every ``a.b`` that it names."""
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        is_typing = id(node) in typing_only
        if isinstance(node, ast.Import):
            yield from (Use(module, node.lineno, alias.name, is_typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}:{node.lineno}: imports are absolute"
            yield from (Use(module, node.lineno, f"{node.module}.{alias.name}", is_typing) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield Use(module, node.lineno, f"{node.value.id}.{node.attr}", is_typing)


def imports_within(trees: dict[str, ast.Module], package: str) -> Iterator[tuple[Use, str]]:
    """Yield what modules import of their own package, with the module that it is in."""
    for module, tree in trees.items():
        for use in uses_of(module, tree):
            head, _, name = use.name.partition(".")
            if head == package and name:
                found = name if name in trees else name.rpartition(".")[0]
                if found in trees:
                    yield use, found


def wrong_ways(trees: dict[str, ast.Module], package: str) -> list[str]:
    """Return the imports that go to a room below, or from a room that the table doesn't have."""
    order = {room: place for place, room in enumerate(ROOMS)}
    rooms = {name.partition(".")[0] for name in trees}
    unknown = [f"{room} is not in the table" for room in sorted(rooms - order.keys())]
    return unknown + [
        str(use)
        for use, found in imports_within(trees, package)
        if order.get(found.partition(".")[0], -1) > order.get(use.module.partition(".")[0], len(order))
    ]


def circle(trees: dict[str, ast.Module], package: str) -> list[str]:
    """Return the modules of one circle of imports, or an empty list; late imports count, those for types don't."""
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for use, found in imports_within(trees, package):
        if not use.is_typing and found != use.module:
            graph[use.module].add(found)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        return list(fault.args[1])
    return []


def forbidden(trees: dict[str, ast.Module]) -> list[str]:
    """Return the uses of a name of ``ONLY`` outside the modules and rooms that may."""
    return [
        str(use)
        for module, tree in trees.items()
        for use in uses_of(module, tree)
        for name, allowed in ONLY.items()
        if (use.name == name or use.name.startswith(f"{name}.")) and not use.is_typing
        if not ({module, module.partition(".")[0]} & allowed)
    ]


def doubled_names(trees: dict[str, ast.Module]) -> list[str]:
    """Return the base names that two modules share. A file in cli/ bears its command's name, which is a reason."""
    names = Counter(name.rpartition(".")[2] for name in trees if "." in name and not name.startswith("cli."))
    return sorted(name for name, count in names.items() if count > 1)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return modules_of(PROJECT / "spyke_kohya")


def test_a_room_imports_only_from_above(trees):
    assert wrong_ways(trees, "spyke_kohya") == []


def test_no_circle_of_imports(trees):
    assert circle(trees, "spyke_kohya") == []


def test_who_may_use_what(trees):
    assert forbidden(trees) == []


def test_no_two_modules_share_a_base_name(trees):
    assert doubled_names(trees) == []


def test_the_contributors_page_shows_the_same_table():
    page = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = "\n".join(f"{room:<10} {purpose}" for room, purpose in (ROOMS | APART).items())
    assert f"```\n{table}\n```" in page


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("formats/tensor_file.py", "from demo.run.launch import L", "formats.tensor_file:1 uses demo.run.launch.L"),
        ("engine/x.py", "def late():\n    from demo.cli import main", "engine.x:2 uses demo.cli.main"),
        ("utils.py", "", "utils is not in the table"),
        ("rank/x.py", "import subprocess", "rank.x:1 uses subprocess"),
        ("process/other.py", "from subprocess import run", "process.other:1 uses subprocess.run"),
        ("engine/x.py", "import torch.nn", "engine.x:1 uses torch.nn"),
        ("run/x.py", "def f():\n    return os.environ['HOME']", "run.x:2 uses os.environ"),
        ("session.py", "home = Path.home()", "session:1 uses Path.home"),
        ("rank/x.py", "now = datetime.now()", "rank.x:1 uses datetime.now"),
    ],
)  # fmt: skip
def test_what_stands_the_wrong_way_is_found(tmp_path, file, line, found):
    for name in ("run/launch.py", "cli/__init__.py", file):
        place = tmp_path / "demo" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(line if name == file else "")
    trees = modules_of(tmp_path / "demo")
    assert [*wrong_ways(trees, "demo"), *forbidden(trees)] == [found]


def test_a_circle_and_a_doubled_name_are_found(tmp_path):
    for name, line in (
        ("rank/a.py", "import demo.rank.b"),
        ("rank/b.py", "def f(): import demo.rank.a"),
        ("run/a.py", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(line)
    trees = modules_of(tmp_path)
    assert set(circle(trees, "demo")) == {"rank.a", "rank.b"}
    assert doubled_names(trees) == ["a"]
