"""Whether frames come, and are of the right shape."""

from __future__ import annotations

from filmloop.bootstrap import Site, open_source
from filmloop.core.errors import TransientError
from filmloop.core.finding import Finding
from filmloop.core.retry import wait_until
from filmloop.core.types import BAD, FrameBlock
from filmloop.ports.source import problems_of

FRAME_DEADLINE_S = 5.0


def source(site: Site) -> Finding:
    """A frame of the right shape comes in time."""
    source = open_source(site)
    try:
        source.open(after=None)

        def first() -> tuple[FrameBlock | None] | None:
            block = source.read(16)
            return (block,) if block is None or len(block) else None

        hint = "Is the detector sending, and does [source] name the right address?"
        (block,) = wait_until(first, deadline_s=FRAME_DEADLINE_S, what="A frame from the source", hint=hint)
        problem = problems_of(source).last_problem
    except TransientError as exc:
        if problem := problems_of(source).last_problem:
            raise TransientError(f"{exc.message} {problem}.", hint=exc.hint, ids=exc.ids) from exc
        raise
    finally:
        source.close()
    if block is None:
        return Finding(item="source", state="fail", detail="the source has no frames")
    if (block.flags_N & BAD).all():
        return Finding(
            item="source", state="fail", detail=f"its frames are damaged: {problem or 'no counts'}",
            hint="Mend [frame], or where [source] says that counts lie.",
        )  # fmt: skip
    return Finding(
        item="source", state="ok", detail=f"stream {source.stream!r} delivers frames of {source.frame_shape}"
    )
