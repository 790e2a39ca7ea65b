"""An E5 model that makes one mistake, computed by stock transformers: it shares no code with what names the mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from tests.reference import BOS, EOS, Reference, Vectors, sentencepiece_model, stock_tokenizer, with_peft

DEFAULT = "Given a web search query, retrieve relevant passages that answer the query"
ENCODER_BOS, ENCODER_EOS = 0, 2


class WrongModel:
    """`embed` makes the mistake that the tests set. `max_tokens`: of the model, as declared."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self.decoder, self.folder, self.max_tokens = (folder / "base").is_dir(), folder, max_tokens
        if self.decoder:
            merged: Any = with_peft(folder)
            self.model = Reference(merged.merge_and_unload(), folder, max_tokens)
            self.base = Reference(
                AutoModel.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="eager"),
                folder,
                max_tokens,
            )
        else:
            self.model = self.base = Reference.load(folder, max_tokens)
        self._states: dict[tuple[int, ...], Vectors] = {}

    def embed(self, text: str, mistake: str = "") -> Vectors:
        """A prompted text → float32 [D], not normalized."""
        text = changed(text, mistake)
        reference = self.base if mistake == "adapter missing" else self.model
        key = (mistake == "adapter missing", *self.ids(text, mistake))
        if key not in self._states:
            with torch.no_grad():
                self._states[key] = reference._hidden(list(key[1:])).numpy()
        states = self._states[key]
        own = "last-token pooling" if self.decoder else "mean pooling"
        match mistake if mistake.endswith(" pooling") else own:
            case "last-token pooling":
                pooled: Vectors = states[-1]
            case "CLS pooling":
                pooled = states[0]
            case _:
                pooled = states.mean(axis=0)
        return pooled

    def ids(self, text: str, mistake: str) -> list[int]:
        if self.decoder:
            bos, eos, body = BOS, EOS, sentencepiece_model().encode(text)
        else:
            bos, eos = ENCODER_BOS, ENCODER_EOS
            body = stock_tokenizer(self.folder)(text, add_special_tokens=False)["input_ids"]
        room = self.max_tokens - 2
        match mistake:
            case "no EOS":
                return [bos, *body[:room]]
            case "EOS twice":
                return [bos, *body[:room], eos, eos][: self.max_tokens]
            case "no BOS":
                return [*body[:room], eos]
            case "BOS twice":
                return [bos, bos, *body[: room - 1], eos]
            case "no special tokens":
                return list(body[:room])
            case "EOS cut off":
                return [bos, *body, eos][: self.max_tokens]
            case "beginning cut off":
                return [bos, *body[-room:], eos]
            case "not cut":
                return [bos, *body, eos]
            case "cut to 128":
                return [bos, *body[:126], eos]
        return [bos, *body[:room], eos]


CHANGES: dict[str, Callable[[str], str]] = {
    "text lower-cased": str.lower,
    "line breaks replaced by spaces": lambda text: text.replace("\n", " "),
    "instruction in front": lambda text: f"Instruct: {DEFAULT}\nQuery: {text}",
    "query: in front": lambda text: "query: " + text,
    "passage: in front": lambda text: "passage: " + text,
}


def changed(text: str, mistake: str) -> str:
    """What a server that the client sends whole texts to makes of one."""
    return CHANGES[mistake](text) if mistake in CHANGES else text


def prompted(decoder: bool, side: str, text: str, task: str, mistake: str) -> str:
    """What a server that adds the prompts makes of a text."""
    if decoder:
        instructed = f"Instruct: {DEFAULT if mistake == 'default task' else task}\nQuery: {text}"
        match mistake, side:
            case "no prompt", _:
                return text
            case "query prompt on documents", "document":
                return f"Instruct: {DEFAULT}\nQuery: {text}"
            case "prompt twice", "query":
                return f"Instruct: {task}\nQuery: {instructed}"
        return instructed if side == "query" else text
    prompt = {"query": "query: ", "document": "passage: "}[side]
    match mistake, side:
        case "no prompt", _:
            return text
        case "prompt twice", _:
            return prompt + prompt + text
        case ("query prompt on documents", _):
            return "query: " + text
        case ("document prompt on queries", _):
            return "passage: " + text
    return prompt + text


def as_matrix(rows: list[Vectors], normalize: bool) -> Vectors:
    vectors = np.stack(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors
