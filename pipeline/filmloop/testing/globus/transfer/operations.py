"""File operations that are answered at once: look, make a folder, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, make_response, request

from filmloop.testing.globus.hub import refuse
from filmloop.testing.globus.transfer.collection import Collection, RefusedError
from filmloop.testing.globus.transfer.requests import collection_for, refused, who
from filmloop.testing.globus.transfer.service import Service
from filmloop.testing.globus.transfer.task import time_text

_LIST_LIMIT = 100_000


def add(routes: Blueprint, service: Service) -> None:
    """ls, stat, mkdir, rename."""
    base = "/v0.10/operation/endpoint/<collection_id>"

    @routes.get(base + "/ls")
    def ls(collection_id: str) -> Response:
        collection, path = collection_for(service, collection_id), request.args.get("path", "/~/")
        folder = _operate(collection, lambda: _seen(service, collection, path, write=False))
        if not folder.is_dir():
            refuse(400, "ExternalError.DirListingFailed.NotDirectory", f"{path} is not a directory")
        hidden = request.args.get("show_hidden", "1").lower() in ("1", "true")
        lines = [_document(each) for each in sorted(folder.iterdir()) if hidden or not each.name.startswith(".")]
        lines = [line for line in lines if _wanted(line)]
        offset, limit = int(request.args.get("offset", 0)), int(request.args.get("limit", _LIST_LIMIT))
        shown = lines[offset : offset + limit]
        return jsonify(
            DATA_TYPE="file_list", DATA=shown, endpoint=collection.id, path=path, absolute_path=path, length=len(shown),
            total=len(lines), limit=limit, offset=offset, rename_supported=True, symlink_supported=False,
        )  # fmt: skip

    @routes.get(base + "/stat")
    def stat(collection_id: str) -> Response:
        collection, path = collection_for(service, collection_id), request.args.get("path", "")
        return jsonify(_document(_operate(collection, lambda: _seen(service, collection, path, write=False))))

    @routes.post(base + "/mkdir")
    def mkdir(collection_id: str) -> Response:
        collection, path = collection_for(service, collection_id), request.get_json()["path"]

        def make() -> None:
            place = _allowed(service, collection, path, write=True)
            if place.exists():
                raise RefusedError("MkdirFailed.Exists", f"{path} exists")  # [choice] 502, as the code says it
            place.mkdir()

        _operate(collection, make)
        return _result("mkdir_result", "DirectoryCreated", "The directory was created successfully", 202)

    @routes.post(base + "/rename")
    def rename(collection_id: str) -> Response:
        collection, asked = collection_for(service, collection_id), request.get_json()

        def move() -> None:
            old = _seen(service, collection, asked["old_path"], write=True)
            new = _allowed(service, collection, asked["new_path"], write=True)
            if new.exists():
                raise RefusedError("RenameFailed.Exists", f"{asked['new_path']} exists")  # [choice]
            os.rename(old, new)

        _operate(collection, move)
        return _result("result", "FileRenamed", "File or directory renamed successfully", 200)


def _operate(collection: Collection, what: Callable[[], Any]) -> Any:
    try:
        return what()
    except RefusedError as exc:
        return refused(exc, collection)
    except FileNotFoundError as exc:
        return refused(RefusedError("FILE_NOT_FOUND", str(exc.filename)), collection)
    except OSError as exc:
        return refused(RefusedError("EndpointError", str(exc)), collection)


def _allowed(service: Service, collection: Collection, path: str, *, write: bool) -> Path:
    collection.check(who(service), path, write=write)
    return collection.place(path)


def _seen(service: Service, collection: Collection, path: str, *, write: bool) -> Path:
    place = _allowed(service, collection, path, write=write)
    if not place.exists():
        raise RefusedError("FILE_NOT_FOUND", f"Error: '{path}' not found")
    return place


def _document(place: Path) -> dict[str, Any]:
    seen = place.stat()
    kind = "dir" if place.is_dir() else "file"
    return {
        "DATA_TYPE": "file",
        "name": place.name,
        "type": kind,
        "size": seen.st_size,
        "last_modified": time_text(seen.st_mtime).replace("T", " "),
        "permissions": f"{seen.st_mode & 0o777:04o}",
        "user": "emulated",
        "group": "emulated",
        "link_target": None,
        "link_size": None,
        "link_user": None,
        "link_group": None,
        "link_last_modified": None,
    }


def _wanted(line: dict[str, Any]) -> bool:
    for part in request.args.get("filter", "").split("/"):
        key, _, value = part.partition(":")
        if key == "name" and line["name"] not in value.removeprefix("=").split(","):
            return False
        if key == "type" and line["type"] not in value.split(","):
            return False
    return True


def _result(kind: str, code: str, message: str, status: int) -> Response:
    body = {"DATA_TYPE": kind, "code": code, "message": message, "request_id": "emulated", "resource": request.path}
    return make_response(jsonify(body), status)
