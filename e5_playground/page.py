"""The page as part of an application, and which event leads to which action.

The components are in layout.py, what happens in actions.py: here they are tied together. Each action is given all that
it needs by the browser, so that two people never see each other's texts.
"""

import functools
from typing import Any

import fastapi
import gradio as gr
from gradio.state_holder import SessionState
from starlette.middleware import Middleware

from e5_playground import actions, files
from e5_playground.actions import Updates
from e5_playground.client import Served
from e5_playground.form import Form
from e5_playground.guard import Guard
from e5_playground.head import Head
from e5_playground.layout import TITLE, Parts, layout
from e5_playground.look import ICON, head, theme

CONCURRENCY = 32  # predictions at a time: they only wait for HTTP
SESSIONS = 256  # people of whom Gradio remembers the model's name; who is forgotten is told it anew
WAITING = 256  # and how many may wait for that; more are told so

REGIONS = """() => {
  const status = document.querySelector("#e5-status");
  status.setAttribute("role", "status");
  status.setAttribute("aria-live", "polite");
  const results = document.querySelector("#e5-results");
  results.setAttribute("role", "region");
  results.setAttribute("aria-label", "Results");
}"""
"""A region that is read out must be marked before its content changes; Gradio's components have no such parameter."""

PRESS_FILE = "() => setTimeout(() => document.querySelector('#e5-file').click(), 200)"
"""Gradio's download button has its file a moment after the event."""


def mount(app: fastapi.FastAPI, api: str, key_required: bool = False) -> fastapi.FastAPI:
    """Put the page at "/" of an application, below the routes that it has already; return the application.

    `api` is the base address of the public HTTP API, as this process reaches it. With `key_required` the page has a
    field for the key, and sends it with each call.
    """
    blocks = build(api.rstrip("/"), key_required)
    choices = {
        number: [isinstance(component, gr.Dropdown | gr.Radio) for component in function.inputs]
        for number, function in blocks.fns.items()
    }
    mounted: fastapi.FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        show_error=False,  # what is for people is said in words; the rest is for the log
        run_history=False,  # else the browser keeps each request and answer
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        head=head(),
        favicon_path=str(ICON),
        app_kwargs={"middleware": [Middleware(Guard, choices=choices), Middleware(Head)]},
    )
    return mounted


# Gradio keeps the last value of every field of every session, for links to a state of the page, which this page does
# not have: keys and texts of people would stay in memory.
SessionState._update_value_in_config = lambda *_: None  # type: ignore[method-assign]


def build(api: str, key_required: bool) -> gr.Blocks:
    """The page as Gradio's Blocks, not yet part of an application."""
    blocks: gr.Blocks
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(files.KEEP_SECONDS // 3, files.KEEP_SECONDS)
    ) as blocks:
        parts = layout(key_required)
        _wire(blocks, parts, api, key_required)
    # Gradio looks where a file comes from only in what it believes to be launched; mounting does not say so (6.31).
    blocks.has_launched = True
    blocks.state_session_capacity = SESSIONS
    blocks.queue(default_concurrency_limit=CONCURRENCY, max_size=WAITING)
    return blocks


def _wire(blocks: gr.Blocks, parts: Parts, api: str, key_required: bool) -> None:
    """Events → handlers. Those that only redraw the page do not queue, and show no progress."""
    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    form, key = list(parts.form), [parts.key] if parts.key else []
    codes = [parts.preset, *parts.code, parts.save]

    async def run(served: Served | None, *values: Any) -> Updates:
        typed = str(values[len(form)]).strip() if key else ""
        updates = await actions.run(parts, api, Form(*values[: len(form)]), typed)
        return updates if served else updates | await actions.look(parts, api, typed)

    async def look(*values: Any) -> Updates:
        return await actions.look(parts, api, str(values[0]).strip() if values else "")

    def write(who: gr.Request, served: Served | None, preset: str, *values: Any) -> list[Any]:
        target = actions.target_of(who.headers, str(who.url), served, key_required)
        return actions.code(Form(*values), preset, target)

    written = [
        parts.status, *parts.errors.values(), parts.tabs, parts.result, parts.vectors, parts.raw, parts.download,
    ]  # fmt: skip
    about = [parts.model, parts.served, parts.timer, *parts.examples.values(), parts.only_english]
    running: dict[str, Any] = {
        "fn": run,
        "inputs": [parts.served, *form, *key],
        "outputs": [*written, *about],
        "show_progress": "minimal",
        "show_progress_on": parts.status,
        "api_visibility": "private",
        "concurrency_limit": CONCURRENCY,
        "concurrency_id": "run",
    }
    parts.run.click(**running)
    for name, button in parts.examples.items():
        button.click(functools.partial(actions.fill, name), None, form, **quick).then(**running)
    for looks in (blocks.load, parts.timer.tick, *([parts.key.blur] if parts.key else [])):
        looks(look, key, about, **quick)
    gr.on(
        [blocks.load, parts.served.change, *(field.change for field in form)],
        write, [parts.served, parts.preset, *form], codes, trigger_mode="always_last", **quick,
    )  # fmt: skip
    parts.preset.input(actions.task_of, parts.preset, parts.form[0], **quick)
    parts.save.click(functools.partial(actions.save, parts.file), form, parts.file, **quick).then(
        None, js=PRESS_FILE, api_visibility="private"
    )
    blocks.load(None, js=REGIONS, api_visibility="private")
