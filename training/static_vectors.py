"""The static start: one vector for each token, so that a text's is the sum of its tokens'.

A token's vector begins as the teacher's of its string, weighted by how rare the token is (Arora et al. 2017, "A Simple
but Tough-to-Beat Baseline for Sentence Embeddings"), and is then trained towards the teacher's vectors of whole texts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from e5.vectors import Vectors
from training.config import Config
from training.dataset import BOS, EOS, UNKNOWN, Texts

RARITY = 1e-3


def train(config: Config, texts: Texts, vocabulary: Vectors) -> Tensor:
    """→ float32 [V, semantic]: token vectors with a mean length of 1 over the text. `vocabulary`: where they begin."""
    ids, offsets = texts.ids, texts.offsets
    counts = torch.bincount(ids, minlength=len(vocabulary)).float()
    weight = RARITY / (RARITY + counts / counts.sum())
    vectors = torch.nn.Parameter(functional.normalize(torch.from_numpy(vocabulary)) * weight.unsqueeze(1))
    optimizer = torch.optim.Adam([vectors], lr=config.static_rate, fused=True)
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.static_texts, len(texts))
    steps = config.static_epochs * (len(texts) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for epoch in range(config.static_epochs):
        losses = []
        order = torch.randperm(len(texts), generator=generator)
        for rows in torch.split(order, size)[: len(texts) // size]:
            pieces = [ids[offsets[row] : offsets[row + 1]] for row in rows]
            starts = torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
            sums = functional.embedding_bag(torch.cat(pieces), vectors, starts, mode="sum")
            loss = 1 - functional.cosine_similarity(sums, texts.targets(rows)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: distance to the teacher {sum(losses) / len(losses):.4f}", flush=True)
    trained = vectors.detach()
    trained[[UNKNOWN, BOS, EOS]] = 0  # no text has them; each has <s> and </s> around it, which should add nothing
    scaled: Tensor = trained * (counts.sum() / (trained.norm(dim=1) * counts).sum())
    return scaled
