"""Train weights/e5-mistral-tiny: text, teacher, static start, base, adapter, export, evaluation.

Every stage keeps its result in --work and is skipped when it is there; base and adapter go on where they were
interrupted. Stop it at any time, and run it again. Configuration: training/config.py; where only the adapter's
changes, only the adapter is trained anew. Needs pip install '.[train]'.
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
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from benchmarks import quality
from e5 import tasks
from e5.catalog import EMBEDDED
from e5.prompts import query_prompt
from e5.weights.locate import WEIGHTS
from e5_cog.repository import ROOT
from training import corpus, dataset, evaluation, loops, publishing, source_packages, static_vectors
from training.config import ADAPTER, Config
from training.network import Weights, forward, initial, pack
from training.teacher import Teacher, principal, reduced

PUBLISHED = WEIGHTS / EMBEDDED
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
"""The stages' results, in their order."""
NEEDED = (corpus.HELDOUT, corpus.STS_TRAIN, corpus.STS_DEV, corpus.QA_TRAIN, corpus.QA_DEV)


@dataclass(frozen=True)
class Run:
    """One training run: where its stages lie, and what they are made from."""

    config: Config
    work: Path
    data: Path
    target: Path
    device: torch.device

    def all(self) -> None:
        """All stages, each unless its result is there."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._same_configuration()
        makers = (
            lambda: source_packages.fetch(self.work / "sources"),
            self._text,
            self._embedded,
            self._vocabulary,
            self._set,
            self._static,
            self._base,
            self._adapter,
        )
        for result, make in zip(STAGES, makers, strict=True):
            self._stage(result, make)
        self.export()

    def export(self) -> None:
        base, adapter = (load_file(self.work / f"{name}.safetensors") for name in ("base", "adapter"))
        publishing.publish(self.target, base, adapter, self.config, PUBLISHED / "base")
        print(f"written to {self.target}")

    def _same_configuration(self) -> None:
        """Stages made from another configuration or from other data are not mixed with this one's.

        Where the adapter's alone is another, the stages before it stay.
        """
        path = self.work / "made_from.json"
        data = {name: hashlib.sha256((self.data / name).read_bytes()).hexdigest() for name in NEEDED}
        wanted = {"configuration": self.config.as_json(), "data": data}
        begun = [name for name in STAGES if name != STAGES[0] and (self.work / name).exists()]
        found = json.loads(path.read_text()) if path.exists() else {} if begun else wanted
        if _before_adapter(found) != _before_adapter(wanted):
            raise SystemExit(
                f"{self.work} was begun with another configuration or other data: name another folder with --work, "
                "or delete this one"
            )
        if found != wanted:
            print("the adapter's configuration is another than before: it is trained anew")
            self._forget(STAGES[-1])
        if found != wanted or not path.exists():
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(wanted, indent=1) + "\n")
            partial.rename(path)

    def _forget(self, result: str) -> None:
        (self.work / result).unlink(missing_ok=True)
        (self.work / result).with_suffix(".state").unlink(missing_ok=True)

    def _stage(self, result: str, make: Callable[[], object]) -> None:
        name = Path(result).parts[0].partition(".")[0]
        if (self.work / result).exists():
            print(f"{name}: there", flush=True)
            return
        for later in STAGES[STAGES.index(result) + 1 :]:
            self._forget(later)  # it was made from the result that is gone
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        make()
        print(f"{name}: {(time.perf_counter() - started) / 60:.1f} min", flush=True)

    def _teacher(self) -> Teacher:
        return Teacher(str(self.device))

    def _text(self) -> None:
        corpus.prepare(self.config, self.work / "sources", self.data, self.work / "texts.txt")

    def _strings(self) -> list[str]:
        return (self.work / "texts.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def _embedded(self) -> None:
        self._teacher().embed_to(self._strings(), self.work / "teacher.npy")

    def _vocabulary(self) -> None:
        tokens = dataset.vocabulary(PUBLISHED / "base" / "tokenizer.json")
        self._teacher().embed_to(tokens, self.work / "vocabulary.npy")

    def _set(self) -> None:
        """Token ids, the teacher's vectors in the student's dimensions, and clusters."""
        vectors = np.load(self.work / "teacher.npy")
        columns, kept = principal(vectors, self.config.shape.semantic)
        print(f"  {self.config.shape.semantic} dimensions keep {100 * kept:.1f} % of the teacher's energy")
        tokenizer = PUBLISHED / "base" / "tokenizer.json"
        ids, offsets = dataset.tokenized(self._strings(), tokenizer, self.config.most_tokens)
        print(f"  {len(ids):,} tokens, {len(ids) / (len(offsets) - 1):.1f} a text")
        targets = torch.from_numpy(reduced(vectors, columns)).to(torch.bfloat16)
        clusters = dataset.clustered(targets, self.config.clusters, self.config.seed)
        tokens = torch.from_numpy(reduced(np.load(self.work / "vocabulary.npy"), columns))
        stored = {"ids": ids, "offsets": offsets, "vectors": targets, "clusters": clusters, "vocabulary": tokens}
        self._save("set", stored)

    def _texts(self) -> dataset.Texts:
        stored = load_file(self.work / "set.safetensors")
        return dataset.Texts(stored["ids"], stored["offsets"], stored["vectors"], stored["clusters"])

    def _static(self) -> None:
        vocabulary = load_file(self.work / "set.safetensors")["vocabulary"].numpy()
        self._save("static", {"vectors": static_vectors.train(self.config, self._texts(), vocabulary)})

    def _base(self) -> None:
        static = load_file(self.work / "static.safetensors")["vectors"]
        start = initial(self.config.shape, static, torch.Generator().manual_seed(self.config.seed))
        saved = self.work / "base.state"
        check = self._check(None)
        self._save("base", loops.train_base(self.config, self._texts(), start, saved, self.device, check))

    def _adapter(self) -> None:
        tokenizer = PUBLISHED / "base" / "tokenizer.json"
        data = loops.AdapterData(self.config, self._strings(), self._texts(), tokenizer)
        # As it will be published: what the adapter corrects should be what it meets.
        base = {name: one.bfloat16().float() for name, one in load_file(self.work / "base.safetensors").items()}
        saved = self.work / "adapter.state"
        check = self._check(tasks.instruction(quality.SIMILARITY_TASK))
        self._save("adapter", loops.train_adapter(self.config, data, base, saved, self.device, check))

    def _check(self, task: str | None) -> loops.Check:
        """Says how far the model is on STS-B dev, with an instruction or without."""
        pairs = quality.read_pairs(self.data / quality.SIMILARITY)
        tokenizer = Tokenizer.from_file(str(PUBLISHED / "base" / "tokenizer.json"))
        texts = [text for pair in pairs for text in (pair.first, pair.second)]
        prompts = [query_prompt("instruct", task or "", text) for text in texts]
        found = tokenizer.encode_batch_fast(prompts, add_special_tokens=False)
        batch = pack([[dataset.BOS, *one.ids, dataset.EOS] for one in found])

        def check(weights: Weights) -> str:
            vectors = functional.normalize(forward(weights, self.config.shape, batch))[batch.order.argsort()].cpu()
            cosines = (vectors[::2] * vectors[1::2]).sum(1).double().numpy()
            gold = np.array([pair.similarity for pair in pairs])
            return f"STS-B dev, {'instructed' if task else 'plain'}: {100 * quality.spearman(cosines, gold):.2f}"

        return check

    def _save(self, name: str, tensors: dict[str, Tensor]) -> None:
        partial = self.work / f"{name}.part"
        save_file({key: one.cpu().contiguous() for key, one in tensors.items()}, partial)
        partial.rename(self.work / f"{name}.safetensors")


def _before_adapter(made_from: dict[str, Any]) -> dict[str, Any]:
    configuration = made_from.get("configuration", {})
    return made_from | {"configuration": {key: configuration[key] for key in configuration.keys() - ADAPTER}}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(NEEDED)}")
    parser.add_argument("--work", type=Path, default=ROOT / ".train-tiny", help="folder of the stages (1.6 GB)")
    parser.add_argument("--to", type=Path, default=PUBLISHED, help="folder of the result (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help="train nothing: print the figures of the result")
    given = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if not (given.data / name).is_file()]:
        parser.error(f"--data {given.data} lacks {', '.join(missing)}")
    if not given.evaluate:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            Run(Config(), given.work, given.data, given.to, device).all()
        except source_packages.SourceError as error:
            raise SystemExit(str(error)) from error
    print(evaluation.card(evaluation.evaluate(given.to, given.data)))
    return 0
