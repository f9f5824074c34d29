"""The sections of a site that works through Globus: what does not fit is refused, what is empty is named."""

from __future__ import annotations

from typing import Any

import pytest

from filmloop.config.loader import parse_site
from filmloop.config.schema import GlobusLauncher, GlobusMover, SiteConfig
from filmloop.core.errors import ConfigError

ONE, TWO = "3f1f2a54-9d6b-4a1b-8f4e-0c5d9be7a001", "3f1f2a54-9d6b-4a1b-8f4e-0c5d9be7a002"


def launcher(**keys: Any) -> GlobusLauncher:
    found = parse_site({"launcher": {"kind": "globus", **keys}}).launcher
    assert isinstance(found, GlobusLauncher)
    return found


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_site(values)
    return caught.value.message


def test_what_a_person_has_to_fill_in_is_named() -> None:
    found = launcher(needs=["account", "queue", "python"], options={"account": "", "queue": "prod"})
    assert found.missing == ("endpoint", "account", "python")
    filled = launcher(endpoint=ONE, needs=["account", "python"], options={"account": "x"}, python="/venv/bin/python")
    assert filled.missing == ()
    mover = parse_site({"mover": {"kind": "globus"}}).mover
    assert isinstance(mover, GlobusMover)
    assert mover.missing == ("edge.collection", "cluster.collection", "cluster.host_path")


@pytest.mark.parametrize("value", ["YOUR-COLLECTION", "<uuid>", "3f1f2a54", ONE + "\n"])
def test_an_identifier_that_is_none_is_refused(value: str) -> None:
    assert "mover.edge.collection" in refusal({"mover": {"kind": "globus", "edge": {"collection": value}}})


def test_an_identifier_in_large_letters_is_the_same_in_small_ones() -> None:
    sides = {"edge": {"collection": ONE.upper(), "path": "/a"}, "cluster": {"collection": ONE, "path": "/a"}}
    assert "the same folder" in refusal({"mover": {"kind": "globus", **sides}})
    sides["cluster"]["path"] = "/b"
    mover = parse_site({"mover": {"kind": "globus", **sides}}).mover
    assert isinstance(mover, GlobusMover)
    assert (mover.edge.collection, mover.cluster.collection) == (ONE, ONE)
    assert launcher(endpoint=TWO.upper()).endpoint == TWO
    assert parse_site({"globus": {"policies": [ONE.upper()]}}).globus.policies == (ONE,)


@pytest.mark.parametrize("path", ["eagle/project", "./x", "C:/x"])
def test_a_host_path_that_is_not_absolute_is_refused(path: str) -> None:
    assert "cluster.host_path" in refusal({"mover": {"kind": "globus", "cluster": {"host_path": path}}})


def test_the_two_sides_are_two_folders() -> None:
    sides = {"edge": {"collection": ONE, "path": "/a/"}, "cluster": {"collection": ONE, "path": "/a"}}
    assert "the same folder" in refusal({"mover": {"kind": "globus", **sides}})
    sides["cluster"]["path"] = "/b"
    assert isinstance(parse_site({"mover": {"kind": "globus", **sides}}), SiteConfig)


def test_a_queue_that_grants_less_than_the_training_is_refused() -> None:
    keys = {"kind": "globus", "options": {"walltime": "00:15:00"}, "save_before_s": 60}
    assert "960 s" in refusal({"launcher": keys, "training": {"deadline_s": 900}})
    assert parse_site({"launcher": keys, "training": {"deadline_s": 840}}).training.deadline_s == 840
    assert "HH:MM:SS" in refusal({"launcher": {"kind": "globus", "options": {"walltime": "15 minutes"}}})


def test_a_block_has_as_many_nodes_as_the_job() -> None:
    assert "nodes = 1" in refusal({"launcher": {"kind": "globus", "options": {"nodes_per_block": 2}}})
    assert launcher(nodes=2, options={"nodes_per_block": 2}).nodes == 2


def test_options_do_not_take_the_names_of_the_endpoint() -> None:
    assert "parent_config" in refusal({"launcher": {"kind": "globus", "control": {"parent_config": 1}}})
