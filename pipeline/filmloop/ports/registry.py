"""Where versions of a model are kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from filmloop.core.documents import VersionInfo

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

    def versions(self) -> list[VersionInfo]:
        """All versions, newest first.

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
