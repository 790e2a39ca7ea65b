"""Equality: the engine's vectors against reference code in float32 on the same weights, and against its own other ways.

The reference is the stock transformers module with its own eager attention, one text at a time, float32 without TF32.
Beside it the same stock code in each 16-bit dtype: what the dtype itself costs. A checkpoint of base and adapter is
also merged by peft in float64 on the CPU, and compared bit for bit after rounding to the dtype.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from benchmarks import engines, merging, quality, variants
from benchmarks.agreement import distance
from benchmarks.report import Json, Keep, discard, log, table
from benchmarks.texts import Texts
from benchmarks.timing import free
from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.tokens import TokenIds, Tokens
from e5.vectors import Vectors
from e5.weights.files import LocalWeights
from e5.weights.merge import merged_tensors

TEXTS, QUICK_TEXTS = 40, 8
QUICK_WORDS = 300
REFERENCE = "float32 reference code"
SIXTEEN = ("float16", "bfloat16")
MOST_MERGED = 2_000_000_000
"""Parameters that peft may merge in float64 on the CPU: 16 bytes each."""


@dataclass(frozen=True)
class Place:
    """What is compared: the weights as they were found, and the complete `checkpoint` of them; a folder to fill."""

    model: catalog.Model
    found: LocalWeights
    checkpoint: Path
    device: torch.device
    scratch: Path

    def load(self, dtype: str) -> Embedder:
        return engines.load_one(self.model, self.checkpoint, self.device, dtype)


def measure(
    place: Place, dtypes: Sequence[str] | None, data: Path | None, quick: bool, seed: int, keep: Keep = discard
) -> Json:
    """Every part by itself: what fails is a row that says why, and the rest goes on."""
    known = ["float32", *SIXTEEN, *([variants.FLOAT8] if variants.has_float8(place.model) else [])]
    names = list(dtypes or known)
    ids, words = _texts(place, quick, seed)
    result: Json = {
        "device": str(place.device),
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "shortest_tokens": min(map(len, ids)),
        "longest_tokens": max(map(len, ids)),
        "rows": [],
        "merge": [],
        "quality": [],
    }
    log(f"equality: {REFERENCE}, {len(ids)} texts, {result['tokens']} tokens …")
    with exact_float32():
        reference = _stock(place, torch.float32, ids)
    for name in names:
        for part in (_stock_rows, _engine_rows):
            log(f"equality: {name} …")
            _noted(result["rows"], name, partial(part, place, name, ids, reference))
            keep(result)
            free(place.device)
    if place.found.adapter is not None:
        for name in [name for name in names if name in SIXTEEN]:
            log(f"equality: merge in {name} …")
            _noted(result["merge"], name, partial(_merge, place, name, words))
            keep(result)
            free(place.device)
    for name in known if data else []:
        log(f"equality: quality in {name} …")
        _noted(result["quality"], name, partial(_quality, place, name, data))
        keep(result)
    return result


def _noted(rows: list[Json], dtype: str, part: Callable[[], list[Json]]) -> None:
    try:
        rows.extend(part())
    except Exception as error:  # whatever it is: it is this part's result
        rows.append({"dtype": dtype, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
        log(f"equality: {rows[-1]}")


def _texts(place: Place, quick: bool, seed: int) -> tuple[list[TokenIds], list[str]]:
    """Token ids of texts of mixed lengths, among them one word and the model's limit; and the texts."""
    embedder = place.load("float32" if place.device.type == "cpu" else "float16")
    texts = Texts(embedder, place.found.tokenizer, seed)
    limit = embedder.tokenizer.max_tokens
    longest = min(QUICK_WORDS, limit) if quick else limit
    words = [*texts.of_words([1, 2, 3, longest + 9]), *texts.mixed((QUICK_TEXTS if quick else TEXTS) - 4)]
    ids = [one[:longest] for one in embedder.tokenize([], words, "").ids]
    del texts, embedder
    free(place.device)
    return ids, words


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 in between."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.inference_mode()
def _stock(place: Place, dtype: torch.dtype, ids: Sequence[TokenIds]) -> Vectors:
    """The model cards' procedure, one text at a time, without this package: float32 [N, D]."""
    extra = {} if place.model.architecture == "mistral" else {"add_pooling_layer": False}
    loaded: Any = AutoModel.from_pretrained(
        place.checkpoint, dtype=dtype, attn_implementation="eager", local_files_only=True, **extra
    )
    module = loaded.to(place.device).eval()
    rows = []
    for one in ids:
        row = torch.tensor([one.tolist()], device=place.device)
        hidden = module(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0]
        vector = hidden[-1] if place.model.pooling == "last" else hidden.float().mean(dim=0)
        rows.append(vector.float().cpu().numpy())
    del module, loaded
    free(place.device)
    return np.stack(rows)


def _stock_rows(place: Place, name: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    if name not in SIXTEEN:
        return []
    found = _stock(place, getattr(torch, name), ids)
    return [_row(name, "stock transformers", REFERENCE, found, reference)]


def _engine_rows(place: Place, name: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    """In one dtype: against the reference, packed against one by one, with a part switched off against as it is."""
    embedder = place.load(name)

    def packed() -> Vectors:
        return _packed(embedder, ids)

    def alone() -> Vectors:
        return np.concatenate([embedder.forward([one]).cpu().numpy() for one in ids])

    with exact_float32():
        together, single = packed(), alone()
        rows = [
            _row(name, "engine", REFERENCE, together, reference),
            _row(name, "packed", "one by one", together, single),
        ]
        if variants.graphs(embedder) is not None:
            with variants.without_graphs(embedder):
                rows += [
                    _row(name, "graphs, packed", "eager", together, packed()),
                    _row(name, "graphs, one by one", "eager", single, alone()),
                ]
        if "kernels" not in variants.missing(embedder):
            with variants.without_kernels(embedder):
                rows.append(_row(name, "kernels", "torch's operators", together, packed()))
    return rows


def _packed(embedder: Embedder, ids: Sequence[TokenIds]) -> Vectors:
    """By the way that every list of texts takes: planned, packed, and back in order."""
    return embedder.embed_tokens(Tokens(list(ids), truncated=0))


def _row(dtype: str, of: str, to: str, vectors: Vectors, reference: Vectors) -> Json:
    return {"dtype": dtype, "of": of, "to": to, **distance(vectors, reference).facts()}


def _merge(place: Place, name: str, words: Sequence[str]) -> list[Json]:
    """This package's merge on the device against peft's: the weights, and the vectors of engines loaded from each."""
    if place.model.parameters > MOST_MERGED and _parameters(place) > MOST_MERGED:
        raise ValueError("too large for float64 on the CPU: draw fewer layers, --random-weights --layers 2")
    dtype: torch.dtype = getattr(torch, name)
    theirs = merging.by_peft(place.found, dtype)
    different = total = 0
    for weight, tensor in merged_tensors(place.found, place.device):
        other = theirs[weight].to(place.device)
        different += int((tensor.to(dtype) != other).sum())
        total += tensor.numel()
    folder = place.scratch / name
    merging.save(place.found, theirs, dtype, folder)
    del theirs
    engines.complete(place.model, place.found, folder)
    device = str(place.device)
    # The folder that has base/ and adapter/ is the one above.
    own = _load(Settings(place.model.name, place.found.checkpoint.parent, "adapter", device, name), words)
    same = _load(Settings(place.model.name, folder, "merged", device, name), words)
    return [
        {
            "dtype": name,
            "weights": total,
            "different_weights": different,
            "vectors": distance(own, same).facts(),
        }
    ]


def _parameters(place: Place) -> int:
    return sum(path.stat().st_size for path in place.checkpoint.glob("*.safetensors")) // 2


def _load(settings: Settings, words: Sequence[str]) -> Vectors:
    return Embedder.from_settings(settings).embed_documents(words, progress=False)


def _quality(place: Place, name: str, data: Path | None) -> list[Json]:
    """Of the embedded model, whose vectors mean something, whatever model is measured."""
    assert data is not None
    embedder = Embedder.from_settings(Settings(catalog.EMBEDDED, device=str(place.device), dtype=name))
    return [{"dtype": name, **quality.quality(embedder, data)}]


def card(result: Json) -> str:
    rows = [
        [
            row["dtype"],
            row["of"],
            row["to"],
            f"{row['max_relative_l2']:.1e}",
            f"{row['median_relative_l2']:.1e}",
            f"{row['min_centred_cosine']:.6f}",
            f"{row['max_score_difference']:.4f}",
            "yes" if row["identical"] else "no",
        ]
        for row in result["rows"]
        if "failed" not in row
    ]
    head = ["dtype", "", "against", "max rel. L2", "median", "min c. cosine", "max |Δ score|", "same bits"]
    lines = [
        f"Equality: {result['texts']} texts of {result['shortest_tokens']} to {result['longest_tokens']:,} tokens on "
        f"{result['device']}",
        table(head, rows, text_columns=3),
        "  c. cosine: centred, the reference's mean taken off both. Score: 100 × cosine of any two of the texts.",
    ]
    lines += [
        f"  Merged on {result['device']} against peft in float64 on the CPU, rounded to {row['dtype']}: "
        f"{row['different_weights']:,} of {row['weights']:,} weights differ; vectors of engines loaded from each: "
        + ("the same bits" if row["vectors"]["identical"] else f"relative L2 {row['vectors']['max_relative_l2']:.1e}")
        for row in result["merge"]
        if "failed" not in row
    ]
    if result["quality"]:
        scored = [row for row in result["quality"] if "failed" not in row]
        lines.append("  The embedded model's work on labelled texts:")
        figures = [[row["dtype"], f"{row['trecqa_mrr']:.2f}", f"{row['stsb_spearman']:.2f}"] for row in scored]
        lines.append(table(["dtype", "TrecQA dev MRR", "STS-B dev Spearman"], figures))
    failed = [row for part in ("rows", "merge", "quality") for row in result[part] if "failed" in row]
    lines += [f"  {row['dtype']}: failed, {row['failed']}" for row in failed]
    return "\n".join(lines)
