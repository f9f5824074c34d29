"""Each stage of the edge is ended by force, again and again, under load: the others go on and the books balance."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import numpy as np
import pytest

from filmloop.bootstrap import edge_service, open_ledger, open_site
from filmloop.config.paths import Home
from filmloop.edge.models import ModelStore
from filmloop.edge.status import read_status
from filmloop.ports.registry import CHAMPION
from filmloop.staging.catalog import sealed_shards
from filmloop.staging.reader import ShardReader
from filmloop.staging.verify import verify_shard
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle

KILLS = 20
SETS = (
    "source.pool_frames=2048", "source.rate_hz=20000.0", "edge.status_every_s=0.02", "edge.stall_after_s=3.0",
    "staging.frames_per_shard=8192", "staging.frames_per_chunk=512", "edge.runtime=torch", "edge.ring_mb=64.0",
)  # fmt: skip


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FILMLOOP_HOME", str(tmp_path / "home"))
    return lambda *sets: open_site(None, sets=[*SETS, *sets])


def give_it_a_model(site, tmp_path):
    registry = MemoryRegistry(tmp_path / "registry")
    bundle = make_model_bundle(tmp_path / "bundle")
    info = registry.register(bundle, key="k", description="", tags={}, metrics={})
    registry.set_alias(CHAMPION, info.version)
    store = ModelStore(site.config, site.home)
    store.fetch(registry, info)
    store.remember(info.version, info.bundle_digest)


class Running:
    """The service with its stages in processes, in a thread of this one."""

    def __init__(self, site):
        self.site, self.stop, self.outcome = site, threading.Event(), []
        self.thread = threading.Thread(target=self._work)

    def _work(self):
        with open_ledger(self.site) as ledger:
            try:
                self.outcome.append(edge_service(self.site, ledger, with_registry=False).run(self.stop))
            except BaseException as exc:
                self.outcome.append(exc)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        if isinstance(self.outcome[0], BaseException):
            raise self.outcome[0]

    def shows(self, wanted, deadline_s=60.0):
        end_s = time.monotonic() + deadline_s
        while (status := read_status(self.site.home)) is None or not wanted(status):
            assert time.monotonic() < end_s, status
            assert self.thread.is_alive(), self.outcome
            time.sleep(0.01)
        return status


def balanced(accounting):
    assert accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())
    assert accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())
    return accounting


def staged_ids(home: Home, stream="simulator"):
    """Pulse ids in sealed shards, every hash checked, and what the manifests say was left out."""
    ids, left_out = [], []
    for shard in sealed_shards(home.stage, stream):
        verify_shard(shard.manifest_path)
        ids.append(ShardReader(shard.manifest_path).pulse_id_N)
        balanced(shard.manifest.accounting)
        left_out += shard.manifest.dropped
    return np.concatenate(ids), left_out


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["source", "inference", "staging"])
def test_twenty_kills_of_a_stage_under_load_tear_no_shard_and_the_books_balance(site, tmp_path, role):
    site = site()
    give_it_a_model(site, tmp_path)
    chance = random.Random(f"20261124 {role}")
    back_s = []
    with Running(site) as edge:
        edge.shows(lambda status: status.state == "running" and status.frames_staged > 0)
        for kill in range(1, KILLS + 1):
            time.sleep(chance.uniform(0.0, 0.3))
            before = edge.shows(lambda status: status.stages.get(role) and status.state == "running")
            os.kill(before.stages[role], signal.SIGKILL)
            killed_s = time.monotonic()
            # Back is: a new process, and all three stages move again.
            again = edge.shows(lambda s, kill=kill: s.restarts[role] == kill and s.state == "running")
            edge.shows(
                lambda s, again=again: (
                    s.frames_inferred > again.frames_inferred + 2000 and s.frames_staged > again.frames_staged
                )
            )
            back_s.append(time.monotonic() - killed_s)
        assert {name for name, count in edge.shows(lambda s: True).restarts.items() if count} == {role}
    accounting = balanced(edge.outcome[0])
    ids, left_out = staged_ids(site.home)
    assert len(np.unique(ids)) == len(ids) == accounting.frames_staged > 0
    # What is neither staged nor unstaged never came: the paced simulator goes on behind the last frame that did.
    assert accounting.frames_missing == 0
    if role == "staging":
        killed = [left for left in left_out if left.reason == "staging_killed"]
        assert sum(left.frames for left in killed) == accounting.frames_unstaged["staging_killed"]
        for left in killed:
            assert not ((ids >= left.first_pulse_id) & (ids <= left.last_pulse_id)).any()
    else:
        assert "staging_killed" not in accounting.frames_unstaged
    print(f"{role}: {KILLS} kills, back after {np.median(back_s):.2f} s (at most {max(back_s):.2f})", file=sys.stderr)
