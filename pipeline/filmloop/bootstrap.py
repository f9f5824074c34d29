"""The composition root: from a site file to working parts. Only what a site chose is imported."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filmloop
from filmloop.config.loader import find_home, find_site, load_site
from filmloop.config.options import as_typed, key_of, parse_sets
from filmloop.config.paths import Home
from filmloop.config.schema import ReplaySource, SiteConfig
from filmloop.core.errors import ConfigError, TransientError
from filmloop.core.nodump import forbid_core_dumps
from filmloop.ledger import Ledger

if TYPE_CHECKING:
    from filmloop.adapters.local.workerclient import WarmWorker
    from filmloop.edge.service import EdgeService
    from filmloop.journal import CycleParts
    from filmloop.ports.launcher import Launcher
    from filmloop.ports.mover import Mover
    from filmloop.ports.registry import Registry
    from filmloop.ports.source import FrameSource

Tell = Callable[[str, str], None]
Wanted = Callable[[], bool]


def _untold(step: str, text: str) -> None:
    """Nobody is told."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site file, read, with its state folder."""

    file: Path
    config: SiteConfig
    home: Home

    @property
    def stream(self) -> str:
        """Name of the stream of frames that the source delivers."""
        from filmloop.adapters.sources.build import stream_name

        return stream_name(self.config.source)


def open_site(file: Path | None = None, *, sets: Sequence[str] = (), source: str = "", probe: bool = True) -> Site:
    """Read the site file, then apply `--set key=value` and `--source`.

    A replayed file decides the frame shape, and one with fewer frames than `training.min_frames` counts as enough.

    Raises:
        ConfigError: the file, a key or a value is wrong.
        DataError: the file to replay is absent or of an unknown form.
    """
    path = find_site(file)
    overrides = parse_sets(sets)
    options = {key_of(pair): as_typed("--set", pair) for pair in sets}
    if source:
        from filmloop.adapters.sources.build import parse_source_option

        overrides = {"source": parse_source_option(source), **overrides}
        options = {"source": as_typed("--source", source), **options}
    config = load_site(path, overrides=overrides, options=options)
    if source and probe and isinstance(config.source, ReplaySource):
        from filmloop.adapters.sources.build import probe_replay

        (channels, energy_bins), frames = probe_replay(config.source)
        overrides |= {"frame.channels": channels, "frame.energy_bins": energy_bins}
        if not config.source.loop and frames < config.training.min_frames:
            overrides["training.min_frames"] = frames
        config = load_site(path, overrides=overrides, options=options)
    if "globus" in (config.mover.kind, config.launcher.kind):
        forbid_core_dumps()  # the secrets are in the environment, which programs that are started here inherit
    home = find_home(config, path)
    # What may not be looked at is told of by whoever needs it: `Path.exists` would raise.
    if any(os.path.exists(place) and not os.path.isdir(place) for place in (home.root, *home.root.parents)):
        raise ConfigError(
            f"The state folder {home.root} cannot be made: a part of that path is no folder.",
            hint="Set `home` in the site file, or FILMLOOP_HOME.",
            ids={"path": str(home.root)},
        )
    return Site(file=path, config=config, home=home)


def open_ledger(site: Site, *, read_only: bool = False) -> Ledger:
    """The site's journal; `read_only` creates and writes nothing."""
    return Ledger(site.home.ledger, read_only=read_only)


def registry_uri(site: Site, *, start: bool, tell: Tell = _untold, wanted: Wanted = _always) -> str:
    """Address of the site's MLflow server; `start` starts our own if the site has no other and it is not running.

    Args:
        site: The site.
        start: Whether to start it.
        tell: Told that it is started, and that it stays.
        wanted: Asked while it comes up; a start that nobody waits for any more is given up.

    Raises:
        CancelledError: `wanted` said no.
        TransientError: it is not running, or did not come up.
        ConfigError: its port is taken by something else.
    """
    section = site.config.registry
    if section.uri:
        return section.uri
    from filmloop.adapters.mlflow.server import ensure_server, find_server

    if start:
        started = False

        def announce(text: str) -> None:
            nonlocal started
            started = True
            tell("registry", text)

        uri = ensure_server(site.home, section, announce=announce, wanted=wanted)
        if started:
            # A step of its own: of further words on a step, what shows progress may leave some out.
            tell("server", f"the registry is at {uri} and stays; `filmloop registry stop` ends it")
        return uri
    found = find_server(site.home, section)
    if found is None:
        if registry_is_new(site):
            raise TransientError("The registry was never started.", hint="`filmloop retrain` makes the first version.")
        raise TransientError("The registry is not running.", hint="`filmloop registry start` starts it.")
    return found


def open_registry(site: Site, *, start: bool, tell: Tell = _untold, wanted: Wanted = _always) -> Registry:
    """The site's registry; see `registry_uri`."""
    from filmloop.adapters.mlflow.registry import MlflowRegistry

    section = site.config.registry
    return MlflowRegistry(
        registry_uri(site, start=start, tell=tell, wanted=wanted),
        model=site.config.registered_model,
        experiment=section.experiment,
        timeout_s=section.timeout_s,
    )


def registry_is_new(site: Site) -> bool:
    """Whether the site's registry is our own and was never started: it is made at its first start."""
    if site.config.registry.uri:
        return False
    from filmloop.adapters.mlflow.server import database_of

    return not database_of(site.home).exists()


def registry_is_starting() -> bool:
    """Whether a thread of this process has a server on its way: it ends it when it sees that it is not wanted."""
    from filmloop.adapters.mlflow.server import is_starting

    return is_starting()


def load_registry_client(site: Site) -> None:
    """Import what `open_registry` needs, for a caller who waits for a server meanwhile."""
    from filmloop.adapters.mlflow.loading import load

    load(site.config.registry.timeout_s)


def open_source(site: Site) -> FrameSource:
    """The site's source of frames; nothing is opened yet."""
    from filmloop.adapters.sources.build import build_source

    return build_source(site.config.source, site.config.frame_shape)


def edge_service(site: Site, ledger: Ledger, *, with_registry: bool = True, stay: bool = False) -> EdgeService:
    """The service at the instrument. It looks for the registry by itself, again and again."""
    from filmloop.edge.service import EdgeService

    return EdgeService(
        config=site.config,
        home=site.home,
        source=open_source(site),
        registry=(lambda: open_registry(site, start=False)) if with_registry else None,
        may_expire=ledger.may_expire,
        stay=stay,
        stage_argv=(sys.executable, "-m", "filmloop.edge_stage"),
        spec=stage_spec(site, with_registry=with_registry),
    )


def stage_spec(site: Site, *, with_registry: bool) -> dict[str, Any]:
    """What a stage of the edge has to know to be built in a process of its own, as plain JSON."""
    return {
        "site_file": str(site.file),
        "config": site.config.as_json(),
        "home": str(site.home.root),
        "with_registry": with_registry,
        "log_level": logging.getLogger("filmloop").getEffectiveLevel(),
    }


def open_launcher(site: Site) -> Launcher:
    """What starts the site's training; nothing is asked or started yet."""
    section = site.config.launcher
    if section.kind == "slurm":
        from filmloop.adapters.slurm.launcher import SlurmLauncher

        return SlurmLauncher(section=section)
    if section.kind == "pbs":
        from filmloop.adapters.pbs.launcher import PbsLauncher

        return PbsLauncher(section=section)
    if section.kind == "globus":
        refuse_unready(site)
        from filmloop.adapters.globus.compute.launcher import GlobusLauncher

        return GlobusLauncher(section=section, globus=site.config.globus, journal=site.home.launches)
    from filmloop.adapters.local.launcher import LocalLauncher

    return LocalLauncher(section=section, worker=warm_worker(site))


def open_mover(site: Site) -> Mover:
    """What moves files between the edge and the cluster; nothing is asked or moved yet."""
    section, home = site.config.mover, site.home
    if section.kind == "globus":
        refuse_unready(site)
        from filmloop.adapters.globus.transfer.mover import GlobusMover

        return GlobusMover(
            section=section, globus=site.config.globus, edge_root=home.root, journal=home.moves, site=site.config.site
        )
    from filmloop.adapters.local.mover import LocalMover

    return LocalMover(edge_root=home.root, cluster_root=home.cluster, journal=home.moves, section=section)


def prepare_globus(site: Site) -> None:
    """From now on what is said about Globus names this site file, in commands that can be copied.

    Raises:
        ConfigError: the SDKs are not installed.
    """
    if importlib.util.find_spec("globus_sdk") is None:
        raise ConfigError("The Globus SDKs are not installed.", hint="pip install -c constraints.txt -e '.[globus]'")
    from filmloop.adapters.globus.identity.who import remember_site

    remember_site(site.file)


def refuse_unready(site: Site) -> None:
    """See that a cycle could be run at all, before anything is started for it.

    Raises:
        ConfigError: the site works through Globus, and keys are empty or the SDKs are not installed.
    """
    if "globus" not in (site.config.mover.kind, site.config.launcher.kind):
        return
    prepare_globus(site)
    if empty := site.config.empty_keys:
        raise ConfigError(
            f"{site.file.name} has empty keys: {', '.join(empty)}.",
            hint="docs/howto/two-facilities.md says where each is from; `filmloop site check` looks at all.",
            ids={"path": str(site.file)},
        )


def cluster_root(site: Site) -> Path:
    """The folder on the cluster for data, weights and runs, as the cluster's own programs name it."""
    section = site.config.mover
    return Path(section.cluster.host_path) if section.kind == "globus" else site.home.cluster


def cycle_parts(site: Site, ledger: Ledger, registry: Registry) -> CycleParts:
    """All that a cycle works with."""
    from filmloop.journal import CycleParts

    home, config = site.home, site.config
    return CycleParts(
        config=config,
        home=home,
        ledger=ledger,
        mover=open_mover(site),
        launcher=open_launcher(site),
        registry=registry,
        stream=site.stream,
        frame_shape=config.frame_shape,
        cluster_root=cluster_root(site),
        code_commit=code_commit(),
    )


def warm_worker(site: Site) -> WarmWorker | None:
    """The site's warm worker, alive or not; None if its jobs are started cold, or by a batch system."""
    from filmloop.adapters.local.workerclient import WarmWorker

    section = site.config.launcher
    if section.kind != "local" or not section.warm:
        return None
    return WarmWorker(site.home.worker, idle_s=section.warm_idle_s)


def code_commit() -> str:
    """The git commit of a checkout, with `+changes` if it has any; else the version that is installed."""
    here = Path(filmloop.__file__).parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"filmloop {filmloop.__version__}"
    return shown.stdout.strip()
