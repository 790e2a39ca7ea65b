"""The training set in memory: token ids, the teacher's vectors, and batches of texts that lie near each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.config import Config

UNKNOWN, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Texts:
    """Texts as token ids without special tokens, one after the other, and the target vector of each [N, D]."""

    ids: Tensor
    offsets: Tensor
    vectors: Tensor
    clusters: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def tokens(self, row: int) -> list[int]:
        """One text's token ids."""
        found: list[int] = self.ids[self.offsets[row] : self.offsets[row + 1]].tolist()
        return found

    def targets(self, rows: Tensor) -> Tensor:
        return self.vectors[rows].float()

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()


def tokenized(texts: list[str], tokenizer_file: Path, most: int) -> tuple[Tensor, Tensor]:
    """Token ids of all texts, and where each begins [N + 1]; of a long text the first `most` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    pieces: list[np.ndarray] = []
    for start in range(0, len(texts), 65536):
        found = tokenizer.encode_batch_fast(texts[start : start + 65536], add_special_tokens=False)
        pieces += [np.asarray(one.ids[:most], np.int32) for one in found]
    offsets = np.concatenate(([0], np.cumsum([len(one) for one in pieces])))
    return torch.from_numpy(np.concatenate(pieces)), torch.from_numpy(offsets)


def vocabulary(tokenizer_file: Path) -> list[str]:
    """The string of each token."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer_file)).get_vocab()
    return [token.replace("▁", " ") for token in sorted(known, key=lambda token: known[token])]


def clustered(vectors: Tensor, count: int, seed: int, rounds: int = 4) -> Tensor:
    """The cluster of each vector [N]: spherical k-means of a few rounds, from random vectors."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(vectors))
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].float()
    for _ in range(rounds):
        nearest = torch.cat(
            [(part.to(torch.bfloat16) @ centres.to(torch.bfloat16).T).argmax(1) for part in torch.split(vectors, 16384)]
        )
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors.float())
        filled = sums.norm(dim=1, keepdim=True)
        centres = torch.where(filled > 0, sums / filled.clamp(min=1e-9), centres)
    return nearest


def batches(texts: Texts, config: Config, seed: int, extra: int = 2) -> Iterator[Tensor]:
    """Without an end: the rows of the next batch of some `batch_tokens` tokens, where each text has `extra` more.

    A batch is made of groups of texts from one cluster: what a model must tell apart. Each epoch groups them anew, and
    leaves out what would not fill a batch. Raises ValueError for texts that do not fill one.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = (texts.lengths + extra).tolist()
    if sum(lengths) < config.batch_tokens:
        raise ValueError(f"{sum(lengths)} tokens of text do not fill a batch of {config.batch_tokens}")
    while True:
        # Sorted by cluster, at random inside of one: consecutive rows are a group.
        order = torch.rand(len(texts), generator=generator).argsort()
        order = order[texts.clusters[order].argsort(stable=True)]
        groups = torch.split(order, config.group)
        batch: list[int] = []
        tokens = 0
        for index in torch.randperm(len(groups), generator=generator).tolist():
            for row in groups[index].tolist():
                batch.append(row)
                tokens += lengths[row]
            if tokens >= config.batch_tokens:
                yield torch.tensor(batch)
                batch, tokens = [], 0
