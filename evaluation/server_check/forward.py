"""Vectors of token ids under any pooling, from a loaded model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from e5.catalog import Pooling
from e5.embedder import Embedder
from e5.network import batches
from e5.network.decoder import Decoder
from e5.network.device import choose_device, choose_dtype, use_device
from e5.network.load import load
from e5.settings import Settings
from e5.tokens import Tokenizer, Tokens
from e5.vectors import Vectors
from e5.weights.files import LocalWeights
from e5.weights.locate import locate
from evaluation.server_check.mistakes import Candidate

Inputs = dict[Candidate, tuple[list[int], Pooling]]
"""Token ids of one text and the pooling of their hidden states, by candidate."""


def vectors(
    embedder: Embedder, inputs: Mapping[Candidate, tuple[list[int], Pooling]], own: Pooling
) -> dict[Candidate, Vectors]:
    """float32 [D] by candidate, not normalized. `own`: the model's pooling, which needs no hidden states."""
    by_own = [candidate for candidate, (_, pooling) in inputs.items() if pooling == own]
    rows = _embed(embedder, [inputs[candidate][0] for candidate in by_own])
    result = dict(zip(by_own, rows, strict=True))
    others = [candidate for candidate in inputs if candidate not in result]
    states = hidden_states(embedder, {tuple(inputs[candidate][0]) for candidate in others})
    for candidate in others:
        ids, pooling = inputs[candidate]
        hidden = states[tuple(ids)]  # [T, D]
        result[candidate] = {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(axis=0)}[pooling]
    return result


def hidden_states(embedder: Embedder, texts: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], Vectors]:
    """The hidden states of all tokens of texts, float32 [T, D] by the text's token ids.

    The decoder computes only the last token's. Its attention is causal, so the state of token i is the last one of the
    text that ends there: T short texts, instead of a second way through the network.
    """
    if not isinstance(embedder.packed.network, Decoder):
        return {ids: _encoder_states(embedder, ids) for ids in texts}
    texts = list(texts)
    prefixes = list({ids[:end]: None for ids in texts for end in range(1, len(ids) + 1)})
    states = dict(zip(prefixes, _embed(embedder, prefixes), strict=True))
    return {ids: np.stack([states[ids[:end]] for end in range(1, len(ids) + 1)]) for ids in texts}


def _encoder_states(embedder: Embedder, ids: Sequence[int]) -> Vectors:
    """float32 [T, D], from a pass that does not pool. Not packed.embed: a CUDA graph has the model's pooling in it."""
    network: Any = embedder.packed.network
    packed = batches.pack([np.array(ids, np.int32)], embedder.packed.padding_idx, embedder.packed.bucket_step)
    own = network.pool
    network.pool = lambda hidden, _: hidden.float()
    try:
        with torch.inference_mode(), use_device(network.device):
            states = network.embed(packed.to(network.device))[: len(ids)]
    finally:
        network.pool = own
    hidden: Vectors = states.cpu().numpy()
    return hidden


def base_only(settings: Settings, tokenizer: Tokenizer) -> Embedder:
    """The model without its adapter. Raises SettingsError, WeightsError."""
    model, device = settings.resolve(), choose_device(settings.device)
    files = locate(model, settings.weights, settings.source)
    base = LocalWeights("merged", files.checkpoint, files.tokenizer, None)
    packed, _ = load(model, base, device, choose_dtype(settings.dtype, device))
    return Embedder(model, packed, tokenizer, source="merged", max_batch_tokens=settings.max_batch_tokens)


def _embed(embedder: Embedder, texts: Sequence[Sequence[int]]) -> Vectors:
    return embedder.embed_tokens(Tokens([np.array(ids, np.int32) for ids in texts], list(map(len, texts))))
