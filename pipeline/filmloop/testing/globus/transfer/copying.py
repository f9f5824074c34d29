"""A transfer: file by file, block by block, with what verification and synchronisation ask for."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filmloop.testing.globus.transfer.collection import Collection, RefusedError
from filmloop.testing.globus.transfer.task import Moved
from filmloop.testing.globus.transfer.work import Work, code_of

_BLOCK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a transfer."""

    source_path: str
    destination_path: str
    algorithm: str
    external: str | None


class TransferWork(Work):
    """Copies what a transfer names. Beside those of `Work`, these faults:

    - `throttle`: this file goes at `bytes_per_s`
    - `source_changed`: the source changes, keeping its size, before it is read
    - `corrupt_wire`: what arrives is not what was sent; verification finds it. `how`: flip or truncate
    - `corrupt_after`: the same after verification; nobody here finds it
    """

    @property
    def source(self) -> Collection:
        """As it is now: a test may change it meanwhile."""
        return self.service.collections[self.task.asked["source_endpoint"]]

    @property
    def destination(self) -> Collection:
        """As it is now."""
        return self.service.collections[self.task.asked["destination_endpoint"]]

    def files(self) -> list[File]:
        """The files that are not there yet; folders are looked into anew."""
        found: list[File] = []
        for item in self.task.asked["DATA"]:
            found.extend(self._below(item) if item.get("recursive") else [_file(item)])
        done = set(self.task.done)
        with self.hub.lock:
            self.task.files = len(found)
        return [file for file in found if file.destination_path not in done]

    def _below(self, item: dict[str, Any]) -> list[File]:
        top = self.source.place(item["source_path"])
        if not top.is_dir():
            raise RefusedError("FILE_NOT_FOUND" if not top.exists() else "NOT_A_DIRECTORY", item["source_path"])
        self.source.check(self.task.owner, item["source_path"], write=False)
        found, folders = [], 1
        for path in sorted(top.rglob("*")):
            inner = path.relative_to(top).as_posix()
            if path.is_dir():
                self.destination.place(f"{item['destination_path']}/{inner}").mkdir(parents=True, exist_ok=True)
                folders += 1
            elif not self._filtered(path.name):
                ends = {key: f"{item[key].rstrip('/')}/{inner}" for key in ("source_path", "destination_path")}
                found.append(_file(item | ends))
        self.task.directories = folders
        return found

    def _filtered(self, name: str) -> bool:
        for rule in self.task.asked.get("filter_rules") or ():
            if fnmatch(name, rule["name"]):
                return bool(rule["method"] == "exclude")
        return False

    def name_of(self, file: File) -> str:
        """Its path at the destination."""
        return file.destination_path

    def failed(self, file: File, exc: Exception) -> None:
        """[choice] `skip_source_errors` skips what is absent or forbidden at the source."""
        super().failed(file, exc)
        code, details = code_of(exc)
        asked = self.task.asked
        if isinstance(exc, RefusedError) and exc.endless:
            return
        if code == "QUOTA_EXCEEDED" and asked.get("fail_on_quota_errors"):
            self.fail(code, details)
        if asked.get("skip_source_errors") and code in ("FILE_NOT_FOUND", "PERMISSION_DENIED"):
            error = {
                "DATA_TYPE": "skipped_error",
                "checksum_algorithm": None,
                "destination_path": file.destination_path,
                "error_code": code,
                "error_details": details,
                "error_time": None,
                "external_checksum": None,
                "is_directory": False,
                "is_symlink": False,
                "source_path": file.source_path,
            }
            with self.hub.lock:
                self.task.skipped_errors.append(error)
                self.task.done.append(file.destination_path)

    def handle(self, file: File) -> None:
        """Copy one file and verify it as far as the task asks for it."""
        task = self.task
        source, target = self.source.place(file.source_path), self.destination.place(file.destination_path)
        self.source.check(task.owner, file.source_path, write=False)
        self.destination.check(task.owner, file.destination_path, write=True)
        if self.fault("source_changed", file.destination_path) is not None:
            _damage(source, "flip")
        size_bytes = source.stat().st_size
        if source.is_dir():
            raise RefusedError("IS_A_DIRECTORY", file.source_path)
        if self._in_sync(file, source, target):
            with self.hub.lock:
                task.files_skipped += 1
                task.done.append(file.destination_path)
            return
        self.destination.check_room(size_bytes)
        target.parent.mkdir(parents=True, exist_ok=True)  # [choice] missing folders are made
        self._copy(file, source, target)
        checksum = self._verify(file, source, target)
        after = self.fault("corrupt_after", file.destination_path)
        if after is not None:
            _damage(target, after.get("how", "flip"))
        if task.asked.get("preserve_timestamp"):
            os.utime(target, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
        with self.hub.lock:
            task.done.append(file.destination_path)
            task.moved.append(
                Moved(
                    source_path=file.source_path,
                    destination_path=file.destination_path,
                    size=size_bytes,
                    checksum=checksum,
                    checksum_algorithm=file.algorithm if checksum else None,
                )
            )
        self.service.keep(task)

    def _in_sync(self, file: File, source: Path, target: Path) -> bool:
        level = self.task.asked.get("sync_level")
        if level is None or not target.is_file():
            return False
        here, there = source.stat(), target.stat()
        if level >= 1 and here.st_size != there.st_size:
            return False
        if level == 2 and here.st_mtime > there.st_mtime:
            return False
        return level < 3 or self._hash(file, source) == self._hash(file, target)

    def _copy(self, file: File, source: Path, target: Path) -> None:
        settings = self.service.settings
        throttle = self.fault("throttle", file.destination_path)
        rate = float(throttle["bytes_per_s"]) if throttle else settings.bytes_per_s
        block_bytes = _BLOCK_BYTES if rate is None else max(min(_BLOCK_BYTES, int(rate / 20)), 1)
        self.wait(settings.file_s)
        target.unlink(missing_ok=True)
        with source.open("rb") as src, target.open("wb") as dst:
            while block := src.read(block_bytes):
                self.keep_on()
                dst.write(block)
                with self.hub.lock:
                    self.task.bytes_transferred += len(block)
                if rate:
                    dst.flush()
                    time.sleep(len(block) / rate)
        wire = self.fault("corrupt_wire", file.destination_path)
        if wire is not None:
            _damage(target, wire.get("how", "flip"))

    def _verify(self, file: File, source: Path, target: Path) -> str | None:
        """[choice] Where both differ, the ends are compared first, and what was promised afterwards."""
        if not self.task.asked.get("verify_checksum") and file.external is None:
            return None
        here, there = self._hash(file, source), self._hash(file, target)
        if self.task.asked.get("verify_checksum") and here != there:
            raise RefusedError("VERIFY_CHECKSUM", f"{file.destination_path}: {there} is not {here}")
        if file.external is not None and file.external.lower() != there:
            with self.hub.lock:
                self.task.faults += 1
            self.fail("EXTERNAL_CHECKSUM_MISMATCH", f"{file.source_path}: {there} is not {file.external}")
        return there

    def _hash(self, file: File, path: Path) -> str:
        digest = hashlib.new(file.algorithm.lower().replace("-", ""))
        with path.open("rb") as src:
            while block := src.read(1 << 20):
                digest.update(block)
                with self.hub.lock:
                    self.task.bytes_checksummed += len(block)
        return digest.hexdigest()


def _file(item: dict[str, Any]) -> File:
    return File(
        source_path=item["source_path"],
        destination_path=item["destination_path"],
        algorithm=item.get("checksum_algorithm") or "MD5",
        external=item.get("external_checksum"),
    )


def _damage(path: Path, how: str) -> None:
    with path.open("r+b") as out:
        size_bytes = out.seek(0, os.SEEK_END)
        if how == "truncate":
            out.truncate(size_bytes // 2)
            return
        out.seek(size_bytes // 2)
        byte = out.read(1)
        out.seek(size_bytes // 2)
        out.write(bytes([byte[0] ^ 0x20]))
