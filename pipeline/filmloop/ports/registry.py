"""Where versions of a model are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from filmloop.core.documents import VersionInfo
from filmloop.core.errors import DataError

CHAMPION = "champion"
CHALLENGER = "challenger"


class Registry(Protocol):
    """Versions of one registered model, and the aliases that point at them.

    `set_alias` is a plain write: compare-and-set and the audit trail are `filmloop.promotion.publish`'s, under the
    ledger's lock.

    Attributes:
        model: Registered model name.
    """

    model: str

    @property
    def url(self) -> str:
        """Address of the UI page of this model."""

    def register(
        self,
        bundle: Path,
        *,
        key: str,
        description: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> VersionInfo:
        """Store a verified bundle as a new version. Idempotent by `key` (the cycle id).

        Raises:
            TransientError: the server is away. A half-made version is finished by the next call with the same key.
        """

    def get(self, version_or_alias: str) -> VersionInfo | None:
        """One version by number or alias; None if there is none.

        Raises:
            TransientError: the server is away.
        """

    def versions(self, *, after: int = 0) -> list[VersionInfo]:
        """All versions with a number above `after`, newest first.

        Raises:
            TransientError: the server is away.
        """

    def download(self, version: str, target: Path) -> Path:
        """Bring the bundle of `version` into the folder `target`; the caller verifies it before loading anything.

        Raises:
            TransientError: the server is away.
            DataError: no such version, or it has no bundle.
        """

    def set_alias(self, alias: str, version: str) -> None:
        """Point `alias` at `version`.

        Raises:
            TransientError: the server is away.
        """

    def annotate(self, version: str, *, description: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Replace the description of a version and add tags.

        Raises:
            TransientError: the server is away.
        """


def none_yet(model: str) -> DataError:
    """The error for whoever asks for a version before there is any."""
    return DataError(f"There is no version of {model} yet.", hint="`filmloop retrain` makes the first.")


def not_there(registry: Registry, wanted: str) -> DataError:
    """The error for a version or alias that a registry does not have; it is asked what it has instead."""
    versions = registry.versions()
    if not versions:
        return none_yet(registry.model)
    if wanted == CHAMPION:
        return DataError(
            f"No version of {registry.model} is champion yet; there {_are(len(versions))}, the newest is {versions[0].version}.",
            hint="`filmloop models list` says what the gate decided; `filmloop models promote VERSION` passes it by.",
            ids={"model": registry.model},
        )
    return DataError(
        f"{registry.model} has no version {wanted}."
        if wanted.isdigit()
        else f"{registry.model} has no alias {wanted!r}.",
        hint="`filmloop models list` shows what there is.",
        ids={"version": wanted, "model": registry.model},
    )


def _are(versions: int) -> str:
    return "is one version" if versions == 1 else f"are {versions:,} versions"
