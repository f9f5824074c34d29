"""The registry port on an MLflow tracking server, through the client that `mlflow-skinny` has.

One version is three things on the server, made in this order: a run (tags first, so that a half-made one is found
again by its key), the run's contents (bundle, curve, parameters), and the version that points at the bundle. A version
is therefore never there without its bundle; whatever a crash left is finished by the next call with the same key.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filmloop.adapters.mlflow.client import SERVE_HINT, connect, disk_error, is_absent, mlflow_errors
from filmloop.adapters.mlflow.curve import curve_metrics, hyper_params
from filmloop.adapters.mlflow.lineage import lineage_tags
from filmloop.bundle import RESULT
from filmloop.core.clock import utc_text
from filmloop.core.documents import TrainResult, VersionInfo
from filmloop.core.errors import ConfigError, DataError, TransientError
from filmloop.core.fsio import PART_SUFFIX, disk_errors, publish_dir

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = "filmloop.cycle_id"
DIGEST_TAG = "filmloop.bundle_digest"
METRICS_TAG = "filmloop.metrics"
"""The scores once more, as JSON on the version: `get` then needs one request instead of two."""

_MODEL_TAG = "filmloop.model"
_STORED_TAG = "filmloop.stored"
_FOLDER = "bundle"
_BATCH = 1000
"""Most metrics that one `log_batch` takes."""
_DESCRIPTION_CHARS = 5000
"""Width of MLflow's column; PostgreSQL refuses more."""
_PAGE = 200


class MlflowRegistry:
    """Versions of one registered model on one MLflow server. Constructing it imports nothing and dials nobody.

    Args:
        uri: The server, e.g. `http://127.0.0.1:5050`.
        model: Registered model.
        experiment: Experiment that holds the runs behind the versions.
        timeout_s: Of one request; an absent server is reported within it.
    """

    def __init__(self, uri: str, *, model: str, experiment: str, timeout_s: float) -> None:
        self.uri = uri.rstrip("/")
        self.model = model
        self.url = f"{self.uri}/#/models/{quote(model, safe='')}"
        self._experiment, self._timeout_s = experiment, timeout_s
        self._lazy_client: MlflowClient | None = None
        self._has_answered = False

    def register(
        self,
        bundle: Path,
        *,
        key: str,
        description: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> VersionInfo:
        """Store a verified bundle as a new version, or finish and return the one of the same `key`.

        Raises:
            TransientError: the server is away; call again with the same key.
            AuthError: it wants a login.
            DataError: the bundle has no result document, or `key` was used for another bundle.
        """
        result = TrainResult.read(bundle / RESULT)
        digest = result.bundle_digest()
        with self._errors(f"register a version of {self.model}"):
            if found := self._version_of(key):
                self._same_bundle(found.tags.get(DIGEST_TAG, ""), digest, key)
                return self._info(found)
            run = self._run_of(key) or self._new_run(key, result)
            self._same_bundle(run.data.tags.get(DIGEST_TAG, ""), digest, key)
            if run.data.tags.get(_STORED_TAG) != digest:
                self._store(run, bundle, result, metrics)
            return self._info(self._new_version(run, key, digest, result, description, tags, metrics))

    def get(self, version_or_alias: str) -> VersionInfo | None:
        """One version by number or alias, in one request over a connection that stays open; None if there is none.

        Raises:
            TransientError: the server is away.
            AuthError: it wants a login.
        """
        client = self._client
        with self._errors(f"look up {version_or_alias} of {self.model}"):
            try:
                if version_or_alias.isdigit():
                    return self._info(client.get_model_version(self.model, version_or_alias))
                return self._info(client.get_model_version_by_alias(self.model, version_or_alias))
            except Exception as exc:
                # For an alias that a model lacks, MLflow complains about the parameter.
                if is_absent(exc, "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def versions(self, *, after: int = 0) -> list[VersionInfo]:
        """All versions with a number above `after`, newest first; 2 to 4 ms for each.

        Raises:
            TransientError: the server is away.
            AuthError: it wants a login.
        """
        client, found, token = self._client, [], None
        wanted = f"name='{self.model}'" + (f" and version_number > {after}" if after else "")
        with self._errors(f"list the versions of {self.model}"):
            while True:
                page = client.search_model_versions(
                    wanted, max_results=_PAGE, order_by=["version_number DESC"], page_token=token
                )
                found.extend(page)
                if not (token := page.token):
                    break
            aliases = self._aliases() if found else {}
        return [self._info(version, aliases.get(str(version.version), ())) for version in found]

    def download(self, version: str, target: Path) -> Path:
        """Bring the bundle of `version` into the folder `target` (whole or not at all) and return it.

        Raises:
            TransientError: the server is away, or the disk is full.
            AuthError: it wants a login.
            DataError: no such version, or it has no bundle.
        """
        client = self._client
        part = target.with_name(f"{target.name}.download{PART_SUFFIX}")
        # requests' errors are OSErrors too: MLflow's translation must see them first.
        with disk_errors(target), self._errors(f"send version {version} of {self.model}"):
            from mlflow.artifacts import download_artifacts, list_artifacts
            from mlflow.exceptions import MlflowException

            source = client.get_model_version(self.model, version).source
            listed = list_artifacts(artifact_uri=source, tracking_uri=self.uri)
            if not any(PurePosixPath(file.path).name == RESULT for file in listed):
                raise DataError(
                    f"Version {version} of {self.model} has no filmloop bundle.",
                    hint="It was not registered by filmloop, or its artifacts were deleted; "
                    "`filmloop models list` shows the others.",
                    ids={"version": version, "source": source},
                )
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                got = download_artifacts(artifact_uri=source, dst_path=str(part), tracking_uri=self.uri)
                publish_dir(Path(got), target)
            except MlflowException as exc:
                if (refused := disk_error(exc)) is not None:
                    raise refused from exc
                raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return target

    def set_alias(self, alias: str, version: str) -> None:
        """Point `alias` at `version`.

        Raises:
            TransientError: the server is away.
            AuthError: it wants a login.
            DataError: no such version.
        """
        with self._errors(f"point {alias} of {self.model} at version {version}"):
            self._client.set_registered_model_alias(self.model, alias, version)

    def annotate(self, version: str, *, description: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Replace the description of a version and add tags.

        Raises:
            TransientError: the server is away.
            AuthError: it wants a login.
            DataError: no such version.
        """
        with self._errors(f"annotate version {version} of {self.model}"):
            if description is not None:
                self._client.update_model_version(self.model, version, description[:_DESCRIPTION_CHARS])
            for name, value in (tags or {}).items():
                self._client.set_model_version_tag(self.model, version, name, value)

    @property
    def _client(self) -> MlflowClient:
        if self._lazy_client is None:
            self._lazy_client = connect(self.uri, self._timeout_s)
        return self._lazy_client

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """As `mlflow_errors`. What has answered as MLflow before is no mistake in the site file when it no longer does.

        Proxies answer 404 while the server behind them is restarted.
        """
        try:
            with mlflow_errors(self.uri, what):
                yield
        except ConfigError as exc:
            if self._has_answered and exc.ids.get("error_code") == "ENDPOINT_NOT_FOUND":
                raise TransientError(exc.message, hint=SERVE_HINT, ids=exc.ids) from exc
            raise
        self._has_answered = True

    def _version_of(self, key: str) -> ModelVersion | None:
        found = self._client.search_model_versions(f"name='{self.model}' and tags.`{KEY_TAG}`='{key}'", max_results=1)
        return found[0] if found else None

    def _run_of(self, key: str) -> Run | None:
        found = self._client.search_runs(
            [self._experiment_id()], f"tags.`{KEY_TAG}`='{key}' and tags.`{_MODEL_TAG}`='{self.model}'", max_results=1
        )
        return found[0] if found else None

    def _experiment_id(self) -> str:
        from mlflow.exceptions import RestException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment))
            except RestException as exc:  # another site was quicker
                found = self._client.get_experiment_by_name(self._experiment)
                if exc.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"The MLflow experiment {self._experiment!r} was deleted.",
                hint=f"`mlflow experiments restore -x {found.experiment_id}` brings it back; or name another one as "
                "`[registry] experiment`.",
                ids={"experiment_id": str(found.experiment_id)},
            )
        return str(found.experiment_id)

    def _new_run(self, key: str, result: TrainResult) -> Run:
        tags = {
            KEY_TAG: key,
            _MODEL_TAG: self.model,
            DIGEST_TAG: result.bundle_digest(),
            "filmloop.base_version": result.base_version,
            "filmloop.code_commit": result.code_commit,
            "filmloop.config_digest": result.config_digest,
        }
        return self._client.create_run(self._experiment_id(), tags=tags, run_name=f"{self.model} {key}")

    def _same_bundle(self, stored: str, digest: str, key: str) -> None:
        if stored != digest:
            raise DataError(
                f"Cycle {key} was registered with another bundle: {stored[:12]}, this one is {digest[:12]}.",
                hint="One cycle makes one version; start a new cycle with `filmloop retrain`.",
                ids={"cycle_id": key},
            )

    def _store(self, run: Run, bundle: Path, result: TrainResult, metrics: Mapping[str, float]) -> None:
        """Fill the run; every step may be repeated. The tag at the end says that all of it is there."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = run.info.run_id
        # A repeated metric is stored once only if its time is the same too.
        time_ms = int(run.info.start_time)
        values = [Metric(name, value, time_ms, result.steps) for name, value in metrics.items()]
        values += [Metric(name, value, time_ms, step) for name, value, step in curve_metrics(bundle)]
        params = [Param(name, str(value)) for name, value in hyper_params(bundle, result).items()]
        with ThreadPoolExecutor(1, "artifacts") as beside:
            stored = beside.submit(self._client.log_artifacts, run_id, str(bundle), _FOLDER)
            self._client.log_batch(run_id, params=params[:100])
            for start in range(0, len(values), _BATCH):
                self._client.log_batch(run_id, metrics=values[start : start + _BATCH])
            stored.result()
        self._client.set_terminated(run_id)
        self._client.log_batch(run_id, tags=[RunTag(_STORED_TAG, result.bundle_digest())])

    def _new_version(
        self,
        run: Run,
        key: str,
        digest: str,
        result: TrainResult,
        description: str,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
    ) -> ModelVersion:
        own = {
            KEY_TAG: key,
            DIGEST_TAG: digest,
            METRICS_TAG: json.dumps(dict(metrics), sort_keys=True),
            "filmloop.base_version": result.base_version,
            "filmloop.code_commit": result.code_commit,
            "filmloop.config_digest": result.config_digest,
            **lineage_tags(result.lineage),
        }

        def make() -> ModelVersion:
            return self._client.create_model_version(
                self.model,
                f"{run.info.artifact_uri}/{_FOLDER}",
                run.info.run_id,
                tags={**tags, **own},
                description=description[:_DESCRIPTION_CHARS],
                await_creation_for=0,
            )

        try:
            return make()
        except Exception as exc:
            if not is_absent(exc):
                raise
        self._make_model()
        return make()

    def _make_model(self) -> None:
        from mlflow.exceptions import RestException

        try:
            self._client.create_registered_model(
                self.model, description="Kept fresh by filmloop; `champion` is what the edge serves."
            )
        except RestException as exc:  # another site was quicker
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _aliases(self) -> dict[str, tuple[str, ...]]:
        by_version: dict[str, tuple[str, ...]] = {}
        for alias, version in sorted(self._client.get_registered_model(self.model).aliases.items()):
            by_version[str(version)] = (*by_version.get(str(version), ()), alias)
        return by_version

    def _info(self, version: ModelVersion, aliases: tuple[str, ...] | None = None) -> VersionInfo:
        """What the server says of a version.

        Raises:
            TransientError: it names none, as a proxy does that answers with an empty page: the champion is not gone.
        """
        if not str(version.version or ""):
            raise TransientError(
                f"What answers at {self.uri} names no version of {self.model}: is something between us and MLflow?",
                hint=SERVE_HINT,
                ids={"uri": self.uri},
            )
        tags: dict[str, Any] = dict(version.tags)
        return VersionInfo(
            name=version.name,
            version=str(version.version),
            created_utc=utc_text(version.creation_timestamp / 1000),
            aliases=tuple(sorted(version.aliases)) if aliases is None else aliases,
            description=version.description or "",
            metrics=_metrics(tags.pop(METRICS_TAG, "{}")),
            tags=tags,
            url=f"{self.url}/versions/{version.version}",
        )


def _metrics(text: str) -> dict[str, float]:
    """The scores of a version; a person may have edited the tag in the UI, which must not stop the edge."""
    try:
        values = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}
    return {name: value for name, value in values.items() if math.isfinite(value)}
