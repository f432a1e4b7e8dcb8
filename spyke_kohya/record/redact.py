"""Secrets and the home directory, taken out of what is recorded or printed.

A secret is what looks like a Hugging Face token or stands beside a wandb key's name, and whatever value the
environment holds under a name such as HF_TOKEN or WANDB_API_KEY.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

HIDDEN = "[redacted]"
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_KEY_BESIDE_NAME = re.compile(r"(?i)(wandb[\w -]*key\W{1,4}|api[_-]?key\W{1,4}|netrc\W{1,4})[0-9a-f]{40}\b")
_SECRET_NAME = re.compile(r"(TOKEN|API_KEY|APIKEY|SECRET|PASSWORD)S?$", re.IGNORECASE)
_SHORTEST_SECRET = 8

Value = TypeVar("Value")


class Redactor:
    """Knows the secrets of one environment and the home directory of one person."""

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        self.secrets = tuple(sorted(_secrets_in(environment), key=len, reverse=True))
        self._home = None if home == Path("/") else re.compile(re.escape(str(home)) + r"(?![\w.-])")

    def text(self, text: str) -> str:
        """Return ``text`` without secrets, the home directory as ``~``."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        text = _KEY_BESIDE_NAME.sub(rf"\g<1>{HIDDEN}", _TOKEN.sub(HIDDEN, text))
        return self._home.sub("~", text) if self._home else text

    def value(self, value: Any) -> Any:
        """Redact all texts of a JSON value; the keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value

    def event(self, event: Value) -> Value:
        """Redact the texts of a dataclass of plain values."""
        values = {field.name: getattr(event, field.name) for field in fields(event)}  # type: ignore[arg-type]
        clean = self.value(values)
        return event if clean == values else replace(event, **clean)  # type: ignore[type-var]


def restored(value: Any, home: Path) -> Any:
    """Put this machine's home directory back into a redacted JSON value, where ``~`` begins a path."""
    if isinstance(value, str):
        return re.sub(r"(^|[=\s:'\"])~(?=/|$)", lambda match: match[1] + str(home), value)
    if isinstance(value, Mapping):
        return {key: restored(item, home) for key, item in value.items()}
    return [restored(item, home) for item in value] if isinstance(value, list) else value


class SecretMask:
    """Puts asterisks over known secrets in a stream of bytes, however it is cut; all other bytes stay in place."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = tuple(secret.encode() for secret in secrets)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what can be passed on; hold back the end of it that may be the beginning of a secret."""
        data = self._held + data
        for secret in self._secrets:
            data = data.replace(secret, b"*" * len(secret))
        longest = min(len(data), max(map(len, self._secrets), default=1) - 1)
        starts = range(len(data) - longest, len(data))
        cut = next((at for at in starts if any(secret.startswith(data[at:]) for secret in self._secrets)), len(data))
        self._held = data[cut:]
        return data[:cut]

    def finish(self) -> bytes:
        """Return what was held back."""
        held, self._held = self._held, b""
        return held


def _secrets_in(environment: Mapping[str, str]) -> set[str]:
    named = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    return {value for value in named if len(value) >= _SHORTEST_SECRET and not value.startswith("/")}
