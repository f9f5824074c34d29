"""Whether the registry answers, or could be started."""

from __future__ import annotations

import importlib.util

from filmloop.bootstrap import Site
from filmloop.config.schema import MlflowRegistry
from filmloop.core.counted import counted
from filmloop.core.errors import TransientError
from filmloop.core.finding import Finding


def registry(site: Site) -> Finding:
    """A server that answers, or one that `filmloop retrain` can start."""
    from filmloop.bootstrap import open_registry

    section = site.config.registry
    try:
        registry = open_registry(site, start=False)
        versions = registry.versions()
    except TransientError as exc:
        if section.uri:
            return Finding(item="registry", state="fail", detail=exc.message, hint=exc.hint)
        return _own_server(section)
    return Finding(item="registry", state="ok", detail=f"{registry.url}: {counted(len(versions), 'version')}")


def _own_server(section: MlflowRegistry) -> Finding:
    """Our own server is not running; could it be started?

    Raises:
        ConfigError: not at that host.
    """
    if importlib.util.find_spec("mlflow") is None or importlib.util.find_spec("mlflow.server") is None:
        return Finding(
            item="registry", state="fail", detail="the MLflow server is not installed here",
            hint="pip install -c constraints.txt -e '.[registry]', or name a server with [registry] uri.",
        )  # fmt: skip
    from filmloop.adapters.mlflow.processes import port_holder, port_is_free
    from filmloop.adapters.mlflow.server import require_host

    require_host(section)
    port = section.port
    if port and not port_is_free(section.host, port):
        return Finding(
            item="registry", state="fail", detail=f"port {port} is in use by {port_holder(port) or 'another process'}",
            hint="Set [registry] port to a free one, or to 0.",
        )  # fmt: skip
    return Finding(item="registry", state="ok", detail="not running; `filmloop retrain` starts it")
