"""Both collections: are they there, are they what the site file says, do they show the folder?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import globus_sdk
from globus_sdk.gare import to_gare
from globus_sdk.transport import RequestsTransport, RetryConfig

from filmloop.adapters.globus.errors import globus_errors, real_answers
from filmloop.adapters.globus.identity.auth import data_access, open_app
from filmloop.adapters.globus.identity.login import roles_of
from filmloop.adapters.globus.identity.who import Role, identity_of
from filmloop.config.globus import Collection, GlobusMover, GlobusSection
from filmloop.config.schema import SiteConfig
from filmloop.core.errors import AuthError, DataError, FilmloopError
from filmloop.core.finding import Finding

_RETRIES = 2  # a person waits; the SDK's five take up to half a minute
_FILES = "https://app.globus.org/file-manager/collections"


def check_collections(config: SiteConfig) -> Iterator[Finding]:
    """Look at each side as each identity that uses it."""
    section = config.mover
    assert isinstance(section, GlobusMover)
    for name, side in (("edge", section.edge), ("cluster", section.cluster)):
        item = f"{name} collection"
        try:
            found = [_look(config.globus, section, side, role) for role in roles_of(config)]
        except FilmloopError as exc:
            yield Finding(item=item, state="fail", detail=exc.message, hint=exc.hint or page_of(side))
            continue
        wrong = next((each for each in found if each.state != "ok"), found[0])
        yield Finding(item=item, state=wrong.state, detail=wrong.detail, hint=wrong.hint)


def page_of(side: Collection) -> str:
    """Where a person looks at a collection."""
    return f"Look at {_FILES}/{side.collection}"


@contextmanager
def transfer_client(
    globus: GlobusSection, section: GlobusMover, role: Role, what: str
) -> Iterator[globus_sdk.TransferClient]:
    """Transfer's client for a few requests; what it raises becomes ours."""
    with globus_errors(what, role=role), real_answers("Globus Transfer"):
        client = globus_sdk.TransferClient(
            app=open_app(globus, role),
            app_scopes=[data_access(section.edge, section.cluster)],
            transport=RequestsTransport(http_timeout=section.request_timeout_s),
            retry_config=RetryConfig(max_retries=_RETRIES),
        )
        try:
            yield client
        finally:
            client.close()


def _look(globus: GlobusSection, section: GlobusMover, side: Collection, role: Role) -> Finding:
    principal = identity_of(globus, role).principal
    with transfer_client(globus, section, role, f"Looking for the collection {side.collection}") as client:
        document = {**client.get_endpoint(side.collection).data}
    if wrong := _kind(document, side, identity_of(globus, role).login == "client"):
        return wrong
    name = document.get("display_name") or side.collection
    try:
        with transfer_client(globus, section, role, f"Listing {side.path} of {name!r} as {principal}") as client:
            client.operation_ls(side.collection, path=side.path, limit=1)
    except DataError as exc:
        return Finding("", "fail", exc.message, f"Make the folder, or set path in [mover]. {page_of(side)}")
    except AuthError as exc:
        cause = exc.__cause__
        if not isinstance(cause, globus_sdk.GlobusAPIError) or to_gare(cause) is not None:
            raise  # a login or a consent is missing, and the hint says so
        return Finding(
            "", "fail", exc.message,
            f"Give {principal} read and write on {side.path}: {_FILES}/{side.collection}/sharing",
        )  # fmt: skip
    return Finding("", "ok", f"{name!r}, {side.path}, as {principal}")


def _kind(document: dict[str, Any], side: Collection, is_application: bool) -> Finding | None:
    """What is wrong with a collection by its document."""
    entity, name = str(document.get("entity_type") or ""), document.get("display_name") or side.collection
    if document.get("gcp_connected") is False or document.get("gcp_paused"):
        return Finding(
            "", "fail", f"{name!r}: Globus Connect Personal is not running, or paused",
            "Start it on that machine: globusconnectpersonal -start &",
        )  # fmt: skip
    if document.get("non_functional"):
        return Finding(
            "", "fail", f"{name!r} is an endpoint that holds no files itself", "Name one of its collections in [mover]."
        )
    is_mapped = "mapped" in entity
    if is_mapped and is_application:
        return Finding(
            "", "fail", f"{name!r} is a mapped collection: it maps people to accounts, and this is an application",
            'Make a guest collection of the folder and name it in [mover], or set login = "user" in [globus].',
        )  # fmt: skip
    # High-assurance collections have no data_access: https://globus-sdk-python.readthedocs.io, "Detecting data_access".
    wanted = is_mapped and not document.get("high_assurance")
    if entity and wanted != side.mapped:
        return Finding(
            "", "fail", f"{name!r} is {entity}, [mover] says mapped = {str(side.mapped).lower()}",
            f"Set mapped = {str(wanted).lower()} for it.",
        )  # fmt: skip
    return None
