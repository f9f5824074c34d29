"""What stages tell each other through shared memory: numbers that change together, and a page of text.

Each has one writer. A value is written beside the one that is valid, then made valid by one store of eight bytes: a
writer that is killed in between has changed nothing, and a reader never sees half of a change. Stores become visible in
the order in which they were made on x86-64; see docs/decisions/0011.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Cell:
    """Named 64-bit integers that change together.

    Args:
        words: int64 (`Cell.words(fields)`,) of shared memory; zeros are a cell of zeros.
        fields: Names in order.
    """

    def __init__(self, words: Words, fields: Sequence[str]) -> None:
        self._sequence, self._values = words[:1], words[1:].reshape(2, len(fields))
        self._fields = tuple(fields)

    @staticmethod
    def words(fields: Sequence[str]) -> int:
        """How many 64-bit words it takes."""
        return 1 + 2 * len(fields)

    def read(self) -> dict[str, int]:
        """All values, as one writer left them."""
        while True:
            sequence = int(self._sequence[0])
            values = self._values[sequence & 1].tolist()
            if int(self._sequence[0]) == sequence:
                return dict(zip(self._fields, values, strict=True))

    def get(self, field: str) -> int:
        """One value; about a microsecond."""
        while True:
            sequence = int(self._sequence[0])
            value = int(self._values[sequence & 1, self._fields.index(field)])
            # Two writes later the same place holds what is not valid yet, and never will be if the writer is killed.
            if int(self._sequence[0]) == sequence:
                return value

    def write(self, values: Mapping[str, int]) -> None:
        """Replace all values; only its one writer calls this."""
        sequence = int(self._sequence[0]) + 1
        self._values[sequence & 1] = [values[field] for field in self._fields]
        self._sequence[0] = sequence


class Board:
    """A small JSON object: names, versions, problems in words.

    Args:
        memory: uint8 (`Board.bytes_for(characters)`,) of shared memory, aligned to 8 bytes; zeros are an empty object.
    """

    def __init__(self, memory: Bytes) -> None:
        self._sequence: Words = memory[:8].view(np.int64)
        self._pages = memory[8:].reshape(2, -1)
        self.characters = self._pages.shape[1] - 8

    @staticmethod
    def bytes_for(characters: int) -> int:
        """Memory of a board with room for so many, a multiple of 8."""
        return 8 + 2 * (8 + characters)

    def read(self) -> dict[str, Any]:
        """The object, as one writer left it."""
        while True:
            sequence = int(self._sequence[0])
            page = self._pages[sequence & 1]
            text = page[8 : 8 + int(page[:8].view(np.int64)[0])].tobytes()
            if int(self._sequence[0]) == sequence:
                return dict(json.loads(text)) if text else {}

    def write(self, value: Mapping[str, Any]) -> None:
        """Replace the object; only its one writer calls this.

        Raises:
            ValueError: it does not fit.
        """
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="backslashreplace")
        if len(text) > self.characters:
            raise ValueError(f"{len(text)} bytes do not fit on a board of {self.characters}")
        sequence = int(self._sequence[0]) + 1
        page = self._pages[sequence & 1]
        page[8 : 8 + len(text)] = np.frombuffer(text, np.uint8)
        page[:8].view(np.int64)[0] = len(text)
        self._sequence[0] = sequence
