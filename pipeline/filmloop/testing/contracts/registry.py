"""What every registry must do. Subclass, give the two fixtures, and pytest runs the suite.

class TestMine(RegistryContract):
    @pytest.fixture
    def registry(self, tmp_path): ...     # a fresh model without versions
    @pytest.fixture
    def away(self, tmp_path): ...         # the same kind of registry, out of reach
"""

from __future__ import annotations

from pathlib import Path

import pytest

from filmloop.bundle import verify_bundle
from filmloop.core.documents import VersionInfo
from filmloop.core.errors import DataError, TransientError
from filmloop.ports.registry import CHALLENGER, CHAMPION, Registry
from filmloop.testing.bundles import make_bundle


def _register(registry: Registry, folder: Path, key: str, *, seed: int = 0) -> VersionInfo:
    bundle = folder / f"bundle-{key}"
    if not bundle.exists():
        make_bundle(bundle, seed=seed)
    return registry.register(
        bundle, key=key, description=f"made by {key}", tags={"site": "local"}, metrics={"nll": 60.5, "nll_low": 60.0}
    )


class RegistryContract:
    """Versions, aliases and bundles of one model."""

    def test_a_model_without_versions_has_no_champion_and_an_empty_list(self, registry: Registry) -> None:
        """Asking is no error: that is how every site begins."""
        assert registry.get(CHAMPION) is None
        assert registry.get("1") is None
        assert registry.versions() == []

    def test_a_version_tells_what_was_registered(self, registry: Registry, tmp_path: Path) -> None:
        """Description, tags, metrics, and the digest that the edge checks the download against."""
        made = _register(registry, tmp_path, "c1")
        assert made.name == registry.model
        assert made.description == "made by c1"
        assert made.tags["site"] == "local"
        assert made.tags["filmloop.cycle_id"] == "c1"
        assert made.metrics == {"nll": 60.5, "nll_low": 60.0}
        assert made.url.startswith(registry.url)
        assert made.bundle_digest == verify_bundle(tmp_path / "bundle-c1").bundle_digest()
        assert registry.get(made.version) == made

    def test_the_same_key_makes_one_version(self, registry: Registry, tmp_path: Path) -> None:
        """A cycle that was killed after registering registers again."""
        first = _register(registry, tmp_path, "c1")
        assert _register(registry, tmp_path, "c1") == first
        assert len(registry.versions()) == 1

    def test_versions_come_newest_first_with_their_aliases(self, registry: Registry, tmp_path: Path) -> None:
        """The order that people read, not the order of the last change."""
        old, new = _register(registry, tmp_path, "c1"), _register(registry, tmp_path, "c2", seed=1)
        registry.set_alias(CHAMPION, old.version)
        registry.set_alias(CHALLENGER, new.version)
        registry.annotate(old.version, description="touched last")
        listed = [(version.version, version.aliases) for version in registry.versions()]
        assert listed == [(new.version, (CHALLENGER,)), (old.version, (CHAMPION,))]

    def test_versions_after_one_are_those_that_came_later(self, registry: Registry, tmp_path: Path) -> None:
        """Whoever knows the old ones asks for the new ones alone."""
        made = [int(_register(registry, tmp_path, f"c{seed}", seed=seed).version) for seed in range(3)]
        assert [int(version.version) for version in registry.versions(after=made[0])] == [made[2], made[1]]
        assert registry.versions(after=made[2]) == []

    def test_an_alias_follows_its_moves(self, registry: Registry, tmp_path: Path) -> None:
        """One version has it at a time."""
        old, new = _register(registry, tmp_path, "c1"), _register(registry, tmp_path, "c2", seed=1)
        for target in (old, new, old):
            registry.set_alias(CHAMPION, target.version)
            found = registry.get(CHAMPION)
            assert found is not None
            assert (found.version, found.aliases) == (target.version, (CHAMPION,))
        assert registry.get(CHALLENGER) is None

    def test_a_bundle_comes_back_bit_for_bit(self, registry: Registry, tmp_path: Path) -> None:
        """Subfolders included; the digest is the proof."""
        made = _register(registry, tmp_path, "c1")
        target = registry.download(made.version, tmp_path / "models" / made.version)
        assert target == tmp_path / "models" / made.version
        verify_bundle(target, digest=made.bundle_digest)
        registry.download(made.version, target)
        verify_bundle(target, digest=made.bundle_digest)
        assert [path.name for path in target.parent.iterdir()] == [made.version]

    def test_annotating_replaces_the_description_and_adds_tags(self, registry: Registry, tmp_path: Path) -> None:
        """Tags that were there stay."""
        made = _register(registry, tmp_path, "c1")
        registry.annotate(made.version, description="refused", tags={"decision": "refuse"})
        registry.annotate(made.version, tags={"note": "x"})
        after = registry.get(made.version)
        assert after is not None
        assert after.description == "refused"
        assert {**made.tags, "decision": "refuse", "note": "x"} == after.tags
        assert after.bundle_digest == made.bundle_digest

    def test_a_version_that_is_not_there_is_a_data_error(self, registry: Registry, tmp_path: Path) -> None:
        """And leaves neither an alias nor a folder behind."""
        _register(registry, tmp_path, "c1")
        for call in (
            lambda: registry.download("99", tmp_path / "nothing"),
            lambda: registry.set_alias(CHAMPION, "99"),
            lambda: registry.annotate("99", description="x"),
            lambda: registry.annotate("99", tags={"a": "b"}),
        ):
            with pytest.raises(DataError) as caught:
                call()
            assert caught.value.hint
        assert registry.get(CHAMPION) is None
        assert not (tmp_path / "nothing").exists()

    def test_a_registry_that_is_away_is_a_transient_error(self, away: Registry, tmp_path: Path) -> None:
        """With the command that helps."""
        for call in (
            lambda: away.get(CHAMPION),
            lambda: away.versions(),
            lambda: away.set_alias(CHAMPION, "1"),
            lambda: away.download("1", tmp_path / "nothing"),
            lambda: away.annotate("1", tags={"a": "b"}),
            lambda: _register(away, tmp_path, "c1"),
        ):
            with pytest.raises(TransientError) as caught:
                call()
            assert "filmloop registry serve" in caught.value.hint
        assert not (tmp_path / "nothing").exists()
