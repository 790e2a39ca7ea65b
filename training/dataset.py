"""The training set in memory: token ids, target vectors, and batches of neighbouring texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.config import Config

UNKNOWN, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class TrainingSet:
    """N texts: their token ids [T] without special tokens, offsets [N + 1], target vectors [N, D], clusters [N]."""

    input_ids: Tensor
    offsets: Tensor
    vectors: Tensor
    clusters: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def tokens(self, row: int) -> list[int]:
        """One text's token ids."""
        input_ids: list[int] = self.input_ids[self.offsets[row] : self.offsets[row + 1]].tolist()
        return input_ids

    def targets(self, rows: Tensor) -> Tensor:
        """The target vectors of some rows, float32."""
        return self.vectors[rows].float()

    @property
    def lengths(self) -> Tensor:
        return self.offsets.diff()


def tokenize(texts: list[str], tokenizer_file: Path, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids of all texts, each truncated to `max_tokens`, and their offsets [N + 1]."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    pieces: list[np.ndarray] = []
    for start in range(0, len(texts), 65536):
        encodings = tokenizer.encode_batch_fast(texts[start : start + 65536], add_special_tokens=False)
        pieces += [np.asarray(encoding.ids[:max_tokens], np.int32) for encoding in encodings]
    offsets = np.concatenate(([0], np.cumsum([len(piece) for piece in pieces])))
    return torch.from_numpy(np.concatenate(pieces)), torch.from_numpy(offsets)


def token_strings(tokenizer_file: Path) -> list[str]:
    """The string of each token, by id."""
    vocabulary = Tokenizer.from_file(str(tokenizer_file)).get_vocab()
    return [token.replace("▁", " ") for token in sorted(vocabulary, key=lambda token: vocabulary[token])]


def cluster(vectors: Tensor, count: int, seed: int, rounds: int = 4) -> Tensor:
    """The cluster of each vector [N], by spherical k-means that starts at random vectors."""
    generator = torch.Generator().manual_seed(seed)
    count = min(count, len(vectors))
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].float()
    for _ in range(rounds):
        nearest = torch.cat(
            [(part.to(torch.bfloat16) @ centres.to(torch.bfloat16).T).argmax(1) for part in torch.split(vectors, 16384)]
        )
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors.float())
        norms = sums.norm(dim=1, keepdim=True)
        centres = torch.where(norms > 0, sums / norms.clamp(min=1e-9), centres)
    return nearest


def batches(texts: TrainingSet, config: Config, seed: int, extra: int = 2) -> Iterator[Tensor]:
    """Endless batches of about `batch_tokens` tokens, as rows of `texts`. Each text counts `extra` tokens more.

    A batch consists of groups of texts from one cluster, which the model must learn to tell apart. Each epoch draws new
    groups, and drops the remainder that does not fill a batch. Raises ValueError if all texts do not fill one.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = (texts.lengths + extra).tolist()
    if sum(lengths) < config.batch_tokens:
        raise ValueError(f"{sum(lengths)} tokens of text do not fill a batch of {config.batch_tokens}")
    while True:
        # Sorted by cluster, shuffled within one: consecutive rows form a group.
        order = torch.rand(len(texts), generator=generator).argsort()
        order = order[texts.clusters[order].argsort(stable=True)]
        groups = torch.split(order, config.group_size)
        batch: list[int] = []
        tokens = 0
        for index in torch.randperm(len(groups), generator=generator).tolist():
            for row in groups[index].tolist():
                batch.append(row)
                tokens += lengths[row]
            if tokens >= config.batch_tokens:
                yield torch.tensor(batch)
                batch, tokens = [], 0
