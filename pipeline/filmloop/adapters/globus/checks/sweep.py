"""What the check has put on the cluster goes again."""

from __future__ import annotations

import globus_sdk

from filmloop.adapters.globus.checks.collections import transfer_client
from filmloop.config.globus import GlobusMover
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import TransientError
from filmloop.core.retry import wait_until

_DELETED_S = 120.0


def sweep(config: SiteConfig, name: str) -> None:
    """Delete the folder `name` below the cluster's; come back when it is gone.

    Raises:
        TransientError: it is not within two minutes, and the task is Globus' to finish; or the task failed.
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
        hint = f"https://app.globus.org/activity/{task_id} shows why; delete the folder there by hand if it fails."
        ended = wait_until(
            lambda: task if (task := client.get_task(task_id))["status"] in ("SUCCEEDED", "FAILED") else None,
            deadline_s=_DELETED_S,
            what=f"Deleting {path} at the cluster",
            hint=hint,
            cap_s=2.0,
        )
    if ended["status"] == "FAILED":
        said = (ended.get("fatal_error") or {}).get("code") or ended.get("nice_status") or "no reason given"
        raise TransientError(f"Deleting {path} at the cluster failed: {said}.", hint=hint, ids={"task": task_id})
