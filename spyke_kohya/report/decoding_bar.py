"""A bar on the terminal while images are decoded; nothing anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FEW = 100


@contextmanager
def decoding_bar(*, is_terminal: bool) -> Iterator[Callable[[int], Callable[[int], object]]]:
    """Gives what is told how many images there are, and in turn gives what is told how many are done."""
    if not is_terminal:
        yield lambda _: lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def begin(count: int) -> Callable[[int], object]:
            if count < _FEW:
                return lambda _: None
            task = progress.add_task("", total=count)
            return lambda done: progress.update(task, completed=done)

        yield begin
