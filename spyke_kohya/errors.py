"""Every way in which a command can fail, each with its exit code.

Libraries raise these; only ``cli`` prints them. An error says what happened, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spyke_kohya.findings import Finding, count_text, errors_in


class SpykeError(Exception):
    """What happened (``what``), the place (``where``) and the remedy, all for a person to read.

    ``findings`` are the reasons of a refusal. ``done`` is what was done before, in the form of the command's JSON.
    """

    exit_code = 1
    code = "unexpected"  # a stable name of the kind, for programs

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        remedy: str = "",
        findings: Sequence[Finding] = (),
        done: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__("\n".join([what, *(f"{one.where}: {one.message}" for one in findings)]))
        self.what = what
        self.where = where
        self.remedy = remedy
        self.findings = tuple(findings)
        self.done = done or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of a command that fails."""
        about = {"code": self.code, "message": self.what, "where": self.where, "remedy": self.remedy}
        found = {"findings": [finding.to_dict() for finding in self.findings]} if self.findings else {}
        return {"error": about | found, **self.done}


class UsageError(SpykeError):
    """The command was called wrongly."""

    exit_code = 2
    code = "usage"


class PresetError(SpykeError):
    """A preset asks for something that can't be done."""

    exit_code = 3
    code = "preset"


class DatasetError(SpykeError):
    """The images or captions on the disk can't be trained on."""

    exit_code = 4
    code = "dataset"


class EngineError(SpykeError):
    """sd-scripts, its Python or its packages are missing or unusable."""

    exit_code = 5
    code = "engine"


class TrainingFailed(SpykeError):
    """The engine ran and did not end well."""

    exit_code = 6
    code = "training-failed"


class NothingToRank(SpykeError):
    """There is no loss, or no checkpoint, to judge."""

    exit_code = 7
    code = "nothing-to-rank"


class DeployError(SpykeError):
    """A checkpoint could not be put where it is used."""

    exit_code = 8
    code = "deploy"


class Interrupted(SpykeError):
    """A person stopped the run."""

    exit_code = 130
    code = "interrupted"


def refusal(findings: Sequence[Finding], what: str) -> SpykeError:
    """Return the error that refuses something for its findings; its kind has the lowest of their exit codes."""
    blocking = errors_in(findings) or list(findings)
    kind = min((_kind(finding) for finding in blocking), key=lambda error: error.exit_code, default=PresetError)
    return kind(f"{what}: {count_text(findings)}", findings=findings)


def exit_code_of(findings: Sequence[Finding], *, strict: bool) -> int:
    """Return the exit code that findings ask for, 0 where nothing blocks; ``strict`` takes warnings for errors."""
    blocking = list(findings) if strict else errors_in(findings)
    return min((_kind(finding).exit_code for finding in blocking), default=0)


def _kind(finding: Finding) -> type[SpykeError]:
    room = finding.code.partition(".")[0]
    if room in ("dataset", "images", "captions"):
        return DatasetError
    return EngineError if room == "engine" else PresetError
