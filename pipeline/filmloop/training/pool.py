"""The frames to train on, decoded by a thread ahead of the step that needs them.

One set of slots, each for a block. Frames that all fit into the memory given to them are decoded once and stay. More frames are
streamed: while one window is trained on the next is decoded into the other half of the slots, each block once an
epoch. Which frame comes when is the plan's alone (`training.plan`): nothing depends on how fast a disk is.

Shape suffixes: N frames, C channels, E energy bins, B blocks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from filmloop.training.blocks import Block, Decoded, decode
from filmloop.training.plan import FRESH, REPLAY, Batch, BatchPlan, FrameOrder, Window

_MIN_WINDOW_BLOCKS = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Training frames of one rank's share of a batch, on the device.

    Attributes:
        counts_NCE: uint8.
        label_NCE: float16, in labelled mode.
        weight_NC1: float32, how much each channel of each frame counts: its sampling weight over the mean one, 0 in dead
            channels. None where all are 1.
        gain_NC1: float32, relative gain of each channel; None where it is not corrected.
        batch: Which frames these are.
    """

    counts_NCE: Tensor
    label_NCE: Tensor | None
    weight_NC1: Tensor | None
    gain_NC1: Tensor | None
    batch: Batch


class FramePool:
    """All training frames of a job.

    Args:
        fresh: Blocks with at least one frame to train on.
        replay: The same, of frames that are mixed in against forgetting.
        frame_shape: (C, E).
        labelled: Whether to read labels.
        memory_bytes: What the decoded frames may take. Two windows of two blocks are the least that there is.
        seed: Of the order.
        device: Where the frames are to lie.

    Attributes:
        frames: Number of frames.
        stays: Whether all frames fit into memory, so that none is decoded twice.
        orders: The order of the fresh and of the replayed ones.
        label_gain: Factor from labels to expected counts; set it before the first batch.
        weight_F: float32, the weight of each frame, their mean 1; None if all are alike.
        gain_SC: float32, relative gain of each shard's channels; None if it is not corrected.
    """

    def __init__(
        self,
        fresh: Sequence[Block],
        replay: Sequence[Block],
        frame_shape: tuple[int, int],
        *,
        labelled: bool,
        memory_bytes: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._blocks = (*fresh, *replay)
        self._labelled, self._device = labelled, device
        self._slot_frames = max((block.train_frames for block in self._blocks), default=0)
        slot_bytes = max(self._slot_frames * frame_shape[0] * frame_shape[1] * (3 if labelled else 1), 1)
        capacity = int(memory_bytes // slot_bytes)
        self.stays = capacity >= len(self._blocks)
        sizes = [_slots(len(set_), len(self._blocks), capacity, stays=self.stays) for set_ in (fresh, replay)]
        self.orders = (
            _order(fresh, FRESH, sizes[FRESH], seed),
            _order(replay, REPLAY, sizes[REPLAY], seed),
        )
        frames_B = np.array([block.train_frames for block in self._blocks], np.int64)
        self._first_B = np.cumsum(frames_B) - frames_B
        self.frames = int(frames_B.sum())
        # Rows that are never written cost no memory on a CPU.
        shape = (sum(sizes) * self._slot_frames, *frame_shape)
        self._counts = torch.empty(shape, dtype=torch.uint8, device=device)
        self._label = torch.empty(shape, dtype=torch.float16, device=device) if labelled else None
        self._alive_BC = np.ones((len(self._blocks), frame_shape[0]), np.bool_)
        self._row_B = np.zeros(len(self._blocks), np.int64)
        self._ahead = (
            _Ahead(self.orders[FRESH], 0, range(sizes[FRESH]), self._fill),
            _Ahead(self.orders[REPLAY], len(fresh), range(sizes[FRESH], sum(sizes)), self._fill),
        )
        self.label_gain = 1.0
        self.weight_F: npt.NDArray[np.float32] | None = None
        self.gain_SC: npt.NDArray[np.float32] | None = None

    @property
    def memory_bytes(self) -> int:
        """What the slots take when all are full."""
        return self._counts.nbytes + (0 if self._label is None else self._label.nbytes)

    def offer(self, number: int, decoded: Decoded) -> None:
        """Take a block that was decoded for another reason, before training begins, if it may stay."""
        is_replay = number >= self._ahead[FRESH].blocks
        self._ahead[REPLAY if is_replay else FRESH].offer(number, decoded)

    def start(self, plan: BatchPlan, step: int) -> None:
        """Begin to decode what the steps from `step` on need."""
        for which, ahead in enumerate(self._ahead):
            if plan.sizes[which]:
                ahead.start(plan.places(step, which)[0])

    def close(self) -> None:
        """Stop decoding. What was decoded stays until the pool is forgotten."""
        for ahead in self._ahead:
            ahead.close()

    def take(self, plan: BatchPlan, step: int, share: slice) -> Frames:
        """The frames of one rank's share of a step's batch; steps must come in order.

        Raises:
            DataError: a shard is damaged.
        """
        batch, begin = plan.batch(step), 0
        counts: list[Tensor] = []
        labels: list[Tensor] = []
        for which, ahead in enumerate(self._ahead):
            for window, first, last in self.orders[which].pieces(*plan.places(step, which)):
                if self._device.type == "cuda" and not self.stays:
                    torch.cuda.current_stream().synchronize()  # kernels that still read what may be overwritten now
                ahead.enter(window)
                end = begin + last - first
                part = batch.index_N[max(begin, share.start) : max(min(end, share.stop), share.start)]
                begin = end
                if len(part):
                    row_N = torch.from_numpy(self._rows(part)).to(self._device)
                    counts.append(self._counts.index_select(0, row_N))
                    if self._label is not None:
                        labels.append(self._label.index_select(0, row_N))
        mine = batch[share]
        return Frames(
            counts_NCE=_joined(counts, self._counts),
            label_NCE=None if self._label is None else _joined(labels, self._label),
            weight_NC1=self._on_device(self._weights(mine.index_N)),
            gain_NC1=self._on_device(self._gains(mine.index_N)),
            batch=mine,
        )

    def name(self, index: int) -> str:
        """A training frame as people can find it."""
        number = int(self._block(np.array([index]))[0])
        block = self._blocks[number]
        frame = block.start + int(np.flatnonzero(~block.held_N)[index - self._first_B[number]])
        manifest = block.reader.manifest
        return f"shard {manifest.shard_id}, run {manifest.run_number}, pulse {block.reader.pulse_id_N[frame]}"

    def _block(self, index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        return np.searchsorted(self._first_B, index_N, side="right") - 1

    def _rows(self, index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        block_N = self._block(index_N)
        return np.asarray(self._row_B[block_N] + index_N - self._first_B[block_N])

    def _weights(self, index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        alive_NC = self._alive_BC[self._block(index_N)]
        if self.weight_F is None and alive_NC.all():
            return None
        weight_N = np.ones(len(index_N), np.float32) if self.weight_F is None else self.weight_F[index_N]
        return (weight_N[:, None] * alive_NC)[..., None]

    def _gains(self, index_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        if self.gain_SC is None:
            return None
        shard_N = np.array([self._blocks[number].shard for number in self._block(index_N)])
        return np.asarray(self.gain_SC[shard_N][..., None])

    def _on_device(self, values: npt.NDArray[np.float32] | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).to(self._device)

    def _fill(self, number: int, slot: int, decoded: Decoded | None) -> None:
        """Put a block into its slot; called by the decoding threads, each block by one."""
        block = self._blocks[number]
        decoded = decoded or decode(block, labelled=self._labelled)
        row, is_trained_N = slot * self._slot_frames, ~block.held_N
        end = row + block.train_frames
        self._counts[row:end].copy_(torch.from_numpy(decoded.counts_NCE[is_trained_N]))
        if self._label is not None and decoded.label_NCE is not None:
            label_NCE = decoded.label_NCE[is_trained_N] * np.float16(self.label_gain)
            self._label[row:end].copy_(torch.from_numpy(label_NCE))
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        if not decoded.alive_C.all() and self._alive_BC[number].all():
            dead = ", ".join(map(str, np.flatnonzero(~decoded.alive_C)))
            _log.warning(
                "channels without a hit are left out of the loss: %s (%s)", dead, block.reader.manifest.shard_id
            )
        self._alive_BC[number], self._row_B[number] = decoded.alive_C, row


class _Ahead:
    """Decodes the blocks of one set in the order in which they are needed, as far ahead as there are slots."""

    def __init__(
        self,
        order: FrameOrder,
        first: int,
        slots: range,
        fill: Callable[[int, int, Decoded | None], None],
    ) -> None:
        self._order, self._first, self._fill = order, first, fill
        self.blocks, self._stays = order.blocks_in_all, len(slots) >= order.blocks_in_all
        self._free = list(reversed(slots))
        self._slot: dict[int, int] = {}
        self._ready: set[int] = set()
        self._wanted_by: dict[int, set[Window]] = {}
        self._entered: Window | None = None
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def offer(self, number: int, decoded: Decoded) -> None:
        if self._stays:
            self._slot[number] = self._free.pop()
            self._fill(number, self._slot[number], decoded)
            self._ready.add(number)

    def start(self, place: int) -> None:
        if self._thread is None and len(self._ready) < self.blocks:
            window = next(self._order.pieces(place, place + 1))[0]
            self._thread = threading.Thread(target=self._run, args=(window,), name="filmloop-loader", daemon=True)
            self._thread.start()

    def enter(self, window: Window) -> None:
        """Wait until the blocks of `window` are there; the slots of those before it are free for others.

        Raises:
            DataError: a shard is damaged.
        """
        if window == self._entered:
            return
        needed = self._numbers(window)
        with self._changed:
            self._entered = window
            if not self._stays:
                self._release_before(window)
            while self._error is None and not self._ready.issuperset(needed):
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _numbers(self, window: Window) -> list[int]:
        return [self._first + int(block) for block in self._order.blocks(window)]

    def _release_before(self, window: Window) -> None:
        for number, windows in list(self._wanted_by.items()):
            windows.difference_update([old for old in windows if old < window])
            if not windows:
                del self._wanted_by[number]
                self._ready.discard(number)
                self._free.append(self._slot.pop(number))
        self._changed.notify_all()

    def _run(self, window: Window) -> None:
        try:
            while not self._stays or len(self._ready) < self.blocks:
                for number in self._numbers(window):
                    if not self._bring(number, window):
                        return
                window = self._order.after(window)
        except BaseException as exc:
            with self._changed:
                self._error = exc
                self._changed.notify_all()

    def _bring(self, number: int, window: Window) -> bool:
        """Decode one block unless it is there; false if there is nothing more to do."""
        with self._changed:
            while not (self._closed or number in self._slot or self._free):
                self._changed.wait()
            if self._closed:
                return False
            self._wanted_by.setdefault(number, set()).add(window)
            if number in self._slot:
                return True
            slot = self._slot[number] = self._free.pop()
        self._fill(number, slot, None)
        with self._changed:
            self._ready.add(number)
            self._changed.notify_all()
        return True


def _slots(blocks: int, of_all: int, capacity: int, *, stays: bool) -> int:
    """Slots of one set."""
    if stays or blocks <= 2 * _MIN_WINDOW_BLOCKS:
        return blocks
    return min(blocks, max(2 * _MIN_WINDOW_BLOCKS, capacity * blocks // of_all))


def _order(blocks: Sequence[Block], stream: int, slots: int, seed: int) -> FrameOrder:
    window = max(slots if slots >= len(blocks) else slots // 2, 1)
    return FrameOrder([block.train_frames for block in blocks], window_blocks=window, seed=seed, stream=stream)


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([like[:0], *parts])
