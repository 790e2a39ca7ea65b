"""The prompts of both protocols, against texts copied from their sources, mteb's prompts, and mteb's own loaders."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_implementations.e5_instruct import E5_INSTRUCTION
from mteb.models.model_implementations.e5_models import model_prompts
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from e5 import Embedder, catalog, tasks
from evaluation import protocols
from evaluation.backends import Local
from evaluation.encoder import Encoder
from evaluation.errors import EvaluationError
from evaluation.progress import Progress
from evaluation.protocols import MTEB, UNILM

QUERY, DOCUMENT = PromptType.query, PromptType.document
INSTRUCT = "Instruct: {}\nQuery: t"

# By hand from microsoft/unilm e5/{mteb_beir_eval,mteb_except_retrieval_eval,utils}.py and mteb's e5_models.py and
# e5_instruct.py: protocol, kind, task, prompt type, what the model reads of the text "t".
CASES = (
    ("unilm", "prefix", "SciFact", QUERY, "query: t"),
    ("unilm", "prefix", "SciFact", DOCUMENT, "passage: t"),
    ("unilm", "prefix", "QuoraRetrieval", DOCUMENT, "query: t"),
    ("unilm", "prefix", "SICK-R", None, "query: t"),
    ("unilm", "prefix", "Banking77Classification", None, "query: t"),
    ("unilm", "prefix", "AskUbuntuDupQuestions", QUERY, "query: t"),
    ("unilm", "prefix", "AskUbuntuDupQuestions", DOCUMENT, "query: t"),
    ("unilm", "prefix", "TwitterURLCorpus", None, "query: t"),
    ("unilm", "prefix", "TERRa.V2", DOCUMENT, "query: t"),  # a task of pairs with sides of their own
    ("mteb", "prefix", "TERRa.V2", DOCUMENT, "passage: t"),
    ("unilm", "instruct", "QuoraRetrieval", DOCUMENT, "t"),
    ("unilm", "instruct", "SciFact", DOCUMENT, "t"),
    (
        "unilm",
        "instruct",
        "SciFact",
        QUERY,
        INSTRUCT.format("Given a scientific claim, retrieve documents that support or refute the claim"),
    ),
    ("unilm", "instruct", "SICK-R", None, INSTRUCT.format("Retrieve semantically similar text.")),
    (
        "unilm",
        "instruct",
        "AskUbuntuDupQuestions",
        DOCUMENT,
        INSTRUCT.format("Retrieve duplicate questions from AskUbuntu forum"),
    ),
    (
        "unilm",
        "instruct",
        "CQADupstackEnglishRetrieval",
        QUERY,
        INSTRUCT.format(
            "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
            "given question"
        ),
    ),
    ("mteb", "prefix", "QuoraRetrieval", DOCUMENT, "passage: t"),
    ("mteb", "prefix", "SICK-R", None, "t"),
    ("mteb", "prefix", "Banking77Classification", None, "t"),
    ("mteb", "prefix", "AskUbuntuDupQuestions", DOCUMENT, "passage: t"),
    ("mteb", "instruct", "AskUbuntuDupQuestions", DOCUMENT, "t"),
    (
        "mteb",
        "instruct",
        "Banking77Classification",
        None,
        INSTRUCT.format("Given a online banking query, find the corresponding intents"),
    ),
)


@pytest.mark.parametrize(("protocol", "kind", "task", "prompt_type", "text"), CASES)
def test_prompt(protocol: str, kind: catalog.PromptKind, task: str, prompt_type: PromptType | None, text: str) -> None:
    prompt = protocols.prompt({"unilm": UNILM, "mteb": MTEB}[protocol], kind, metadata(task), prompt_type)
    assert prompt.apply("t") == text


def test_limits_normalization_and_splits() -> None:
    assert (UNILM.max_tokens, MTEB.max_tokens) == (512, None)
    banking, sick = metadata("Banking77Classification"), metadata("SICK-R")
    assert [protocols.normalized(UNILM, task) for task in (banking, sick)] == [False, True]
    assert [protocols.normalized(MTEB, task) for task in (banking, sick)] == [True, True]
    assert {task.metadata.name: task.eval_splits for task in mteb.get_benchmark("BEIR").tasks}["MSMARCO"] == ["dev"]


def test_only_unilm_drops_the_title_of_a_duplicate_question() -> None:
    for kind, protocol, with_title in (("prefix", UNILM, False), ("instruct", UNILM, True), ("prefix", MTEB, True)):
        prompt = protocols.prompt(protocol, kind, metadata("QuoraRetrieval"), DOCUMENT)  # type: ignore[arg-type]
        assert prompt.with_title is with_title
    assert protocols.prompt(UNILM, "prefix", metadata("SciFact"), DOCUMENT).with_title


def test_instructions_equal_those_of_mteb() -> None:
    """A new mteb release that changes one must not go unnoticed."""
    names = {protocols.trained_name(name) for name in mteb_names()} - {None}
    assert names >= set(tasks.names()) - {"STS", "Summarization", "BitextMining", "CMedQAv1", "CMedQAv2"}
    compared = 0
    for name in mteb_names():
        prompt = metadata(name).prompt
        mteb_prompt = prompt.get("query") if isinstance(prompt, dict) else prompt
        if protocols.trained_name(name) and mteb_prompt:
            assert protocols.prompt(UNILM, "instruct", metadata(name), QUERY).task == mteb_prompt, name
            compared += 1
    assert compared >= 80  # 66 of unilm's list under their own names, the parts of CQADupstack, Nano tasks


def test_a_task_that_unilm_does_not_define_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"no instruction for SciFact-NL, .*use --protocol mteb"):
        protocols.check(UNILM, "instruct", metadata("SciFact").model_copy(update={"name": "SciFact-NL"}))
    with pytest.raises(EvaluationError, match="of type MultilabelClassification, which the protocol unilm does not"):
        protocols.check(UNILM, "prefix", metadata("MultiEURLEXMultilabelClassification"))
    protocols.check(MTEB, "instruct", metadata("MultiEURLEXMultilabelClassification"))


LOADER_TASKS = ("SICK-R", "Banking77Classification", "SciFact", "AskUbuntuDupQuestions", "TwentyNewsgroupsClustering")
TEXTS = ["how much protein should a female eat", "The tower is 300 m high.", "南瓜的家常做法", "summit define"]


@pytest.mark.parametrize("kind", ["prefix", "instruct"])
def test_vectors_equal_those_of_mteb_s_own_loaders(
    tmp_path: Path, real_e5_folder: Path, real_e5_model: Embedder, kind: str
) -> None:
    """The loaders run sentence-transformers on the same weights. An instruct model differs in its prompts only."""
    arguments: dict[str, Any] = {"device": "cpu", "model_kwargs": {"dtype": "float32"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader: Any = (
            SentenceTransformerEncoderWrapper(str(real_e5_folder), None, model_prompts=model_prompts, **arguments)
            if kind == "prefix"
            else InstructSentenceTransformerModel(
                str(real_e5_folder),
                "",
                instruction_template=E5_INSTRUCTION,
                apply_instruction_to_passages=False,
                **arguments,
            )
        )
    backend = Local(real_e5_model, None)
    backend.model = replace(backend.model, prompt=kind)  # type: ignore[arg-type]
    encoder = Encoder(backend, MTEB, vectors="float32", cache=tmp_path, progress=Progress(None, show=False))
    for name in LOADER_TASKS:
        for prompt_type in (QUERY, DOCUMENT) if metadata(name).type in ("Retrieval", "Reranking") else (None,):
            rows = [{"id": str(index), "text": text} for index, text in enumerate(TEXTS)]
            dataset = Dataset.from_list(
                [row | {"title": "A title"} for row in rows] if prompt_type == DOCUMENT else rows
            )
            keywords: dict[str, Any] = {"task_metadata": metadata(name), "prompt_type": prompt_type}
            inputs = create_dataloader(dataset, input_column="text", **keywords)
            got = encoder.encode(inputs, hf_split="test", hf_subset="default", **keywords)
            want = np.asarray(loader.encode(inputs, hf_split="test", hf_subset="default", **keywords))
            want = want / np.linalg.norm(want, axis=1, keepdims=True)
            np.testing.assert_allclose(got, want, atol=2e-5, err_msg=f"{name} {prompt_type}")


def metadata(name: str) -> Any:
    return mteb.get_task(name).metadata


def mteb_names() -> list[str]:
    english = [task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v1)").tasks]
    nano = [task.metadata.name for task in mteb.get_benchmark("NanoBEIR").tasks]
    chinese = [task.metadata.name for task in mteb.get_benchmark("MTEB(cmn, v1)").tasks]
    parts = [part.metadata.name for part in metadata("CQADupstackRetrieval").tasks]
    return [*dict.fromkeys([*english, *nano, *chinese, *parts, "MIRACLRetrieval", "MSMARCO"])]
