"""Export a checkpoint for ONNX Runtime, in float32 and in dynamic int8, and for OpenVINO.

    python -m benchmarks.peers.export FOLDER

Runs in the peers' environment. Reads FOLDER/checkpoint and writes FOLDER/onnx and FOLDER/openvino, as the documentation
of sentence-transformers says.
"""

import sys
from pathlib import Path

from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

from benchmarks.peers.engines import CHECKPOINT, EXPORTS, INT8_CPU, ONNX


def main(folder: Path) -> None:
    for backend in EXPORTS:
        model = SentenceTransformer(
            str(folder / CHECKPOINT), backend=backend, local_files_only=True, model_kwargs={"export": True}
        )
        model.save_pretrained(str(folder / backend))
        if backend == ONNX:
            export_dynamic_quantized_onnx_model(model, INT8_CPU, str(folder / backend))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
