"""The staging stage and its sealer on a ring that a test fills the way source and inference do; a disk that refuses."""

from __future__ import annotations

import errno
import threading
import time

import numpy as np

from filmloop.core.types import FrameBlock
from filmloop.edge.intake import Intake
from filmloop.edge.reporter import accounting_of
from filmloop.edge.ring import CAME_WITH, NOT_INFERRED, FrameRing, RingLayout
from filmloop.edge.stages.staging import StagingStage
from filmloop.staging.writer import ShardWriter
from filmloop.testing.edge import FRAME_SHAPE, STREAM, pool, small_site, staged
from rigs.waiting import until


class Edge:
    """A ring, what the other two stages would do to it, and a staging stage at work in a thread."""

    def __init__(self, home, *, live=False, frames=4096, labelled=False, may_expire=lambda _: False, **sections):
        self.home, self.config, self.live, self.may_expire = home, small_site(**sections), live, may_expire
        self.ring = FrameRing.new(RingLayout(frames=frames, frame_shape=FRAME_SHAPE, labelled=labelled))
        self.intake = Intake(FRAME_SHAPE, None, dict.fromkeys(CAME_WITH, 0))
        self.head = self.notes = 0
        self.failure = None
        self.stage = self.make()
        self.thread = threading.Thread(target=self._work)

    def make(self):
        """A life of the stage, not yet at work."""
        return StagingStage(
            self.ring, self.config, home=self.home, stream=STREAM, live=self.live, may_expire=self.may_expire
        )

    def _work(self):
        try:
            self.stage.main()
        except BaseException as exc:
            self.failure = exc

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        if self.thread.is_alive():
            self.end() if kind is None else self.stop()
        self.thread.join(20)
        self.ring.close()
        assert not self.thread.is_alive()
        if kind is None and self.failure is not None:
            raise self.failure

    def feed(self, ids, *, run=1, version=3, surprise=np.nan, label=None):
        """Frames in, inferred: what the source and the inference stage leave in the ring and in their cells."""
        ring, ids_D = self.ring, np.asarray(ids, np.uint64)
        block = FrameBlock(
            run_number=run, pulse_id_N=ids_D, counts_NCE=pool()[(ids_D % 64).astype(int)],
            flags_N=np.zeros(len(ids_D), np.uint8),
        )  # fmt: skip
        arrival = self.intake.admit(block)
        for each in arrival.passed:
            self.note(each)
        frames = len(arrival.block)
        until(lambda: self.head + frames - ring.staging.get("taken") <= ring.frames)
        at = np.arange(self.head, self.head + frames) % ring.frames
        ring.pulse_id_F[at], ring.counts_FCE[at] = arrival.block.pulse_id_N, arrival.block.counts_NCE
        ring.run_number_F[at], ring.flags_F[at], ring.arrived_ns_F[at] = run, 0, time.monotonic_ns()
        ring.came_with_FK[at], ring.version_F[at] = arrival.came_with_NK, version
        ring.phase_F[at], ring.surprise_F[at] = 0.5, surprise
        if ring.label_FCE is not None:
            ring.label_FCE[at] = arrival.block.counts_NCE if label is None else label
        self.head += frames
        self.tell_source()
        kind = {0: "no_model", NOT_INFERRED: "stopped"}.get(version, "inferred")
        inference = ring.inference.read()
        ring.inference.write({**inference, "done": self.head, kind: inference[kind] + frames})
        ring.bells["staging"].ring()

    def feed_all(self, frames, *, size=32, first=0, **given):
        for start in range(first, first + frames, size):
            self.feed(range(start, min(start + size, first + frames)), **given)

    def note(self, passed):
        self.ring.write_note(self.notes, self.head, passed)
        self.notes += 1

    def tell_source(self, **more):
        values = {**self.ring.source.read(), "head": self.head, "notes": self.notes, **self.intake.counts, **more}
        self.ring.source.write(values)

    def end(self):
        """The data have ended."""
        self.tell_source(ended=1)
        self.ring.inference.write({**self.ring.inference.read(), "ended": 1})
        self.ring.bells["staging"].ring()

    def stop(self, *, hurry=1):
        self.ring.control.write({"stop": 1, "hurry": hurry})
        self.end()

    def finish(self):
        self.end()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return accounting_of(self.ring)

    def killed(self):
        """The stage as a SIGKILL leaves it: its memory is gone, nothing is sealed any more."""
        self.stage._sealer.give_up()
        self.stage._sealer.end()
        return self.make()

    @property
    def counts(self):
        return self.ring.staging.read()

    @property
    def problem(self):
        self.stage.news.publish(at_once=True)
        return self.ring.boards["staging"].read().get("problem", "")


def work_off(life):
    """One life of the stage, by hand, as far as the ring goes."""
    while life._step(life.ring.inference.get("done"), flush=True):
        pass


def exact(accounting):
    assert accounting.frames_in == accounting.frames_inferred + sum(accounting.frames_dropped.values())
    assert accounting.frames_in == accounting.frames_staged + sum(accounting.frames_unstaged.values())
    return accounting


def manifests(home):
    return [shard.manifest for shard in staged(home)[0]]


def left_out(home, reason=None):
    """(first, last, frames) of every range in the manifests, in order."""
    return [
        (left.first_pulse_id, left.last_pulse_id, left.frames)
        for manifest in manifests(home)
        for left in manifest.dropped
        if reason in (None, left.reason)
    ]


def in_the_books(home, accounting):
    """Every manifest balances, and no frame is staged twice."""
    for manifest in manifests(home):
        exact(manifest.accounting)
    frames = staged(home)[1]
    pairs = list(zip(frames["run"].tolist(), frames["pulse_id"].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == exact(accounting).frames_staged
    return pairs


class Disk:
    """A disk that refuses to write groups while `error` is set."""

    def __init__(self, monkeypatch, error=errno.ENOSPC):
        self.error, self.tries, self.pause_s = error, [], 0.0
        write_group = ShardWriter._write_group

        def write(writer, path):
            self.tries.append(time.monotonic())
            time.sleep(self.pause_s)
            if self.error:
                raise OSError(self.error, "No space left on device")
            return write_group(writer, path)

        monkeypatch.setattr(ShardWriter, "_write_group", write)
