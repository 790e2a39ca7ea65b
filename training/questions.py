"""Questions, claims and web searches that pyserini carries for its experiments, as plain texts.

Anserini's jar inside pyserini 0.14 has the topics of public test collections. CuratedTREC (`dpr.curated`) is left out:
its questions come from the same TREC tracks as TrecQA's.
"""

import ast
import csv
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

QUESTIONS = ("dpr.nq.dev", "dpr.nq.test", "dpr.trivia.dev", "dpr.trivia.test", "dpr.squad.test", "dpr.wq.test")
"""Karpukhin et al. 2020: Natural Questions, TriviaQA, SQuAD and WebQuestions, with short answers."""
CLAIMS = ("fever.dev",)
SEARCHES = ("mq.1-10000", "mq.20001-60000", "terabyte05.efficiency")

_VERBS = "is|was|are|were|did|do|does|has|have|had|can|could|will|would|happened"
_WHAT = re.compile(rf"\b(?:who|whom|(?:what|which)(?! (?:{_VERBS})\b) \w+|what|which)\b", re.IGNORECASE)
_START = re.compile(
    r"(?:(?:in|on|at|from|to|by|for) )?(?:which|what|whose) \w+ |"
    r"(?:who|whom|what|which|where|when|why|how (?:many|much|long|old|far|big|tall)?) ?|(?:did|do|does) ",
    re.IGNORECASE,
)


def questions(folder: Path) -> Iterator[str]:
    """Each question, and a statement that combines its words with an answer."""
    for line in _lines(folder, QUESTIONS):
        question, answers = _parse(line)
        yield question
        if answers:
            yield statement(question, min(answers, key=len))


def claims(folder: Path) -> Iterator[str]:
    """FEVER's claims, true and false: short sentences about entries of Wikipedia."""
    for line in _lines(folder, CLAIMS):
        yield line.partition("\t")[2]


def searches(folder: Path) -> Iterator[str]:
    """Web searches: TREC's Million Query track and its Terabyte track of 2005."""
    for line in _lines(folder, SEARCHES):
        yield line.rpartition(":")[2]


def statement(question: str, answer: str) -> str:
    """`Isfahan is a major city in which country?`, `Iran` → `Isfahan is a major city in Iran.`"""
    text = question.strip(" ?")
    if match := _WHAT.search(text):
        return f"{text[: match.start()]}{answer}{text[match.end() :]}."
    while match := _START.match(text):
        if not match[0]:
            break
        text = text[match.end() :]
    return f"{text} {answer}."


def _parse(line: str) -> tuple[str, list[str]]:
    """A line in one of two formats: JSON, or the question, a tab, and a Python list."""
    if line.startswith("{"):
        record = json.loads(line)
        return record["question"], record["answer"]
    question, answers = next(csv.reader([line], delimiter="\t"))
    if question.startswith('"') and question.endswith('"'):
        question = question[1:-1].replace('""', '"')  # quoted twice
    return question, ast.literal_eval(answers)


def _lines(folder: Path, topics: tuple[str, ...]) -> Iterator[str]:
    jar = next(folder.glob("pyserini/pyserini/resources/jars/anserini-*-fatjar.jar"))
    with zipfile.ZipFile(jar) as archive:
        for name in topics:
            text = archive.read(f"topics-and-qrels/topics.{name}.txt").decode(errors="replace")
            yield from filter(None, text.split("\n"))  # not splitlines: some lines have other line separators
