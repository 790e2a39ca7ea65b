"""Train weights/e5-mistral-tiny: sources, text, teacher vectors, static embeddings, base, adapter, export, evaluation.

Each stage keeps its result in --work and is skipped if the result exists. An interrupted run continues when started
again; base and adapter resume from their last checkpoint. Configuration: training/config.py. After a change of adapter
fields only, only the adapter is retrained. Needs pip install '.[train]'.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import quality
from e5 import tasks
from e5.catalog import EMBEDDED
from e5.weights.locate import WEIGHTS
from e5_cog.repository import ROOT
from training import corpus, dataset, distillation, evaluation, fetching, heldout, publishing, static_embeddings
from training.config import ADAPTER_FIELDS, Config
from training.network import initial_weights
from training.teacher import Teacher, pca, project

PUBLISHED = WEIGHTS / EMBEDDED
TOKENIZER = PUBLISHED / "base" / "tokenizer.json"
STAGES = (
    "sources/versions.json",
    "texts.txt",
    "teacher.npy",
    "vocabulary.npy",
    "set.safetensors",
    "static.safetensors",
    "base.safetensors",
    "adapter.safetensors",
)
"""The stages' results, in order."""
REQUIRED = (heldout.HELDOUT, corpus.STS_TRAIN, heldout.STS_DEV, corpus.QA_TRAIN, heldout.QA_DEV)


@dataclass(frozen=True)
class TrainingRun:
    """One training run. `work`: folder of the stages' results. `data`: labelled sets. `target`: the published model."""

    config: Config
    work: Path
    data: Path
    target: Path
    device: torch.device

    def run(self) -> None:
        """Run the stages whose results are missing, and export."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._check_configuration()
        stages = (
            self._fetch_sources,
            self._prepare_texts,
            self._embed_texts,
            self._embed_vocabulary,
            self._build_training_set,
            self._train_static,
            self._train_base,
            self._train_adapter,
        )
        for result, stage in zip(STAGES, stages, strict=True):
            self._run_stage(result, stage)
        self.export()

    def export(self) -> None:
        base, adapter = self._load("base"), self._load("adapter")
        publishing.publish(self.target, base, adapter, self.config, TOKENIZER.parent)
        print(f"written to {self.target}")

    def _check_configuration(self) -> None:
        """Refuse to mix results from different configurations or data. Only adapter fields may have changed."""
        path = self.work / "made_from.json"
        data = {name: hashlib.sha256((self.data / name).read_bytes()).hexdigest() for name in REQUIRED}
        current = {"configuration": self.config.as_json(), "data": data}
        if path.exists():
            previous = json.loads(path.read_text())
        else:
            # Results without this file are of unknown origin, except the sources: they have no configuration.
            previous = {} if any((self.work / result).exists() for result in STAGES[1:]) else current
        if _without_adapter_fields(previous) != _without_adapter_fields(current):
            raise SystemExit(
                f"{self.work} was started with another configuration or other data: choose another folder with --work, "
                "or delete this one"
            )
        if previous != current:
            print("the adapter's configuration has changed: it will be retrained")
            self._delete(STAGES[-1])
        if previous != current or not path.exists():
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(current, indent=1) + "\n")
            partial.rename(path)

    def _delete(self, result: str) -> None:
        (self.work / result).unlink(missing_ok=True)
        (self.work / result).with_suffix(".state").unlink(missing_ok=True)

    def _run_stage(self, result: str, stage: Callable[[], None]) -> None:
        name = Path(result).parts[0].partition(".")[0]
        if (self.work / result).exists():
            print(f"{name}: already done", flush=True)
            return
        for later in STAGES[STAGES.index(result) + 1 :]:
            self._delete(later)  # made from a result that no longer exists
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        stage()
        print(f"{name}: {(time.perf_counter() - started) / 60:.1f} min", flush=True)

    def _fetch_sources(self) -> None:
        fetching.fetch(self.work / "sources")

    def _prepare_texts(self) -> None:
        corpus.prepare(self.config, self.work / "sources", self.data, self.work / "texts.txt")

    def _embed_texts(self) -> None:
        Teacher(str(self.device)).embed_to_file(self._strings(), self.work / "teacher.npy")

    def _embed_vocabulary(self) -> None:
        Teacher(str(self.device)).embed_to_file(dataset.token_strings(TOKENIZER), self.work / "vocabulary.npy")

    def _build_training_set(self) -> None:
        """Token ids, the teacher's vectors reduced to the student's semantic dimensions, and clusters."""
        vectors = np.load(self.work / "teacher.npy")
        components, energy = pca(vectors, self.config.model.semantic_size)
        print(f"  {self.config.model.semantic_size} dimensions keep {100 * energy:.1f} % of the teacher's energy")
        input_ids, offsets = dataset.tokenize(self._strings(), TOKENIZER, self.config.max_tokens)
        print(f"  {len(input_ids):,} tokens, {len(input_ids) / (len(offsets) - 1):.1f} a text")
        targets = torch.from_numpy(project(vectors, components)).to(torch.bfloat16)
        stored = {
            "ids": input_ids,
            "offsets": offsets,
            "vectors": targets,
            "clusters": dataset.cluster(targets, self.config.num_clusters, self.config.seed),
            "vocabulary": torch.from_numpy(project(np.load(self.work / "vocabulary.npy"), components)),
        }
        self._save("set", stored)

    def _train_static(self) -> None:
        token_vectors = self._load("set")["vocabulary"].numpy()
        self._save("static", {"vectors": static_embeddings.train(self.config, self._training_set(), token_vectors)})

    def _train_base(self) -> None:
        static = self._load("static")["vectors"]
        start = initial_weights(self.config.model, static, torch.Generator().manual_seed(self.config.seed))
        checkpoint = self.work / "base.state"
        check = evaluation.sts_check(self.config.model, self.data, TOKENIZER, task=None)
        texts = self._training_set()
        self._save("base", distillation.train_base(self.config, texts, start, checkpoint, self.device, check))

    def _train_adapter(self) -> None:
        data = distillation.AdapterData(self.config, self._strings(), self._training_set(), TOKENIZER)
        # Rounded to bfloat16 as in the published base, which the adapter will be used with.
        base = {name: weight.bfloat16().float() for name, weight in self._load("base").items()}
        checkpoint = self.work / "adapter.state"
        task = tasks.instruction(quality.SIMILARITY_TASK)
        check = evaluation.sts_check(self.config.model, self.data, TOKENIZER, task)
        self._save("adapter", distillation.train_adapter(self.config, data, base, checkpoint, self.device, check))

    def _strings(self) -> list[str]:
        return (self.work / "texts.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def _training_set(self) -> dataset.TrainingSet:
        stored = self._load("set")
        return dataset.TrainingSet(stored["ids"], stored["offsets"], stored["vectors"], stored["clusters"])

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_file(self.work / f"{name}.safetensors")

    def _save(self, name: str, tensors: dict[str, Tensor]) -> None:
        partial = self.work / f"{name}.part"
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial)
        partial.rename(self.work / f"{name}.safetensors")


def _without_adapter_fields(made_from: dict[str, Any]) -> dict[str, Any]:
    configuration = made_from.get("configuration", {})
    return made_from | {"configuration": {key: configuration[key] for key in configuration.keys() - ADAPTER_FIELDS}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(REQUIRED)}")
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".train-tiny", help="folder of the stages' results (1.6 GB)"
    )
    parser.add_argument("--to", type=Path, default=PUBLISHED, help="folder of the model (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help="do not train; print the figures of the model in --to")
    options = parser.parse_args(arguments)
    if missing := [name for name in REQUIRED if not (options.data / name).is_file()]:
        parser.error(f"--data {options.data} lacks {', '.join(missing)}")
    if not options.evaluate:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            TrainingRun(Config(), options.work, options.data, options.to, device).run()
        except fetching.SourceError as error:
            raise SystemExit(str(error)) from error
    print(evaluation.card(evaluation.evaluate(options.to, options.data, options.work / "sources")))
    return 0
