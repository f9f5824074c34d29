"""What the SDKs raise becomes filmloop's errors, with ids and the right verdict on trying again."""

from __future__ import annotations

import traceback

import globus_sdk
import pytest
from globus_sdk.transport import RequestsTransport, RetryConfig

from filmloop.adapters.globus.errors import globus_errors, translate
from filmloop.adapters.globus.identity.auth import open_app
from filmloop.core.errors import AuthError, ConfigError, DataError, FilmloopError, TransientError
from filmloop.testing.mlflow_server import free_port
from rigs.globus_auth import Globus


@pytest.fixture
def client(globus: Globus) -> globus_sdk.TransferClient:
    """A client that has its token and tries nothing twice."""
    found = globus_sdk.TransferClient(
        app=open_app(globus.site("client").globus),
        retry_config=RetryConfig(max_retries=0),
        transport=RequestsTransport(http_timeout=0.5),
    )
    with pytest.raises(globus_sdk.TransferAPIError):
        found.get("/nothing/here")
    return found


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "ClientError.BadRequest", ConfigError),
        (401, "AuthenticationFailed", AuthError),
        (403, "PermissionDenied", AuthError),
        (404, "ClientError.NotFound", DataError),
        (404, "EndpointNotFound", ConfigError),
        (404, "ENDPOINT_NOT_FOUND", ConfigError),
        (404, "FUNCTION_NOT_FOUND", ConfigError),
        (409, "Conflict", TransientError),
        (413, "PayloadTooLarge", ConfigError),
        (422, "ENDPOINT_CONFIG_ERROR", ConfigError),
        (429, "TooManyRequests", TransientError),
        (500, "InternalError", TransientError),
        (502, "ExternalError.DirListingFailed.GCDisconnected", TransientError),
        (502, "ExternalError.DirListingFailed.PermissionDenied", AuthError),
        (503, "ServiceUnavailable", TransientError),
        (504, "GatewayTimeout", TransientError),
    ],
)
def test_an_answer_becomes_the_error_that_fits(
    globus: Globus, client: globus_sdk.TransferClient, status: int, code: str, expected: type[FilmloopError]
) -> None:
    globus.hosted.fault("refuse", status=status, code=code, message="as the service says it")
    with pytest.raises(FilmloopError) as caught, globus_errors("Listing the folder"):
        client.operation_ls("22222222-2222-4222-8222-222222222222")
    assert globus.hosted.fired("refuse") == 1
    found = caught.value
    assert type(found) is expected
    assert found.message == f"Listing the folder: as the service says it ({status} {code})."
    assert found.ids["http_status"] == str(status)
    assert found.ids["request_id"]
    assert found.retryable == (expected is TransientError)
    assert found.hint
    assert isinstance(found.__cause__, globus_sdk.GlobusAPIError)


def test_whose_access_is_missing_is_named(globus: Globus, client: globus_sdk.TransferClient) -> None:
    globus.hosted.fault("refuse", status=403, code="PermissionDenied", message="Denied by endpoint")
    with pytest.raises(AuthError) as caught, globus_errors("Listing the folder"):
        client.operation_ls("22222222-2222-4222-8222-222222222222")
    assert caught.value.hint == f"Give {globus.client_id}@clients.auth.globus.org access to it."


def test_a_hint_of_the_caller_comes_first(globus: Globus, client: globus_sdk.TransferClient) -> None:
    globus.hosted.fault("refuse", status=403, code="PermissionDenied")
    with pytest.raises(AuthError) as caught, globus_errors("Listing the folder", hint="Ask the owner."):
        client.operation_ls("22222222-2222-4222-8222-222222222222")
    assert caught.value.hint == "Ask the owner."


def test_an_answer_that_is_too_late_may_be_tried_again(globus: Globus, client: globus_sdk.TransferClient) -> None:
    globus.hosted.fault("slow", seconds=1.0)
    with pytest.raises(TransientError, match="did not answer in time"), globus_errors("Asking"):
        client.get("/nothing/here")
    assert globus.hosted.fired("slow") == 1


def test_a_connection_that_breaks_may_be_tried_again(globus: Globus, client: globus_sdk.TransferClient) -> None:
    globus.hosted.fault("cut")
    with pytest.raises(TransientError, match="cannot be reached"), globus_errors("Asking"):
        client.get("/nothing/here")
    assert globus.hosted.fired("cut") == 1


def test_a_service_that_is_not_there_may_be_tried_again(globus: Globus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", f"http://127.0.0.1:{free_port()}/")
    app = open_app(globus.site("client").globus)
    client = globus_sdk.TransferClient(app=app, retry_config=RetryConfig(max_retries=0))
    app._login_client.retry_config.max_retries = 0
    with pytest.raises(TransientError, match="cannot be reached"), globus_errors("Asking"):
        client.get("/nothing/here")


def test_errors_of_the_compute_sdk_and_its_broker_are_known_by_name() -> None:
    from globus_compute_sdk.errors import TaskPending, VersionMismatch
    from pika.exceptions import AMQPConnectionError

    assert isinstance(translate(VersionMismatch("3 and 4"), "Asking"), ConfigError)
    assert isinstance(translate(TaskPending("waiting"), "Asking"), TransientError)
    assert isinstance(translate(AMQPConnectionError(), "Asking"), TransientError)


def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(ZeroDivisionError), globus_errors("Asking"):
        _ = 1 // 0


def failed(client: globus_sdk.TransferClient, *, bare: bool) -> str:
    """A traceback, with the variables of every frame, of a request whose connection breaks."""
    try:
        if bare:
            client.get("/nothing/here")
        else:
            with globus_errors("Asking"):
                client.get("/nothing/here")
    except (globus_sdk.NetworkError, TransientError) as exc:
        return "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())
    raise AssertionError("it worked")


def test_no_frame_of_the_sdk_keeps_a_token(globus: Globus, client: globus_sdk.TransferClient) -> None:
    globus.hosted.fault("cut", times=2)
    bare, ours = failed(client, bare=True), failed(client, bare=False)
    values = [token["value"] for token in globus.held()["access_tokens"]]
    assert any(value in bare for value in values)  # what would be there without `globus_errors`
    assert not any(value in ours for value in values)
    assert "globus_sdk/transport" in ours
