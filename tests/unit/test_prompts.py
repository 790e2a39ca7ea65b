"""The prompts, character by character as in the model cards, and the trained instructions."""

import pytest

from e5 import tasks
from e5.errors import InputError
from e5.prompts import DEFAULT_TASK, document_prompt, query_prompt

CARD_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
    "Query: how much protein should a female eat"
)


def test_instruct_models_prompt_queries_only() -> None:
    assert query_prompt("instruct", DEFAULT_TASK, "how much protein should a female eat") == CARD_QUERY
    assert document_prompt("instruct", "As a general guideline") == "As a general guideline"


def test_empty_task_leaves_the_query_bare() -> None:
    assert query_prompt("instruct", "", "summit define") == "summit define"


def test_prefix_models_have_prefixes_and_no_task() -> None:
    assert query_prompt("prefix", "any task", "summit define") == "query: summit define"
    assert document_prompt("prefix", "the highest point") == "passage: the highest point"


def test_trained_tasks() -> None:
    assert len(tasks.names()) == 73
    assert set(tasks.kinds()) == {
        "STS",
        "Summarization",
        "BitextMining",
        "Classification",
        "Clustering",
        "Reranking",
        "Retrieval",
    }
    assert "NQ" in tasks.names("Retrieval") and "NQ" not in tasks.names("Clustering")
    assert tasks.instruction("MSMARCO") == DEFAULT_TASK
    assert tasks.instruction("STS") == "Retrieve semantically similar text."
    assert tasks.instruction("ArguAna") == "Given a claim, find documents that refute the claim"
    assert (
        tasks.instruction("SciFact") == "Given a scientific claim, retrieve documents that support or refute the claim"
    )


def test_unknown_task_name_is_rejected_with_similar_ones() -> None:
    with pytest.raises(InputError, match=r"no trained task is called 'fever': choose one of ClimateFEVER, FEVER"):
        tasks.instruction("fever")
