"""Where a server cuts long texts, and whether it says so.

With expected vectors, one long text shows whether it is cut as the model's card cuts it. Otherwise pairs of texts do,
which differ only in their last 16 words: their vectors differ if the server reads that far.
"""

from collections.abc import Callable
from dataclasses import dataclass

from evaluation.client.apis import Answer, Numbers
from evaluation.client.remote import ServerError
from evaluation.server_check.check_numbers import differ
from evaluation.server_check.check_vectors import judge
from evaluation.server_check.expected import Expected
from evaluation.server_check.findings import Finding, right, unknown, wrong
from evaluation.server_check.mistakes import BY_NAME
from evaluation.server_check.subject import Subject, distance
from evaluation.server_check.texts import TAILS, Probe, long_probe, words

NAME = "truncation"
USUAL_LIMITS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SAME = 2e-4
"""Radians. Above the noise of a repeated request, below what 16 words among 4,096 change."""
MARGIN = 64
"""Tokens that a text stays below a limit: its words are one token each, the end, prompt and special tokens take 40."""
RESOLUTION = 8
"""Tokens, of the search for a limit."""
CURE = "set the server's longest text (max_seq_length, max_model_len, max_input_length) to the model's max_tokens"


@dataclass(frozen=True)
class Reading:
    """Whether a server reads the end of a text: True or False, None if it refuses the text with `answer`."""

    reads: bool | None
    answer: Answer


def check(subject: Subject, same_vectors: bool) -> Finding:
    """`same_vectors`: `check_vectors` found the right ones. Raises ServerError if a long text gets no answer."""
    max_tokens = subject.facts.max_tokens
    answer = subject.ask([long_probe(max_tokens)])
    if answer.vectors is None and not answer.refused:
        return wrong(NAME, f"a text longer than the model's {max_tokens} tokens fails: {answer.error}", CURE)
    if subject.expected is not None and same_vectors and answer.vectors is not None:
        finding = _by_vectors(subject, answer.vectors[0], subject.expected, answer)
        if finding is not None:
            return finding
    return _by_reading(subject, answer)


def _by_vectors(subject: Subject, vector: Numbers, expected: Expected, answer: Answer) -> Finding | None:
    """None if nothing explains the vector: the text may be cut elsewhere."""
    text = expected.texts["long"]
    verdict = judge({candidate: distance(vector, known) for candidate, known in text.vectors.items()})
    if not verdict.explanations:
        return None
    status, mistakes = verdict.aspect("truncation")
    if status == "wrong":
        mistake = BY_NAME[mistakes.partition(" or ")[0]]
        return wrong(NAME, f"a text of more than {subject.facts.max_tokens} tokens: {mistakes}", mistake.cure)
    if status == "unknown":
        return unknown(NAME, "the vector of a long text fits several ways to cut it")
    return right(NAME, f"cut to {subject.facts.max_tokens} tokens, with the last special token; {_says_so(answer)}")


def _by_reading(subject: Subject, long: Answer) -> Finding:
    """Compare pairs of texts. `long`: the answer for a text that is longer than the model reads."""
    max_tokens = subject.facts.max_tokens
    below = _reading(subject, max_tokens - MARGIN)
    if below.reads:
        if long.refused:
            return right(NAME, f"a longer text than the model's {max_tokens} tokens is refused: {long.error}")
        above = _reading(subject, max_tokens + MARGIN // 8)
        if above.reads:
            return wrong(NAME, f"it reads more than the model's {max_tokens} tokens", CURE)
        return right(NAME, f"cut to about {max_tokens} tokens; {_says_so(long)}")
    low, high = _bisect(lambda count: bool(_reading(subject, count).reads), 0, max_tokens - MARGIN)
    if low == 0:
        return unknown(NAME, "texts with different ends have the same vector, even short ones")
    limit = _usual_limit(low, high)
    if below.reads is None:
        return wrong(NAME, f"texts of more than {limit} of the model's {max_tokens} tokens are refused", CURE)
    return wrong(NAME, f"cut to {limit} tokens instead of {max_tokens}; {_says_so(long)}", CURE)


def _reading(subject: Subject, count: int) -> Reading:
    """Send two texts of `count` words and then different ends."""
    vectors = []
    for tail in TAILS:
        answer = subject.ask([Probe("pair", "document", f"{words(count)} {tail}")])
        if answer.vectors is None:
            return Reading(None, answer)
        vectors.append(answer.vectors[0])
    return Reading(differ(vectors[0], vectors[1], SAME), answer)


def _bisect(reads: Callable[[int], bool], low: int, high: int) -> tuple[int, int]:
    """The last count that a server reads and the first that it does not, RESOLUTION apart."""
    while high - low > RESOLUTION:
        middle = (low + high) // 2
        low, high = (middle, high) if reads(middle) else (low, middle)
    return low, high


def _usual_limit(low: int, high: int) -> str:
    """A usual limit near what a search found. Prompt and special tokens are up to 16 tokens of the limit."""
    usual = [limit for limit in USUAL_LIMITS if low <= limit <= high + 16 + RESOLUTION]
    return str(usual[0]) if usual else f"{low} to {high + 16}"


def _says_so(answer: Answer) -> str:
    return "it says so" if answer.truncated else "it does not say so"


def checked(subject: Subject, same_vectors: bool) -> Finding:
    """`check`, with a finding for a long text that gets no answer."""
    try:
        return check(subject, same_vectors)
    except ServerError as error:
        return wrong(NAME, f"a long text gets no answer: {error}", CURE)
