"""What the check has put on the cluster goes again."""

from __future__ import annotations

import time

import globus_sdk

from filmloop.adapters.globus.checks.collections import transfer_client
from filmloop.config.globus import GlobusMover
from filmloop.config.schema import SiteConfig
from filmloop.core.retry import wait_until

_DELETED_S = 120.0


def sweep(config: SiteConfig, name: str) -> None:
    """Delete the folder `name` below the cluster's; come back when it is gone.

    Raises:
        TransientError: it is not within two minutes; the task is Globus' to finish.
    """
    section = config.mover
    assert isinstance(section, GlobusMover)
    path = f"{section.cluster.path.rstrip('/')}/{name}"
    with transfer_client(config.globus, section, "data", f"Deleting {path} at the cluster") as client:
        try:
            client.operation_stat(section.cluster.collection, path)
        except globus_sdk.TransferAPIError as exc:
            if exc.http_status == 404:
                return
            raise
        document = globus_sdk.DeleteData(
            section.cluster.collection, label="filmloop site check", recursive=True, ignore_missing=True,
            notify_on_succeeded=False, notify_on_failed=False, notify_on_inactive=False,
        )  # fmt: skip
        document.add_item(path)
        task_id = client.submit_delete(document)["task_id"]
        end = time.monotonic() + _DELETED_S
        wait_until(
            lambda: True if client.get_task(task_id)["status"] in ("SUCCEEDED", "FAILED") else None,
            deadline_s=max(1.0, end - time.monotonic()),
            what=f"Deleting {path} at the cluster",
            hint=f"https://app.globus.org/activity/{task_id} shows why; delete the folder there by hand if it fails.",
            cap_s=2.0,
        )
