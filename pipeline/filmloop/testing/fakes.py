"""In-memory doubles that keep the ports' promises: a registry and an audit trail."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filmloop.bundle import RESULT
from filmloop.core.clock import utc_now
from filmloop.core.documents import AliasMove, TrainResult, VersionInfo
from filmloop.core.errors import DataError, TransientError


class MemoryRegistry:
    """A registry in this process; bundles are copied below `folder`. Set `away` to make every call fail."""

    def __init__(self, folder: Path, *, model: str = "local-mixer-4x8") -> None:
        self.model = model
        self.url = f"memory://{model}"
        self.away = False
        self.aliases: dict[str, str] = {}
        self._folder = folder
        self._versions: dict[str, VersionInfo] = {}
        self._by_key: dict[str, str] = {}

    def register(
        self,
        bundle: Path,
        *,
        key: str,
        description: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> VersionInfo:
        """As the port says."""
        self._reach()
        if key not in self._by_key:
            version = str(len(self._versions) + 1)
            shutil.copytree(bundle, self._folder / version)
            result = TrainResult.read(bundle / RESULT)
            own = {"filmloop.cycle_id": key, "filmloop.bundle_digest": result.bundle_digest()}
            self._versions[version] = VersionInfo(
                name=self.model,
                version=version,
                created_utc=utc_now(),
                description=description,
                tags={**tags, **own},
                metrics=dict(metrics),
                url=f"{self.url}/{version}",
            )
            self._by_key[key] = version
        return self._with_aliases(self._by_key[key])

    def get(self, version_or_alias: str) -> VersionInfo | None:
        """As the port says."""
        self._reach()
        version = self.aliases.get(version_or_alias, version_or_alias)
        return self._with_aliases(version) if version in self._versions else None

    def versions(self, *, after: int = 0) -> list[VersionInfo]:
        """As the port says."""
        self._reach()
        return [self._with_aliases(version) for version in reversed(self._versions) if int(version) > after]

    def download(self, version: str, target: Path) -> Path:
        """As the port says."""
        self._known(version)
        if not (self._folder / version).is_dir():
            raise DataError(f"Version {version} of {self.model} has no bundle.", hint="filmloop models list")
        shutil.copytree(self._folder / version, target, dirs_exist_ok=True)
        return target

    def set_alias(self, alias: str, version: str) -> None:
        """As the port says."""
        self._known(version)
        self.aliases[alias] = version

    def annotate(self, version: str, *, description: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """As the port says."""
        old = self._known(version)
        changes: dict[str, object] = {"tags": {**old.tags, **(tags or {})}}
        if description is not None:
            changes["description"] = description
        self._versions[version] = old.model_copy(update=changes)

    def _reach(self) -> None:
        if self.away:
            raise TransientError("The registry in memory is away.", hint="filmloop registry serve")

    def _known(self, version: str) -> VersionInfo:
        self._reach()
        if version not in self._versions:
            raise DataError(f"{self.model} has no version {version}.", hint="filmloop models list")
        return self._versions[version]

    def _with_aliases(self, version: str) -> VersionInfo:
        names = tuple(sorted(alias for alias, target in self.aliases.items() if target == version))
        return self._versions[version].model_copy(update={"aliases": names})


class FolderRegistry(MemoryRegistry):
    """The same, kept in `folder`, so that several processes share it."""

    def __init__(self, folder: Path, *, model: str = "local-mixer-4x8") -> None:
        super().__init__(folder, model=model)
        self._state = folder / "registry.json"
        self._load()

    def register(self, bundle: Path, *, key: str, **given: Any) -> VersionInfo:
        """As the port says."""
        info = super().register(bundle, key=key, **given)
        self._save()
        return info

    def set_alias(self, alias: str, version: str) -> None:
        """As the port says."""
        super().set_alias(alias, version)
        self._save()

    def _reach(self) -> None:
        super()._reach()
        self._load()

    def _load(self) -> None:
        if not self._state.exists():
            return
        state = json.loads(self._state.read_text(encoding="utf-8"))
        self.aliases, self._by_key = state["aliases"], state["by_key"]
        self._versions = {name: VersionInfo.model_validate(value) for name, value in state["versions"].items()}

    def _save(self) -> None:
        versions = {name: info.as_json() for name, info in self._versions.items()}
        part = self._state.with_suffix(".part")
        part.write_text(json.dumps({"aliases": self.aliases, "by_key": self._by_key, "versions": versions}))
        part.replace(self._state)


class MemoryTrail:
    """An audit trail in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moves: dict[int, AliasMove] = {}
        self._ended: list[int] = []
        self._next_id = 1

    @contextmanager
    def alias_lock(self) -> Iterator[None]:
        """As the port says."""
        with self._lock:
            yield

    def begin_move(self, move: AliasMove) -> int:
        """As the port says."""
        move_id = self._next_id
        self._next_id += 1
        self._moves[move_id] = move
        return move_id

    def end_move(self, move_id: int) -> None:
        """As the port says."""
        self._ended.append(move_id)

    def drop_move(self, move_id: int) -> None:
        """As the port says."""
        del self._moves[move_id]

    def pending_moves(self) -> list[tuple[int, AliasMove]]:
        """As the port says."""
        return [(move_id, move) for move_id, move in self._moves.items() if move_id not in self._ended]

    def moves(self, model: str, alias: str | None = None, limit: int = 100) -> list[AliasMove]:
        """As the port says."""
        ended = [self._moves[move_id] for move_id in reversed(self._ended)]
        return [move for move in ended if move.model == model and alias in (None, move.alias)][:limit]
