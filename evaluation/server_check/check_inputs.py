"""Input that servers fail on: empty texts, NUL, emoji, control characters. Sane is a refusal or a finite vector."""

import numpy as np

from evaluation.client.remote import ServerError
from evaluation.server_check.findings import Finding, right, unknown, wrong
from evaluation.server_check.subject import CLOSE, Compared, Subject, distance
from evaluation.server_check.texts import EMOJI, ODD, Probe

CURE = "refuse it with a status 4xx and a message, or embed it"
AFTERWARDS = "odd input breaks the server: look for the cause in its log"


def check(subject: Subject, compared: Compared, same_vectors: bool) -> list[Finding]:
    """One finding for each odd text, and one for a plain text that is sent afterwards."""
    findings = [_odd(subject, probe) for probe in ODD]
    if same_vectors and subject.expected is not None:
        findings = [_emoji(subject, finding) if finding.name == EMOJI.name else finding for finding in findings]
    return [*findings, _afterwards(subject, compared)]


def _odd(subject: Subject, probe: Probe) -> Finding:
    try:
        answer = subject.ask_bare(probe.text)
    except ServerError as error:
        return wrong(probe.name, f"no answer: {error}", CURE)
    if answer.refused:
        if not (answer.error or "").strip():
            return wrong(probe.name, f"refused with {answer.status} and no message", CURE)
        return right(probe.name, f"refused: {_one_line(answer.error)}")
    if answer.vectors is not None and not np.isfinite(answer.vectors).all():
        return wrong(probe.name, "the vector has NaN or infinity", CURE)
    if answer.error is not None or answer.vectors is None:
        return wrong(probe.name, f"fails with {answer.status}: {_one_line(answer.error)}", CURE)
    return right(probe.name, "embedded")


def _emoji(subject: Subject, finding: Finding) -> Finding:
    """Emoji are text, so their vector is compared, too."""
    assert subject.expected is not None
    if finding.status != "right" or finding.evidence != "embedded":
        return finding
    try:
        answer = subject.ask([EMOJI])
    except ServerError as error:
        return wrong(EMOJI.name, f"no answer: {error}", CURE)
    if answer.vectors is None:
        return unknown(EMOJI.name, f"refused with the prompt only: {_one_line(answer.error)}")
    far = distance(answer.vectors, subject.expected.texts[EMOJI.name].right[None])
    if far > CLOSE:
        cure = "pass characters beyond U+FFFF and joiners on to the tokenizer as they are"
        return wrong(EMOJI.name, f"another vector than for the text itself: 1 - cosine {far:.1e}", cure)
    return right(EMOJI.name, "embedded, with the right vector")


def _afterwards(subject: Subject, compared: Compared) -> Finding:
    try:
        answer = subject.ask(compared.probes[:1])
    except ServerError as error:
        return wrong("afterwards", f"no answer to a plain text: {error}", AFTERWARDS)
    if answer.vectors is None or answer.vectors.shape != (1, compared.numbers.shape[1]):
        return wrong("afterwards", f"a plain text fails with {answer.status}: {_one_line(answer.error)}", AFTERWARDS)
    far = distance(answer.vectors, compared.numbers[:1])
    if not far <= CLOSE:
        return wrong("afterwards", f"a plain text has another vector than before: 1 - cosine {far:.1e}", AFTERWARDS)
    return right("afterwards", "a plain text still has its vector")


def _one_line(message: str | None) -> str:
    line = " ".join((message or "no message").split())
    return line if len(line) <= 100 else f"{line[:99]}…"
