"""Bad bundles are refused one by one; the version that is live stays."""

from __future__ import annotations

import errno
import pickle
import shutil
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from filmloop import bundle as names
from filmloop.bundle import verify_bundle
from filmloop.config.paths import Home
from filmloop.core.documents import ModelChoice, TrainResult, VersionInfo
from filmloop.core.errors import ConfigError, TransientError, VerificationError
from filmloop.edge import models
from filmloop.edge.models import KEEP_BUNDLES, ModelStore
from filmloop.edge.runtimes import candidates
from filmloop.ports.registry import CHAMPION
from filmloop.shipping import keep_bundle
from filmloop.testing.bundles import seal_bundle
from filmloop.testing.edge import FRAME_SHAPE, pool, small_site
from filmloop.testing.fakes import MemoryRegistry
from filmloop.testing.models import make_model_bundle
from rigs.watching import bundle_of, flip_a_bit, register, serve, watching

MIXER = ModelChoice(name="mixer", frame_shape=FRAME_SHAPE)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def registry(tmp_path):
    return MemoryRegistry(tmp_path / "registry")


def drop_a_file(folder):
    (folder / names.METRICS).unlink()


def make_nan(folder):
    arrays = load_file(folder / names.WEIGHTS)
    next(iter(arrays.values())).flat[0] = np.nan
    save_file(arrays, folder / names.WEIGHTS)
    seal_bundle(folder, MIXER)


def pickle_weights(folder):
    (folder / names.WEIGHTS).write_bytes(pickle.dumps({"head.weight": [1.0]}))
    seal_bundle(folder, MIXER)


def torch_save_weights(folder):
    torch.save({"head.weight": torch.ones(2)}, folder / names.WEIGHTS)
    seal_bundle(folder, MIXER)


def lose_a_parameter(folder):
    arrays = load_file(folder / names.WEIGHTS)
    arrays.pop(sorted(arrays)[0])
    save_file(arrays, folder / names.WEIGHTS)
    seal_bundle(folder, MIXER)


def change_golden(folder):
    arrays = load_file(folder / names.GOLDEN)
    save_file({**arrays, "rate_NCE": arrays["rate_NCE"] * np.float32(1.01)}, folder / names.GOLDEN)
    seal_bundle(folder, MIXER)


def empty_golden(folder):
    arrays = load_file(folder / names.GOLDEN)
    save_file({name: array[:0] for name, array in arrays.items()}, folder / names.GOLDEN)
    seal_bundle(folder, MIXER)


def rename_model(folder):
    seal_bundle(folder, ModelChoice(name="cookienet", frame_shape=FRAME_SHAPE))


def reshape_model(folder):
    shutil.rmtree(folder)
    make_model_bundle(folder, frame_shape=(4, 32), seed=9)


# What is done to the bundle, and a word of the reason that a person reads.
BEFORE_REGISTERING = {
    make_nan: "not finite",
    pickle_weights: "safetensors",
    torch_save_weights: "safetensors",
    lose_a_parameter: "does not fit the network",
    change_golden: "differs from its golden pair",
    empty_golden: "golden pair",
    rename_model: "this site wants mixer",
    reshape_model: "this site wants mixer",
}
IN_THE_REGISTRY = {flip_a_bit: "SHA-256 differs", drop_a_file: "lost its file"}


@pytest.mark.parametrize("spoil", [*BEFORE_REGISTERING, *IN_THE_REGISTRY], ids=lambda spoil: spoil.__name__)
def test_a_bad_version_is_refused_with_a_reason_and_the_old_one_stays(tmp_path, home, registry, spoil):
    watcher, offer, news = watching(home, registry)
    good = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    assert serve(watcher, offer) == good

    bad_bundle = bundle_of(tmp_path, 2)
    if spoil in BEFORE_REGISTERING:
        spoil(bad_bundle)
    bad = register(registry, bad_bundle)
    if spoil in IN_THE_REGISTRY:
        spoil(tmp_path / "registry" / bad)
    watcher.look()
    assert offer.take() is None
    assert news.swaps_refused == 1
    assert f"version {bad} refused" in news.last_problem
    assert {**BEFORE_REGISTERING, **IN_THE_REGISTRY}[spoil] in news.last_problem
    assert ModelStore(small_site(), home).remembered().runtime.version == good
    assert sorted(path.name for path in home.edge_models.iterdir()) == [good]
    watcher.look()
    assert news.swaps_refused == 1, "a refused version is not tried again at once"

    better = register(registry, bundle_of(tmp_path, 3))
    watcher.look()
    assert offer.take().runtime.version == better


def test_a_version_that_filmloop_did_not_register_is_refused(home):
    store = ModelStore(small_site(), home)
    info = VersionInfo(name="m", version="4", created_utc="")
    with pytest.raises(VerificationError, match="no bundle digest"):
        store.fetch(MemoryRegistry(home.root), info)


def test_going_back_to_a_kept_version_needs_no_download(tmp_path, home, registry, monkeypatch):
    watcher, offer, _ = watching(home, registry)
    first = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    register(registry, bundle_of(tmp_path, 2))
    watcher.look()
    monkeypatch.setattr(registry, "download", None)
    registry.set_alias(CHAMPION, first)
    watcher.look()
    assert offer.take().runtime.version == first


def kept_by_a_cycle(tmp_path, home, registry, seed):
    bundle = bundle_of(tmp_path, seed)
    version = register(registry, bundle)
    keep_bundle(home, registry.model, version, bundle)
    return version, home.weights / registry.model / version


def test_what_a_cycle_on_this_machine_keeps_needs_no_download_and_outlives_it(tmp_path, home, registry, monkeypatch):
    watcher, offer, _ = watching(home, registry)
    version, kept = kept_by_a_cycle(tmp_path, home, registry, 1)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "download", None)
        watcher.look()
    assert offer.take().runtime.version == version
    shutil.rmtree(kept)
    assert verify_bundle(home.edge_models / version).bundle_digest() == registry.get(version).bundle_digest


@pytest.mark.parametrize("damage", [flip_a_bit, drop_a_file])
def test_what_a_cycle_keeps_and_is_damaged_comes_from_the_registry(tmp_path, home, registry, damage):
    watcher, offer, news = watching(home, registry)
    version, kept = kept_by_a_cycle(tmp_path, home, registry, 1)
    shutil.copytree(kept, aside := tmp_path / "aside")  # the kept files share their inodes with the registered ones
    shutil.rmtree(kept)
    shutil.copytree(aside, kept)
    damage(kept)
    watcher.look()
    assert offer.take().runtime.version == version
    assert news.swaps_refused == 0


def test_a_kept_bundle_that_was_damaged_is_fetched_again(tmp_path, home, registry):
    watcher, offer, news = watching(home, registry)
    first = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    second = register(registry, bundle_of(tmp_path, 2))
    watcher.look()
    offer.take()
    flip_a_bit(home.edge_models / first)
    registry.set_alias(CHAMPION, first)
    watcher.look()
    assert offer.take().runtime.version == first
    assert news.swaps_refused == 0
    assert second != first


def test_a_damaged_bundle_is_not_loaded_at_a_restart_either(tmp_path, home, registry):
    watcher, offer, _ = watching(home, registry)
    version = register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    serve(watcher, offer)
    store = ModelStore(small_site(), home)
    assert store.remembered().runtime.version == version
    flip_a_bit(home.edge_models / version)
    with pytest.raises(VerificationError):
        store.remembered()


def test_only_the_newest_bundles_are_kept_and_the_live_one_always(tmp_path, home, registry):
    watcher, offer, _ = watching(home, registry)
    for seed in range(KEEP_BUNDLES + 2):
        version = register(registry, bundle_of(tmp_path, seed))
        watcher.look()
        assert serve(watcher, offer) == version
    kept = {path.name for path in home.edge_models.iterdir()}
    assert len(kept) == KEEP_BUNDLES
    assert version in kept


def test_versions_that_are_refused_at_the_swap_do_not_fill_the_disk_and_the_live_one_outlives_them(
    tmp_path, home, registry
):
    watcher, offer, _ = watching(home, registry)
    live = register(registry, bundle_of(tmp_path, 0))
    watcher.look()
    serve(watcher, offer)
    for seed in range(1, KEEP_BUNDLES + 3):
        register(registry, bundle_of(tmp_path, seed))
        watcher.look()
        offer.refuse(offer.take())
        watcher.look()
    kept = {path.name for path in home.edge_models.iterdir()}
    assert len(kept) == KEEP_BUNDLES
    assert live in kept
    assert ModelStore(small_site(), home).remembered().runtime.version == live


def test_a_download_that_was_left_behind_and_the_next_one_do_not_touch_each_other(
    tmp_path, home, registry, monkeypatch
):
    version = register(registry, bundle_of(tmp_path, 1))
    download, begun, go_on = registry.download, threading.Event(), threading.Event()

    def slow(version, target):
        found = download(version, target)
        if not begun.is_set():
            begun.set()
            go_on.wait(10)
        return found

    monkeypatch.setattr(registry, "download", slow)
    info, outcomes = registry.get(version), []
    store = ModelStore(small_site(), home, place="inference_2")
    left = threading.Thread(target=lambda: outcomes.append(store.fetch(registry, info).runtime.version))
    left.start()
    begun.wait(10)
    assert store.fetch(registry, info).runtime.version == version
    go_on.set()
    left.join(10)
    assert outcomes == [version]
    assert [path.name for path in home.edge_models.iterdir()] == [version]
    (home.edge_models / ".incoming-inference_2-x").mkdir()
    ModelStore(small_site(), home, place="inference_2")
    assert [path.name for path in home.edge_models.iterdir()] == [version], "what a killed one left is removed"


def test_the_runtime_makes_what_the_bundle_says(tmp_path, home, registry):
    bundle = bundle_of(tmp_path, 1)
    result = TrainResult.read(bundle / names.RESULT)
    runtime = ModelStore(small_site(), home).prove(bundle, version="1", digest=result.bundle_digest()).runtime
    counts, golden = names.load_golden(bundle)
    np.testing.assert_allclose(runtime.infer(counts), golden, rtol=1e-5)
    assert runtime.infer(pool()[:3]).shape == (3, *FRAME_SHAPE)


@pytest.mark.parametrize(("dense", "surprising"), [(False, False), (True, False), (False, True)])
def test_what_serves_was_compiled_while_it_was_proven_and_nothing_else(tmp_path, home, dense, surprising):
    bundle = bundle_of(tmp_path, 1, onnx=True)
    staging = {"keep_every": 4, "keep_surprising": 0.1} if surprising else {}
    store = ModelStore(small_site(edge={"runtime": "openvino-f32"}, staging=staging), home, dense=dense)
    digest = TrainResult.read(bundle / names.RESULT).bundle_digest()
    runtime = store.prove(bundle, version="1", digest=digest).runtime
    compiled = set(runtime._graphs.made)
    assert len(compiled) == 3, "batches of 16 and 32, and the sample"
    for frames in (1, 16, 17, 32):
        inferred = runtime.start(pool()[:frames], dense=store.wanted.dense, surprise=store.wanted.surprise).result()
        assert (inferred.rate_NCE is not None, inferred.surprise_N is not None) == (dense, surprising)
        runtime.infer(pool()[:frames])
        runtime.infer(pool()[:frames].astype(np.float32))
    assert set(runtime._graphs.made) == compiled
    runtime.close()


def test_the_site_says_which_runtime_serves(tmp_path, home, registry):
    bundle = bundle_of(tmp_path, 1)
    config = small_site()
    unknown = config.model_copy(update={"edge": config.edge.model_copy(update={"runtime": "openvino"})})
    digest = TrainResult.read(bundle / names.RESULT).bundle_digest()
    with pytest.raises(VerificationError, match="no runtime 'openvino'") as error:
        ModelStore(unknown, home).prove(bundle, version="1", digest=digest)
    assert isinstance(error.value.__cause__, ConfigError)


def test_a_disk_that_refuses_a_remembered_version_is_transient(tmp_path, home, registry, monkeypatch):
    watcher, offer, _ = watching(home, registry)
    register(registry, bundle_of(tmp_path, 1))
    watcher.look()
    serve(watcher, offer)

    def broken(*_args, **_given):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(models, "verify_bundle", broken)
    with pytest.raises(TransientError, match="Input/output"):
        ModelStore(small_site(), home).remembered()


def test_weights_that_make_no_numbers_of_a_saturated_frame_are_refused_though_their_golden_pair_fits(
    tmp_path, home, registry, monkeypatch
):
    make_runtime = candidates.make_runtime

    def overflowing(*args, **given):
        runtime = make_runtime(*args, **given)
        infer = runtime._infer_batch
        runtime._infer_batch = lambda counts: infer(counts) / np.where(counts.min() == 255, np.float32("nan"), 1)
        return runtime

    watcher, offer, news = watching(home, registry)
    register(registry, bundle_of(tmp_path, 1))
    monkeypatch.setattr(candidates, "make_runtime", overflowing)
    watcher.look()
    assert offer.take() is None
    assert "not finite of a saturated frame" in news.last_problem
