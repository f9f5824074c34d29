"""The documents that Transfer gets: written down word for word before they are sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import globus_sdk
from globus_sdk import MISSING

from filmloop.adapters.globus.transfer.side import Side
from filmloop.ports.mover import MoveItem

MAX_ITEMS = 1000
"""Files of one task; Transfer tells no limit, and a document of this many is half a megabyte."""
_LABEL_CHARACTERS = 128


def label(site: str, key: str, submission_id: str) -> str:
    """What people see in Globus' own pages: site, cycle and step, and the first digits of the submission's number.

    Letters, digits, blanks, `-` and `_` are what Transfer allows.
    """
    words = re.sub(r"[^A-Za-z0-9 _-]", "_", f"filmloop {site} {key}")
    return f"{words[: _LABEL_CHARACTERS - 9]} {submission_id[:8]}"


def transfer_document(
    items: Sequence[MoveItem],
    source: Side,
    target: Side,
    folder: str,
    *,
    submission_id: str,
    label: str,
    deadline_utc: str,
    item_checksums: bool = True,
) -> dict[str, Any]:
    """One task for all `items`, to below `folder` of the target; whole files are compared by checksum at both ends.

    With `item_checksums` each file is compared with the SHA-256 of its item too.
    """
    data = globus_sdk.TransferData(
        source.collection,
        target.collection,
        label=label,
        submission_id=submission_id,
        sync_level="checksum",
        verify_checksum=True,
        preserve_timestamp=False,
        skip_source_errors=False,
        fail_on_quota_errors=True,
        deadline=deadline_utc,
        notify_on_succeeded=False,
        notify_on_failed=False,
        notify_on_inactive=False,
    )
    for item in items:
        data.add_item(
            source.path(item.source_path),
            target.path(f"{folder}/{item.target_path}"),
            recursive=False,
            external_checksum=item.sha256 if item_checksums else MISSING,
            checksum_algorithm="sha256" if item_checksums else MISSING,
        )
    return _plain(data)


def delete_document(
    paths: Sequence[str], side: Side, *, submission_id: str, label: str, deadline_utc: str
) -> dict[str, Any]:
    """One task that deletes files and folders; absent ones are fine, links are not followed."""
    data = globus_sdk.DeleteData(
        side.collection,
        label=label,
        submission_id=submission_id,
        recursive=True,
        ignore_missing=True,
        interpret_globs=False,
        deadline=deadline_utc,
        notify_on_succeeded=False,
        notify_on_failed=False,
        notify_on_inactive=False,
    )
    for path in paths:
        data.add_item(side.path(path))
    return _plain(data)


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Plain JSON: without what the SDK leaves out when it sends."""
    plain = {key: value for key, value in data.items() if value is not MISSING}
    plain["DATA"] = [{key: value for key, value in item.items() if value is not MISSING} for item in data["DATA"]]
    return plain
