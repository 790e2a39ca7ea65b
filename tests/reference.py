"""The model cards' procedure, one text at a time: an oracle that shares no code with the package.

It uses stock transformers with eager attention, without packing or padding. The decoder's token ids come from
Mistral-7B-v0.1's SentencePiece model (in the package mistral-common), between `<s>` and `</s>` as in the card's code.
The encoders use the folder's tokenizer through transformers.
"""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModel, PreTrainedTokenizerFast

Vectors = NDArray[np.float32]
BOS, EOS = 1, 2


def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    path = resources.files("mistral_common").joinpath("data", "tokenizer.model.v1")
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def decoder_ids(text: str, max_tokens: int) -> list[int]:
    """As in the card: tokenize with max_length - 1 (including BOS), then append EOS."""
    return [*[BOS, *sentencepiece_model().encode(text)][: max_tokens - 1], EOS]


@cache  # reading a file of 250,000 pieces takes half a second
def stock_tokenizer(folder: Path) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def encoder_ids(folder: Path, text: str, max_tokens: int) -> list[int]:
    ids: list[int] = stock_tokenizer(folder)(text, max_length=max_tokens, truncation=True)["input_ids"]
    return ids


class Reference:
    """A stock transformers model in float32, e.g. one that peft merged, with the card's pooling."""

    def __init__(self, model: torch.nn.Module, folder: Path, max_tokens: int) -> None:
        self.model, self.folder, self.max_tokens = model.float().eval(), folder, max_tokens
        config: Any = model.config
        self.decoder = config.model_type == "mistral"

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "Reference":
        return cls(
            AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager"), folder, max_tokens
        )

    def embed(self, texts: list[str]) -> Vectors:
        """Prompted texts → float32 [N, D], not normalized."""
        return np.stack([self._embed_text(text) for text in texts])

    @torch.no_grad()
    def _embed_text(self, text: str) -> Vectors:
        if self.decoder:
            hidden = self._hidden(decoder_ids(text, self.max_tokens))
            return hidden[-1].numpy()
        hidden = self._hidden(encoder_ids(self.folder, text, self.max_tokens))
        return (hidden.sum(dim=0) / hidden.shape[0]).numpy()

    def _hidden(self, ids: list[int]) -> torch.Tensor:
        output = self.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def with_peft(folder: Path) -> torch.nn.Module:
    """The base model with peft's adapter, not merged."""
    base = AutoModel.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="eager")
    return PeftModel.from_pretrained(base, folder / "adapter").eval()  # type: ignore[no-any-return]


def relative_l2(got: Vectors, want: Vectors) -> float:
    """The largest ‖got − want‖ / ‖want‖ of all rows."""
    return float(np.max(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)))


def centred_cosine(got: Vectors, want: Vectors) -> float:
    """The smallest cosine of all rows, with the mean of `want` subtracted so that dominant dimensions hide nothing."""
    a, b = got - want.mean(axis=0), want - want.mean(axis=0)
    return float(np.min((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
