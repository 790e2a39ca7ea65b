"""Special tokens, pooling, prompts, adapter, text: a server's vectors next to the right ones and those of mistakes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from evaluation.client.remote import ServerError
from evaluation.server_check.expected import Expected
from evaluation.server_check.findings import Finding, Status, right, unknown, wrong
from evaluation.server_check.mistakes import ASPECTS, BY_NAME, Aspect, Candidate, label
from evaluation.server_check.subject import CLOSE, EXACT, CannotAsk, Compared, Subject, distance
from evaluation.server_check.texts import words

MARGIN = 3.0
"""A candidate explains a vector if no other one is within this many times its distance."""
COUNTED_WORDS = 20
NO_WEIGHTS = "give --weights or --fixtures: from outside, it cannot be seen"
SUBJECTS: Mapping[Aspect, str] = {
    "special tokens": "the first and last special token are there once each",
    "pooling": "the model's pooling",
    "prompts": "each side has its prompt once",
    "adapter": "the adapter is applied",
    "text": "the text reaches the tokenizer unchanged",
}


@dataclass(frozen=True)
class Verdict:
    """What explains the vectors of one side. `explanations`: the candidates that do, the simplest first; none if none.

    `best`: the nearest candidate of all, at `nearest` (1 - cosine). `to_right`: the distance to the right vectors.
    """

    explanations: tuple[Candidate, ...]
    best: Candidate
    nearest: float
    to_right: float

    def aspect(self, aspect: Aspect) -> tuple[Status, str]:
        """Status of one property, and the names of its possible mistakes."""
        found = [[name for name in candidate if BY_NAME[name].aspect == aspect] for candidate in self.explanations]
        names = " or ".join(dict.fromkeys(name for names in found for name in names))
        if not found or (any(found) and not all(found)):
            return "unknown", names
        return ("wrong" if names else "right"), names


def judge(distances: Mapping[Candidate, float]) -> Verdict:
    """Find the candidates that explain a server's vectors. `distances`: 1 - cosine by candidate, () for the right one.

    The nearest explains them if it is within CLOSE. So do others within MARGIN times its distance; at most EXACT, or
    less, if the nearest is exact.
    """
    best = min(distances, key=lambda candidate: (distances[candidate], len(candidate)))
    nearest = distances[best]
    near = [c for c, d in distances.items() if d <= max(MARGIN * nearest, 1e-6)] if nearest <= CLOSE else []
    return Verdict(tuple(sorted(near, key=len)), best, nearest, distances[()])


def check(compared: Compared, expected: Expected) -> list[Finding]:
    """One finding for the vectors, and one for each property that they show."""
    verdicts = {side: judge(_distances(compared, expected, side)) for side in ("document", "query")}
    has_adapter = any(("adapter missing",) in text.vectors for text in expected.texts.values())
    aspects = [aspect for aspect in ASPECTS if aspect != "adapter" or has_adapter]
    findings = [_aspect(aspect, verdicts) for aspect in aspects]
    return [_vectors(verdicts, expected), _with_counts(findings[0], compared, expected), *findings[1:]]


def check_from_outside(subject: Subject) -> list[Finding]:
    """The same findings without expected vectors. Only the server's count of tokens says something about them."""
    try:
        answer = subject.ask_bare(words(COUNTED_WORDS))
    except ServerError as error:
        raise CannotAsk(str(error)) from error
    evidence = "not seen from outside"
    if answer.tokens is not None:
        extra = answer.tokens - COUNTED_WORDS
        evidence += f"; for a text of {COUNTED_WORDS} tokens it counts {answer.tokens}"
        if extra < 2 and not subject.server.adds_prompts:
            evidence += ": it leaves special tokens out, or counts without them"
        elif extra > 2 and not subject.server.adds_prompts:
            evidence += ": perhaps it adds a prompt"
    return [
        unknown("vectors", "there is nothing to compare them with", NO_WEIGHTS),
        unknown("special tokens", evidence),
        *(unknown(aspect, "not seen from outside") for aspect in ("pooling", "prompts", "text")),
    ]


def are_right(findings: list[Finding]) -> bool:
    """Whether `check` found the model's own vectors, so that those of other texts can be compared, too."""
    return findings[0].name == "vectors" and findings[0].status == "right"


def are_float32(compared: Compared, expected: Expected) -> bool:
    """Whether the vectors are so near to those of some candidate that the server computes in float32."""
    sides = ("document", "query")
    return all(judge(_distances(compared, expected, s)).nearest <= EXACT for s in sides)


def _distances(compared: Compared, expected: Expected, side: str) -> dict[Candidate, float]:
    """The largest distance of the side's texts, for every candidate that all of them have."""
    indices = [index for index, probe in enumerate(compared.probes) if probe.side == side]
    texts = [expected.texts[compared.probes[index].name] for index in indices]
    common = [candidate for candidate in texts[0].vectors if all(candidate in text.vectors for text in texts)]
    return {
        candidate: max(
            distance(compared.numbers[index], text.vectors[candidate])
            for index, text in zip(indices, texts, strict=True)
        )
        for candidate in common
    }


def _vectors(verdicts: Mapping[str, Verdict], expected: Expected) -> Finding:
    furthest = max(verdict.to_right for verdict in verdicts.values())
    evidence = f"1 - cosine to the right ones ≤ {furthest:.1e} ({expected.origin})"
    for side, verdict in verdicts.items():
        if not verdict.explanations:
            return wrong("vectors", f"{_plural(side)} differ, {_unexplained(verdict)}", _cure_of_unexplained(verdict))
    if all(verdict.explanations[0] == () for verdict in verdicts.values()):
        return right("vectors", evidence + ("" if furthest <= EXACT else "; the server computes in 16 bits"))
    causes = {side: label(v.explanations[0]) for side, v in verdicts.items() if v.explanations[0] != ()}
    evidence = f"1 - cosine to the right ones up to {furthest:.1e}, explained by {_by_side(causes, verdicts)}"
    return wrong("vectors", evidence, "correct what is wrong below")


def _unexplained(verdict: Verdict) -> str:
    return (
        f"and no known mistake explains it: 1 - cosine to the right ones {verdict.to_right:.1e}; nearest is "
        f"{label(verdict.best)}, {verdict.nearest:.1e}"
    )


def _cure_of_unexplained(verdict: Verdict) -> str:
    if verdict.best == () and verdict.nearest < 0.1:
        return "compare the weights: quantized ones, another revision or a fine-tuned model differ like this"
    return "check that it serves this model, and these weights"


def _aspect(aspect: Aspect, verdicts: Mapping[str, Verdict]) -> Finding:
    """A property is wrong if it is on one side. All but the prompts are shared: one side is enough for right."""
    results = {side: verdict.aspect(aspect) for side, verdict in verdicts.items()}
    mistakes = {side: names for side, (status, names) in results.items() if status == "wrong"}
    if mistakes:
        first = next(iter(mistakes.values())).partition(" or ")[0]
        return wrong(aspect, _by_side(mistakes, verdicts), BY_NAME[first].cure)
    enough: Callable[[list[bool]], bool] = all if aspect == "prompts" else any
    if enough([status == "right" for status, _ in results.values()]):
        return right(aspect, SUBJECTS[aspect])
    if any(not verdict.explanations for verdict in verdicts.values()):
        return unknown(aspect, "the vectors are not explained")
    possible = {side: names for side, (status, names) in results.items() if status == "unknown" and names}
    return unknown(aspect, f"right, or {_by_side(possible, verdicts)}: the vectors fit both")


def _with_counts(finding: Finding, compared: Compared, expected: Expected) -> Finding:
    """The finding on special tokens, with the server's count of tokens if it is another than the right one."""
    for probe, counted in zip(compared.probes, compared.tokens, strict=True):
        tokens = expected.texts[probe.name].tokens
        if counted is not None and counted != tokens:
            evidence = f"{finding.evidence}; it counts {counted} tokens for a text of {tokens}"
            return replace(finding, evidence=evidence)
    return finding


def _by_side(names: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> str:
    """The names with their side, or one name without it that both sides have."""
    if len(set(names.values())) == 1 and len(names) == len(verdicts):
        return next(iter(names.values()))
    return "; ".join(f"{_plural(side)}: {name}" for side, name in names.items())


def _plural(side: str) -> str:
    return "documents" if side == "document" else "queries"
