"""A watcher of the champion alias without a service around it, and bundles for it to find."""

from __future__ import annotations

import numpy as np

from filmloop import bundle as names
from filmloop.edge.cells import Board
from filmloop.edge.models import ModelStore
from filmloop.edge.news import News
from filmloop.edge.swap import ModelWatcher, Offer
from filmloop.ports.registry import CHAMPION
from filmloop.testing.edge import FRAME_SHAPE, small_site
from filmloop.testing.models import make_model_bundle


def register(registry, bundle, *, champion=True):
    info = registry.register(bundle, key=bundle.name, description="", tags={}, metrics={})
    if champion:
        registry.set_alias(CHAMPION, info.version)
    return info.version


def bundle_of(tmp_path, seed, **given):
    return make_model_bundle(tmp_path / f"bundle{seed}", frame_shape=FRAME_SHAPE, seed=seed, **given)


class Told(News):
    """What was said, without a service around it."""

    def __init__(self):
        super().__init__(Board(np.zeros(Board.bytes_for(32768), np.uint8)))

    @property
    def last_problem(self):
        return self._fields.get("problem", "")

    @property
    def swaps_refused(self):
        return self._fields.get("swaps_refused", 0)


def watching(home, registry, live=None):
    news, offer = Told(), Offer()
    offer.live = live
    watcher = ModelWatcher(
        store=ModelStore(small_site(), home),
        registry=lambda: registry,
        offer=offer,
        news=news,
        every_s=0.01,
    )
    return watcher, offer, news


def serve(watcher, offer):
    """As the inference loop takes what is offered; at the next look it is remembered."""
    proven = offer.take()
    offer.accept(proven)
    watcher.look()
    return proven.runtime.version


def flip_a_bit(folder):
    path = folder / names.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
