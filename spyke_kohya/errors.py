"""Every way this program can end other than well, each with its exit code.

Libraries raise these; only ``cli`` prints them. An error says what happened, where, and what to do.
"""

from __future__ import annotations


class SpykeError(Exception):
    """What happened (``what``), the place (``where``) and the remedy, all for a person to read."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy


class UsageError(SpykeError):
    """The command's own words are off."""

    exit_code = 2


class PresetError(SpykeError):
    """A preset asks for something that can't be done."""

    exit_code = 3


class DatasetError(SpykeError):
    """The images or captions on the disk can't be trained on."""

    exit_code = 4


class EngineError(SpykeError):
    """sd-scripts, its Python or its packages are missing or unusable."""

    exit_code = 5


class TrainingFailed(SpykeError):
    """The engine ran and did not end well."""

    exit_code = 6


class NothingToRank(SpykeError):
    """There is no loss, or no checkpoint, to judge."""

    exit_code = 7


class DeployError(SpykeError):
    """A checkpoint could not be put where it is used."""

    exit_code = 8


class Interrupted(SpykeError):
    """A person stopped the run."""

    exit_code = 130
