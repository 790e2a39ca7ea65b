"""How the authors of E5 and the MTEB leaderboard embed the texts of a task: two protocols, as data.

`unilm` is what microsoft/unilm's e5/ does (mteb_beir_eval.py, mteb_except_retrieval_eval.py, utils.py). The model cards
have its figures. `mteb` is what mteb's loaders of the E5 models do: e5_models.py and e5_instruct.py in
models/model_implementations of mteb 2.26.

In both, a document's title and text are joined with a space, which mteb does before it calls an encoder, and documents
of a retrieval task have no instruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mteb.abstasks.abstask import get_abstask_prompt
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from e5 import tasks
from e5.catalog import PromptKind
from e5.prompts import document_prompt, query_prompt
from evaluation.client.apis import Side
from evaluation.errors import EvaluationError

SEARCH = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
"""Types of tasks whose texts are all queries or documents."""


@dataclass(frozen=True)
class Protocol:
    """`max_tokens`: longer texts are cut, None: to the model's own limit.

    `types`: the types of tasks that the protocol defines, None: all. `symmetric`: the side of texts in tasks without
    queries and documents. `searched`: the types of tasks whose documents are embedded as documents, None: all; those of
    other types are embedded like symmetric texts. `duplicates`: retrieval tasks whose documents prefix models embed as
    queries, without their titles. `unnormalized`: types of tasks whose vectors keep their lengths.
    """

    name: Literal["unilm", "mteb"]
    max_tokens: int | None
    types: tuple[str, ...] | None
    symmetric: Mapping[PromptKind, Side]
    searched: tuple[str, ...] | None
    duplicates: tuple[str, ...]
    unnormalized: tuple[str, ...]


UNILM = Protocol(
    name="unilm",
    max_tokens=512,
    types=(
        "BitextMining",
        "Classification",
        "Clustering",
        "PairClassification",
        "Reranking",
        "Retrieval",
        "STS",
        "Summarization",
    ),
    symmetric={"instruct": "query", "prefix": "query"},
    searched=("Retrieval",),
    duplicates=("QuoraRetrieval", "NanoQuoraRetrieval"),
    unnormalized=("Classification",),
)
MTEB = Protocol(
    name="mteb",
    max_tokens=None,
    types=None,
    symmetric={"instruct": "query", "prefix": "raw"},
    searched=None,
    duplicates=(),
    unnormalized=(),
)
PROTOCOLS = {protocol.name: protocol for protocol in (UNILM, MTEB)}


@dataclass(frozen=True)
class Prompt:
    """What goes in front of each text of one call. `task` is the instruction, "" for none."""

    kind: PromptKind
    side: Side
    task: str
    with_title: bool = True

    def apply(self, text: str) -> str:
        """The text that the model reads."""
        if self.side == "raw":
            return text
        return query_prompt(self.kind, self.task, text) if self.side == "query" else document_prompt(self.kind, text)


def prompt(protocol: Protocol, kind: PromptKind, task: TaskMetadata, prompt_type: PromptType | None) -> Prompt:
    """The prompt for the texts of a task that mteb passes with `prompt_type`; None means neither query nor document.

    Raises EvaluationError for a task that the protocol does not define for this kind of model.
    """
    side = _side(protocol, kind, task, prompt_type)
    instruction = _instruction(protocol, task) if side == "query" and kind == "instruct" else ""
    as_duplicate = prompt_type == PromptType.document and side == "query" and task.type == "Retrieval"
    return Prompt(kind, side, instruction, with_title=not as_duplicate)


def main_prompt(protocol: Protocol, kind: PromptKind, task: TaskMetadata) -> Prompt:
    """The prompt of most of a task's texts: that of its documents, or the only one."""
    return prompt(protocol, kind, task, PromptType.document if task.type in SEARCH else None)


def normalized(protocol: Protocol, task: TaskMetadata) -> bool:
    """Whether the protocol scales this task's vectors to length 1."""
    return task.type not in protocol.unnormalized


def check(protocol: Protocol, kind: PromptKind, task: TaskMetadata) -> None:
    """Raise EvaluationError for a task that the protocol does not define for this kind of model."""
    if protocol.types is not None and task.type not in protocol.types:
        raise EvaluationError(
            f"{task.name} is of type {task.type}, which the protocol {protocol.name} does not define (it has "
            f"{', '.join(protocol.types)}): use --protocol mteb"
        )
    if kind == "instruct":
        _instruction(protocol, task)


def _side(protocol: Protocol, kind: PromptKind, task: TaskMetadata, prompt_type: PromptType | None) -> Side:
    if prompt_type is None or (protocol.searched is not None and task.type not in protocol.searched):
        return protocol.symmetric[kind]
    if prompt_type == PromptType.query:
        return "query"
    return "query" if kind == "prefix" and task.name in protocol.duplicates else "document"


def _instruction(protocol: Protocol, task: TaskMetadata) -> str:
    if protocol.name == "mteb":
        own = task.prompt.get("query") if isinstance(task.prompt, dict) else task.prompt
        return own or get_abstask_prompt(task.name)
    if task.type in tasks.names():  # one sentence for all STS, Summarization and BitextMining tasks
        return tasks.instruction(task.type)
    name = trained_name(task.name)
    if name is None:
        raise EvaluationError(
            f"the protocol unilm has no instruction for {task.name}, and an instruct model needs one: use --protocol "
            f"mteb, or name the data as one of {', '.join(tasks.names(_KINDS.get(task.type, task.type)))}"
        )
    return tasks.instruction(name)


_KINDS = {"PairClassification": "Reranking"}
"""unilm's list has the pair classification tasks among the reranking tasks."""


def trained_name(name: str) -> str | None:
    """The name of mteb's task in unilm's list (`e5.tasks`), or None if it is not there."""
    for candidate in (name, name.removeprefix("Nano"), name.removeprefix("Nano").removesuffix("Retrieval")):
        match = _BY_LOWER_CASE.get(candidate.lower())
        if match is not None:
            return match
    return "CQADupstack" if name.startswith("CQADupstack") else None


_BY_LOWER_CASE = {name.lower(): name for name in tasks.names() if name not in tasks.kinds()}
