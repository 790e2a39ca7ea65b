"""Parity: the engine's vectors against float32 reference code on the same weights, and against its own other modes.

The reference is the stock transformers module with eager attention, one text at a time, in float32 without TF32. The
same code in each 16-bit dtype shows the error of the dtype itself. For base and adapter, the merge is also compared bit
for bit with peft's in float64 on the CPU, rounded to the dtype.
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

from benchmarks import engines, merging, quality, shared_checkpoint, variants
from benchmarks.agreement import distance
from benchmarks.report import Json, Keep, discard, first_line, log, table
from benchmarks.texts import RandomTexts
from benchmarks.timing import free
from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.tokens import TokenIds, Tokens
from e5.vectors import Vectors
from e5.weights.files import LocalWeights
from e5.weights.merge import merged_tensors

TEXTS, QUICK_TEXTS = 40, 8
QUICK_TOKENS = 300
REFERENCE = "float32 reference code"
SIXTEEN_BIT = ("float16", "bfloat16")
MAX_MERGED_PARAMETERS = 2_000_000_000
"""Limit of the merge by peft in float64 on the CPU, which takes 16 bytes per parameter."""


@dataclass(frozen=True)
class ModelUnderTest:
    """`weights`: as located; `checkpoint`: the same as one complete checkpoint; `scratch`: a folder for new files."""

    model: catalog.Model
    weights: LocalWeights
    checkpoint: Path
    device: torch.device
    scratch: Path

    def load(self, dtype: str) -> Embedder:
        return engines.load_ours(self.model, self.checkpoint, self.device, dtype)


def measure(
    subject: ModelUnderTest,
    dtypes: Sequence[str] | None,
    data: Path | None,
    quick: bool,
    seed: int,
    keep: Keep = discard,
) -> Json:
    """A comparison that fails becomes a row with its error; the others still run.

    `data`: folder with trecqa-dev.csv and stsb-en-dev.csv, for the quality in each dtype; None leaves it out.
    """
    all_dtypes = ["float32", *SIXTEEN_BIT, *([variants.FLOAT8] if variants.has_float8(subject.model) else [])]
    names = list(dtypes or all_dtypes)
    ids, texts = _draw_texts(subject, quick, seed)
    result: Json = {
        "device": str(subject.device),
        "texts": len(ids),
        "tokens": sum(map(len, ids)),
        "shortest_tokens": min(map(len, ids)),
        "longest_tokens": max(map(len, ids)),
        "rows": [],
        "merge": [],
        "quality": [],
    }

    def add(part: str, dtype: str, compare: Callable[[], list[Json]]) -> None:
        log(f"parity: {part} in {dtype} …")
        try:
            result[part] += compare()
        except Exception as error:
            result[part].append({"dtype": dtype, "failed": first_line(error)})
            log(f"parity: {result[part][-1]}")
        keep(result)
        free(subject.device)

    log(f"parity: {REFERENCE}, {len(ids)} texts, {result['tokens']} tokens …")
    with exact_float32():
        reference = _stock_vectors(subject, torch.float32, ids)
    for dtype in names:
        if dtype in SIXTEEN_BIT:
            add("rows", dtype, partial(_stock_rows, subject, dtype, ids, reference))
        add("rows", dtype, partial(_engine_rows, subject, dtype, ids, reference))
    if subject.weights.adapter is not None:
        for dtype in names:
            if dtype in SIXTEEN_BIT:
                add("merge", dtype, partial(_merge_rows, subject, dtype, texts))
    if data is not None:
        for dtype in all_dtypes:
            add("quality", dtype, partial(_quality_rows, subject, dtype, data))
    return result


def _draw_texts(subject: ModelUnderTest, quick: bool, seed: int) -> tuple[list[TokenIds], list[str]]:
    """Token IDs and texts of mixed lengths, from a single word to the model's token limit."""
    embedder = subject.load("float32" if subject.device.type == "cpu" else "float16")
    random_texts = RandomTexts(embedder, subject.weights.tokenizer, seed)
    limit = embedder.tokenizer.max_tokens
    longest = min(QUICK_TOKENS, limit) if quick else limit
    texts = random_texts.of_words([1, 2, 3, longest + 9])
    texts += random_texts.mixed((QUICK_TEXTS if quick else TEXTS) - 4)
    ids = [text_ids[:longest] for text_ids in embedder.tokenize([], texts, "").ids]
    del random_texts, embedder
    free(subject.device)
    return ids, texts


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turn off TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.inference_mode()
def _stock_vectors(subject: ModelUnderTest, dtype: torch.dtype, ids: Sequence[TokenIds]) -> Vectors:
    """The model cards' procedure, one text at a time, without this package: float32 [N, D]."""
    options = {} if subject.model.architecture == "mistral" else {"add_pooling_layer": False}
    loaded: Any = AutoModel.from_pretrained(
        subject.checkpoint, dtype=dtype, attn_implementation="eager", local_files_only=True, **options
    )
    module = loaded.to(subject.device).eval()
    vectors = []
    for text_ids in ids:
        input_ids = torch.tensor([text_ids.tolist()], device=subject.device)
        hidden = module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).last_hidden_state[0]
        vector = hidden[-1] if subject.model.pooling == "last" else hidden.float().mean(dim=0)
        vectors.append(vector.float().cpu().numpy())
    del module, loaded
    free(subject.device)
    return np.stack(vectors)


def _stock_rows(subject: ModelUnderTest, dtype: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    vectors = _stock_vectors(subject, getattr(torch, dtype), ids)
    return [_row(dtype, "stock transformers", REFERENCE, vectors, reference)]


def _engine_rows(subject: ModelUnderTest, dtype: str, ids: Sequence[TokenIds], reference: Vectors) -> list[Json]:
    """Engine against reference, packed against one by one, graphs against eager, kernels against torch's operators."""
    embedder = subject.load(dtype)

    def embed_packed() -> Vectors:
        return embedder.embed_tokens(Tokens(list(ids), truncated=0))

    def embed_one_by_one() -> Vectors:
        return np.concatenate([embedder.forward([text_ids]).cpu().numpy() for text_ids in ids])

    with exact_float32():
        packed, one_by_one = embed_packed(), embed_one_by_one()
        rows = [
            _row(dtype, "engine", REFERENCE, packed, reference),
            _row(dtype, "packed", "one by one", packed, one_by_one),
        ]
        if variants.graphs(embedder) is not None:
            with variants.without_graphs(embedder):
                rows += [
                    _row(dtype, "graphs, packed", "eager", packed, embed_packed()),
                    _row(dtype, "graphs, one by one", "eager", one_by_one, embed_one_by_one()),
                ]
        if "kernels" not in variants.missing(embedder):
            with variants.without_kernels(embedder):
                rows.append(_row(dtype, "kernels", "torch's operators", packed, embed_packed()))
    return rows


def _row(dtype: str, of: str, to: str, vectors: Vectors, reference: Vectors) -> Json:
    return {"dtype": dtype, "of": of, "to": to, **distance(vectors, reference).facts()}


def _merge_rows(subject: ModelUnderTest, name: str, texts: Sequence[str]) -> list[Json]:
    """Compare this package's merge on the device with peft's: the weights, and vectors of engines loaded from each."""
    if subject.model.parameters > MAX_MERGED_PARAMETERS and _parameters(subject.checkpoint) > MAX_MERGED_PARAMETERS:
        raise ValueError("too large for float64 on the CPU: draw fewer layers, --random-weights --layers 2")
    dtype: torch.dtype = getattr(torch, name)
    by_peft = merging.by_peft(subject.weights, dtype)
    different = total = 0
    for weight, tensor in merged_tensors(subject.weights, subject.device):
        different += int((tensor.to(dtype) != by_peft[weight].to(subject.device)).sum())
        total += tensor.numel()
    folder = subject.scratch / name
    merging.save(subject.weights, by_peft, dtype, folder)
    del by_peft
    shared_checkpoint.add_tokenizer_and_pooling(subject.model, subject.weights, folder)
    device = str(subject.device)
    base_and_adapter = subject.weights.checkpoint.parent
    ours = _embed(Settings(subject.model.name, base_and_adapter, "adapter", device, name), texts)
    peft = _embed(Settings(subject.model.name, folder, "merged", device, name), texts)
    vectors = distance(ours, peft).facts()
    return [{"dtype": name, "weights": total, "different_weights": different, "vectors": vectors}]


def _parameters(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) // 2


def _embed(settings: Settings, texts: Sequence[str]) -> Vectors:
    return Embedder.from_settings(settings).embed_documents(texts, progress=False)


def _quality_rows(subject: ModelUnderTest, dtype: str, data: Path) -> list[Json]:
    """Quality of the embedded model, whichever model is under test: vectors of random weights mean nothing."""
    embedder = Embedder.from_settings(Settings(catalog.EMBEDDED, device=str(subject.device), dtype=dtype))
    return [{"dtype": dtype, **quality.quality(embedder, data)}]


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
        f"Parity: {result['texts']} texts of {result['shortest_tokens']} to {result['longest_tokens']:,} tokens on "
        f"{result['device']}",
        table(head, rows, text_columns=3),
        "  c. cosine: after subtracting the reference's mean from both. Score: 100 × cosine of any two of the texts.",
    ]
    lines += [
        f"  Merged on {result['device']} against peft in float64 on the CPU, rounded to {row['dtype']}: "
        f"{row['different_weights']:,} of {row['weights']:,} weights differ; vectors of engines loaded from each: "
        + ("the same bits" if row["vectors"]["identical"] else f"relative L2 {row['vectors']['max_relative_l2']:.1e}")
        for row in result["merge"]
        if "failed" not in row
    ]
    if result["quality"]:
        lines.append("  Quality of the embedded model on labelled texts:")
        figures = [
            [row["dtype"], f"{row['trecqa_mrr']:.2f}", f"{row['stsb_spearman']:.2f}"]
            for row in result["quality"]
            if "failed" not in row
        ]
        lines.append(table(["dtype", "TrecQA dev MRR", "STS-B dev Spearman"], figures))
    failed = [row for part in ("rows", "merge", "quality") for row in result[part] if "failed" in row]
    lines += [f"  {row['dtype']}: failed, {row['failed']}" for row in failed]
    return "\n".join(lines)
