"""What is known of the newest frames without looking at them again."""

from __future__ import annotations

from pydantic import Field

from filmloop.core.documents import Document, EvaluationReport
from filmloop.zoo.embedding import DataEmbedding


class Seen(Document):
    """What the newest frames look like, and how well the predictor that knows nothing does on them."""

    data: DataEmbedding = Field(description="of all the frames read, held out and not")
    zero: EvaluationReport = Field(description="on the held-out ones, of the mean count of a bin")
    frames: int = Field(ge=1, description="held-out frames to score on")
