"""What happens when: each action takes what the browser sent and returns what the page shows then.

Nothing of a person stays in this process, but for the file of an answer to download (files.py).
"""

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from e5 import catalog, tasks
from e5_playground import client, examples, files, raw, results, snippets
from e5_playground.answer import Answer, AnswerError, parse
from e5_playground.client import Failure, Reply, Served
from e5_playground.form import Form, FormError, Json, request
from e5_playground.layout import Parts, header
from e5_playground.listing import listing
from e5_playground.markup import escape

ONE_LANGUAGE = "needs a multilingual-e5 model: this one reads English"

Updates = dict[Any, Any]
"""New values of components, as Gradio's handlers return them."""


async def run(parts: Parts, api: str, form: Form, key: str) -> Updates:
    """One prediction: what the page shows of it, or of what went wrong."""
    try:
        sent = await asyncio.to_thread(request, form)
    except FormError as error:
        return _failed(parts, Failure(str(error), error.field))
    reply = await client.predict(api, sent, key)
    if isinstance(reply.result, Failure):
        return _failed(parts, reply.result)
    try:
        answer = await asyncio.to_thread(parse, sent, reply.result)
    except AnswerError as error:
        return _failed(parts, Failure(str(error)))
    return await asyncio.to_thread(_answered, parts, answer, reply.result, reply)


def _answered(parts: Parts, answer: Answer, answered: Json, reply: Reply) -> Updates:
    shown, complete = raw.shown(answered)
    note = "" if complete else '<p class="e5-note">Shortened: the download has all of it.</p>'
    return {
        **{slot: gr.update(value="", visible=False) for slot in parts.errors.values()},
        parts.status: announced(results.summary(answer, reply.seconds)),
        parts.tabs: gr.update(visible=True),
        parts.result: results.result(answer, reply.seconds),
        parts.vectors: results.vectors(answer),
        parts.raw: note + listing(shown, "json" if complete else "text", "The API's answer"),
        parts.download: files.write(Path(parts.download.GRADIO_CACHE), "answer.json", reply.body),
    }


def _failed(parts: Parts, failure: Failure) -> Updates:
    """The reason near the results, and once more beside the field that it is about. Old results would mislead: gone."""
    beside = {
        slot: gr.update(value=results.beside(failure.message) if field == failure.field else "",
                        visible=field == failure.field)
        for field, slot in parts.errors.items()
    }  # fmt: skip
    return {
        **beside,
        parts.status: announced(results.notice(failure.message)),
        parts.tabs: gr.update(visible=False),
        **dict.fromkeys((parts.result, parts.vectors, parts.raw), ""),
        parts.download: None,
    }


def announced(said: str) -> str:
    """HTML that differs from all before: the same words a second time are no change that a screen reader would read."""
    return f'<div data-run="{secrets.token_hex(4)}">{said}</div>'


async def look(parts: Parts, api: str, key: str) -> Updates:
    """Which model is served: its line, the examples that suit it, and whether to look again."""
    found = await client.served(api, key)
    if isinstance(found, Failure):
        if found.field == "key":
            return {parts.model: header("This server asks for an API key."), parts.timer: gr.Timer(active=False)}
        return {parts.model: header(escape(found.message))}
    suits = {
        parts.examples[example.name]: gr.update(interactive=found.multilingual or not example.multilingual)
        for example in examples.EXAMPLES
    }
    labels = ", ".join(f"“{example.label}”" for example in examples.EXAMPLES if example.multilingual)
    word = f'<p class="e5-note">{labels} {ONE_LANGUAGE}.</p>'
    return {
        parts.model: header(model_line(found)),
        parts.served: found,
        parts.timer: gr.Timer(active=False),
        **suits,
        parts.only_english: gr.update(value=word, visible=not found.multilingual),
    }


def model_line(served: Served) -> str:
    """The model in a line: what it is, and what it reads."""
    model = served.model
    facts = [
        f"{served.dimensions:,} dimensions" if served.dimensions else "",
        f"texts of up to {served.max_tokens:,} tokens" if served.max_tokens else "",
        model.languages if model else "",
        "does not use the task" if model and model.prompt == "prefix" else "",
    ]
    said = "".join(f" · {escape(fact)}" for fact in facts if fact)
    return f"<strong>{escape(served.name)}</strong>{said}"


def code(form: Form, preset: str, target: snippets.Target) -> list[Any]:
    """The preset that the task is, the code of each tab, and whether there is a file to save for it."""
    kept = examples.preset_of(form.task, preset)
    first = gr.skip() if kept == preset else kept
    try:
        sent, reason = request(form), ""
    except FormError as error:
        sent, reason = {}, str(error)
    written = [
        listing(write(target, sent) if sent else comment(language, reason), language, f"{label}: code")
        for label, language, write in snippets.SNIPPETS
    ]
    return [first, *written, gr.update(visible=snippets.is_long(sent))]


def comment(language: str, message: str) -> str:
    """What a code tab says while there is nothing to send."""
    return f"{'//' if language == 'javascript' else '#'} {message}\n"


def target_of(headers: Mapping[str, str], url: str, served: Served | None, key_required: bool) -> snippets.Target:
    return snippets.Target(base(headers, url), served.name if served else catalog.EMBEDDED, key_required)


def base(headers: Mapping[str, str], url: str) -> str:
    """The address that the browser used: its own word for it, else what a proxy or the request says."""
    origin = headers.get("origin", "")
    if origin.startswith(("http://", "https://")):
        return origin
    scheme = headers.get("x-forwarded-proto", url.partition(":")[0] or "http").partition(",")[0].strip()
    return f"{scheme}://{headers.get('x-forwarded-host') or headers.get('host', 'localhost')}"


def fill(name: str) -> list[Any]:
    form = examples.get(name).form
    return [form.task, form.queries, form.documents, form.normalize, form.encoding_format, form.long_texts]


def task_of(preset: str) -> Any:
    return gr.skip() if preset == examples.CUSTOM else tasks.instruction(preset)


def save(slot: gr.DownloadButton, *values: Any) -> Any:
    try:
        content = snippets.file_content(request(Form(*values)))
        return gr.update(value=files.write(Path(slot.GRADIO_CACHE), snippets.FILE, content.encode()))
    except FormError:
        return gr.skip()
