"""The embedded model's golden file: ten fixed texts, computed by reference code. `python -m tests.golden` writes it.

It uses no code of the package: prompts are spelled out, token ids come from Mistral's SentencePiece model, the network
is transformers' with peft's adapter (`tests/reference.py`), cosines are numpy's. Write it again when
weights/e5-mistral-tiny changes; the file names its weights.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference import Reference, with_peft

FOLDER = Path(__file__).parents[1] / "weights" / "e5-mistral-tiny"
FILE = Path(__file__).parent / "golden" / "e5-mistral-tiny.json"
WEIGHTS = ("base/model.safetensors", "adapter/adapter_model.safetensors")
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
QUERIES = (
    (SEARCH, "how much protein should a female eat"),
    (SEARCH, "summit define"),
    ("Retrieve semantically similar text.", "A man is playing a guitar on the street."),
    ("Given a question, retrieve Wikipedia passages that answer the question", "Who wrote the first computer program?"),
    ("", "wie hoch ist der Turm? 😀"),
)
DOCUMENTS = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day.",
    "Definition of summit for English Language Learners: the highest point of a mountain; the top.",
    "Someone plays music outdoors.",
    "Ada Lovelace published an algorithm for Charles Babbage's Analytical Engine in 1843.",
    "x",
)


def checksums() -> dict[str, str]:
    return {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in WEIGHTS}


def compute() -> dict[str, Any]:
    prompts = [f"Instruct: {task}\nQuery: {query}" if task else query for task, query in QUERIES]
    vectors = Reference(with_peft(FOLDER), FOLDER, 4096).embed([*prompts, *DOCUMENTS]).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = 100 * unit[: len(QUERIES)] @ unit[len(QUERIES) :].T
    return {
        "weights": checksums(),
        "queries": [{"task": task, "query": query} for task, query in QUERIES],
        "documents": list(DOCUMENTS),
        "first_dimensions": np.round(vectors[:, :8], 6).tolist(),
        "lengths": np.round(np.linalg.norm(vectors, axis=1), 6).tolist(),
        "scores": np.round(scores, 4).tolist(),
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(compute(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {FILE}")
