"""Token ids → packed batches under a token budget, longest texts first.

A packed batch is one row of tokens without padding. The texts follow one another, positions restart with each text,
and the cumulative lengths mark where each begins. Sorting by length makes runs of equally long texts: without a
variable-length kernel, attention computes each run as one dense block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from e5.tokens import TokenIds


@dataclass(frozen=True)
class Run:
    """`count` consecutive texts of `length` tokens each; the first one's first token is at `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class PackedBatch:
    """N texts of T tokens in one row.

    input_ids, position_ids: int64 [T]; cu_seqlens: int32 [N + 1], from 0 to T; runs: the lengths, run-length encoded;
    max_seqlen: tokens of the longest text. The tensors are on one device; the rest stays on the host.

    With a `bucket_step`, filler that belongs to no text may follow the texts, up to a `bucket_size`.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    runs: tuple[Run, ...]
    max_seqlen: int
    bucket_step: int | None = None

    @property
    def tokens(self) -> int:
        """T without filler."""
        last = self.runs[-1]
        return last.start + last.count * last.length

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch with its tensors on `device`. Copies to a GPU go through pinned memory and are asynchronous."""
        if device.type == "cpu":
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            cu_seqlens=move(self.cu_seqlens),
        )


def plan(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Each batch's text indices, longest texts first, at most `max_tokens` a batch; a longer text is its own batch."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if lengths[index] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= lengths[index]
    return batches


FINE_STEP, COARSE_STEP = 1, 32
"""Smallest steps of bucket sizes: for prepacked weights, and for others."""


def bucket_size(count: int, step: int) -> int:
    """Round up to one of a few sizes: a multiple of `step`, for large counts at most an eighth larger.

    On CPUs, oneDNN prepares each new shape of a product. With prepacked weights that takes 0.3 to 0.5 ms a matrix,
    otherwise 2 ms and up to 2 MB: without buckets, varying batch sizes doubled the time and took gigabytes.

    Float32 products of prepacked weights give a row the same bits in any number of rows but one, other products only
    in multiples of 32 (measured on x86-64). So a text's vector is the same to the last bit in any batch.
    """
    step = max(step, 1 << max(0, (count - 1).bit_length() - 4))
    return max(2, -(-count // step) * step)


def pack(ids: Sequence[TokenIds], padding_idx: int | None = None, bucket_step: int | None = None) -> PackedBatch:
    """Pack texts in the given order; with a `bucket_step`, add filler up to a `bucket_size`.

    Positions of each text count from 0, or with XLM-R's `padding_idx` from padding_idx + 1. A padding token, as in a
    text that spells `<pad>`, has position padding_idx and is not counted, as in fairseq and in transformers'
    create_position_ids_from_input_ids.
    """
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    tokens = int(ends[-1])
    input_ids = np.concatenate(ids, dtype=np.int64)
    position_ids = np.arange(tokens) - np.repeat(starts, lengths)
    if padding_idx is not None:
        counts = input_ids != padding_idx
        seen = np.concatenate(([0], np.cumsum(counts)))
        position_ids = (seen[1:] - np.repeat(seen[starts], lengths)) * counts + padding_idx
    if bucket_step and (filler := bucket_size(tokens, bucket_step) - tokens):
        input_ids, position_ids = (np.pad(row, (0, filler), mode="edge") for row in (input_ids, position_ids))
    cu_seqlens = np.concatenate(([0], ends)).astype(np.int32)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        runs=_runs(lengths.tolist()),
        max_seqlen=int(lengths.max()),
        bucket_step=bucket_step,
    )


def _runs(lengths: list[int]) -> tuple[Run, ...]:
    runs = []
    start = 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        runs.append(Run(start, count, length))
        start += count * length
    return tuple(runs)
