"""Token ids → packed batches under a token budget, longest first; and results back to the caller's order.

A packed batch is one row of tokens without padding: the texts follow one another, positions restart with each text,
and the cumulative lengths say where each begins. Sorting by length makes runs of equally long texts, which the
attention of devices without a variable-length kernel computes as one dense block each.
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
    """`count` neighbouring texts of `length` tokens each; the first token of the first one is at `start`."""

    start: int
    count: int
    length: int


@dataclass(frozen=True)
class PackedBatch:
    """N texts of T tokens in one row.

    input_ids, position_ids: int64 [T]; cu_seqlens: int32 [N + 1], from 0 to T; runs: the lengths, run-length coded;
    max_seqlen: the longest text's tokens. The tensors are on one device; the rest stays on the host.

    With `bucketed` the row may be longer than its texts, by filler that belongs to none: `bucket_size` says why.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    runs: tuple[Run, ...]
    max_seqlen: int
    bucketed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the texts, without filler."""
        last = self.runs[-1]
        return last.start + last.count * last.length

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with its tensors on `device`; to a GPU through pinned memory, without waiting for it."""
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
    """Indices of the texts of each batch: longest first, at most `max_tokens` a batch (a longer text goes alone)."""
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


def bucket_size(count: int) -> int:
    """The next larger of few sizes, at most an eighth more from 256 on: 32, 64, 96, … 512, 576, … 1024, 1152, …

    CPUs multiply 16-bit matrices with code that oneDNN generates for each shape anew: 2 ms and up to 2 MB for a linear
    layer of the embedded model. Batches of ever new sizes took twice their time for it, and gigabytes. In float32 the
    memory of equal sizes is reused, and a text's vector is the same to the last bit whatever shares its batch.
    """
    step = max(32, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def pack(ids: Sequence[TokenIds], padding_id: int | None = None, bucketed: bool = False) -> PackedBatch:
    """One row from the ids of some texts, in the order given; with `bucketed` filled up to a size of `bucket_size`.

    Positions count each text's tokens from 0. With XLM-R's `padding_id` they count from padding_id + 1, and a padding
    token, which a text that spells `<pad>` has, stays at padding_id and is not counted: `create_position_ids_from_
    input_ids` of transformers, and fairseq before it.
    """
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    tokens = int(ends[-1])
    input_ids = np.concatenate(ids, dtype=np.int64)
    position_ids = np.arange(tokens) - np.repeat(starts, lengths)
    if padding_id is not None:
        counts = input_ids != padding_id
        seen = np.concatenate(([0], np.cumsum(counts)))
        position_ids = (seen[1:] - np.repeat(seen[starts], lengths)) * counts + padding_id
    if bucketed:
        filler = bucket_size(tokens) - tokens
        input_ids, position_ids = (np.pad(row, (0, filler), mode="edge") for row in (input_ids, position_ids))
    cu_seqlens = np.concatenate(([0], ends)).astype(np.int32)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        runs=_runs(lengths.tolist()),
        max_seqlen=int(lengths.max()),
        bucketed=bucketed,
    )


def _runs(lengths: list[int]) -> tuple[Run, ...]:
    runs = []
    start = 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        runs.append(Run(start, count, length))
        start += count * length
    return tuple(runs)
