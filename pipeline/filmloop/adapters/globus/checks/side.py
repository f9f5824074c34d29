"""What the cluster's side is asked wherever it is asked, and what its answers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from filmloop.adapters.globus.checks.calling import answer_of, why
from filmloop.adapters.globus.compute import versions
from filmloop.adapters.globus.compute.client import Told
from filmloop.config.globus import GlobusLauncher, GlobusMover
from filmloop.config.schema import SiteConfig
from filmloop.core.finding import Finding

_MIN_FREE_BYTES = 10_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A file that was sent to the cluster: where it has to be, below the cluster's folder, and its bytes' hash."""

    path: str
    sha256: str


def question(config: SiteConfig, sample: Sample | None) -> dict[str, Any]:
    """For `over_there.look`: about the folder and the sample alone."""
    return {
        "folder": config.mover.cluster.host_path if isinstance(config.mover, GlobusMover) else "",
        "file": sample.path if sample else "",
        "sha256": sample.sha256 if sample else "",
        "queue": [],
        "script": "",
        "options": {},
        "endpoint": "",
        "lock": {},
    }


def versions_finding(item: str, section: GlobusLauncher, told: Told) -> Finding:
    """What `versions.PROBE` printed in the Python that trains."""
    training = answer_of(told)
    if training is None:
        return Finding(
            item, "fail", f"the endpoint cannot run {section.python or 'its own Python'}: {why(told)}",
            "Set [launcher] python to an interpreter on the cluster that has filmloop[hpc].",
        )  # fmt: skip
    found = versions.compare(versions.here(), (told.result or {}).get("worker", {}), training)
    if found.problems:
        texts, hints = zip(*found.problems, strict=True)
        return Finding(item, "fail", " ".join(texts), " ".join(dict.fromkeys(hints)))
    known = ", ".join(f"{name} {training[name]}" for name in ("filmloop", "torch", "zarr") if training.get(name))
    notes = f" ({'; '.join(found.notes)})" if found.notes else ""
    return Finding(item, "ok", f"{training.get('executable')}: Python {training.get('python')}, {known}{notes}")


def folder_finding(folder: dict[str, Any], file: dict[str, Any], *, item: str = "cluster folder") -> Finding:
    """What the cluster's side says of the folder and of a file that was sent there, as `over_there` answers."""
    if folder["wrong"]:
        return Finding(
            item, "fail", folder["wrong"],
            "Make it there, for the account that the endpoint runs as, or set host_path in [mover.cluster].",
        )  # fmt: skip
    if file["wrong"]:
        return Finding(
            item, "fail", f"what the collection took is not there: {file['wrong']}",
            "collection, path and host_path of [mover.cluster] have to name one folder.",
        )  # fmt: skip
    if file["owner"] not in ("", folder["user"]):
        # An endpoint's processes have the umask 077: what they write is for their own account.
        return Finding(
            item, "warn", f"the collection writes as {file['owner']}, the endpoint runs as {folder['user']}",
            "Results may not be readable for the collection: run the endpoint as the collection's owner.",
        )  # fmt: skip
    free = folder["free_bytes"]
    hint = "" if free > _MIN_FREE_BYTES else "Make room there; each cycle brings its frames."
    detail = f"{folder['user']} can write, {free / 1e9:.0f} GB free" + (
        ", the sent file is there" if file["owner"] else ""
    )
    return Finding(item, "warn" if hint else "ok", detail, hint)
