"""Whether a network can be what a site or a job asks for. Imports no torch: a cycle asks before anything is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filmloop.core.documents import ModelChoice
from filmloop.core.errors import ConfigError
from filmloop_models import catalog


def check_choice(choice: ModelChoice) -> None:
    """See that the model is there, and that frame shape and hyper-parameters keep its rules; nothing is built.

    Raises:
        ConfigError: no such model, or something does not fit it.
    """
    with choice_errors(choice):
        catalog.get(choice.name).checked(choice.frame_shape, choice.hyper)


@contextmanager
def choice_errors(choice: ModelChoice) -> Iterator[None]:
    """Translate what the catalog says of `choice`.

    Raises:
        ConfigError: it says ValueError.
    """
    try:
        yield
    except ValueError as exc:
        raise ConfigError(
            f"Cannot build model {choice.name!r}: {exc}.",
            hint="Correct [model] of the site file; `filmloop site check` tries it.",
            ids={"model": choice.name},
        ) from exc
