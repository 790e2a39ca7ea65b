"""The starting point of the base: one static vector per token. A text's vector is the sum of its tokens' vectors.

Each starts as the teacher's vector of the token's string, weighted by the token's rarity (Arora et al. 2017, "A Simple
but Tough-to-Beat Baseline for Sentence Embeddings"), and is trained towards the teacher's vectors of whole texts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from e5.vectors import Vectors
from training.config import Config
from training.dataset import BOS, EOS, UNKNOWN, TrainingSet

RARITY = 1e-3
"""Arora et al.'s a, in a / (a + frequency)."""


def train(config: Config, texts: TrainingSet, token_vectors: Vectors) -> Tensor:
    """→ float32 [V, D], with a mean length of 1 over the tokens of the training text.

    `token_vectors` [V, D]: the teacher's vectors of the token strings.
    """
    input_ids, offsets = texts.input_ids, texts.offsets
    counts = torch.bincount(input_ids, minlength=len(token_vectors)).float()
    weight = RARITY / (RARITY + counts / counts.sum())
    vectors = torch.nn.Parameter(functional.normalize(torch.from_numpy(token_vectors)) * weight.unsqueeze(1))
    optimizer = torch.optim.Adam([vectors], lr=config.static_learning_rate, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    batch_size = min(config.static_batch_size, len(texts))
    batch_count = len(texts) // batch_size
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, config.static_epochs * batch_count)
    for epoch in range(config.static_epochs):
        losses = []
        order = torch.randperm(len(texts), generator=generator)
        for rows in torch.split(order, batch_size)[:batch_count]:
            pieces = [input_ids[offsets[row] : offsets[row + 1]] for row in rows]
            starts = torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
            sums = functional.embedding_bag(torch.cat(pieces), vectors, starts, mode="sum")
            loss = 1 - functional.cosine_similarity(sums, texts.targets(rows)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: 1 - cosine to the teacher {sum(losses) / len(losses):.4f}", flush=True)
    trained = vectors.detach()
    trained[[UNKNOWN, BOS, EOS]] = 0  # absent from the texts; every text gets <s> and </s>, which must add nothing
    scaled: Tensor = trained * (counts.sum() / (trained.norm(dim=1) * counts).sum())
    return scaled
