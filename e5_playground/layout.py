"""The page's components and their places. What they do is wired in page.py."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from e5_playground import examples, snippets
from e5_playground.form import Field, inputs

TITLE = "E5 embeddings"
MODEL_EVERY = 5  # seconds between two looks whether the model is there yet
HINT = """<div class="e5-hint"><p>Run the example, or write texts of your own. You will see here</p><ul>
<li>which documents fit each query best, with their scores, and a heat map where there are several queries;</li>
<li>each text’s vector: its length and its first numbers;</li>
<li>the API’s JSON, to copy and to download, with its counts and times.</li></ul></div>"""
KEYS = '<p class="e5-keys"><kbd>Ctrl</kbd> or <kbd>⌘</kbd> + <kbd>Enter</kbd> in a text field runs, too.</p>'


@dataclass(frozen=True)
class Parts:
    """The components that handlers write to. `form` are the fields in the order of `Form`."""

    preset: gr.Dropdown
    form: tuple[Any, ...]
    key: gr.Textbox | None
    errors: dict[Field, gr.HTML]
    run: gr.Button
    status: gr.HTML
    tabs: gr.Tabs
    result: gr.HTML
    vectors: gr.HTML
    raw: gr.HTML
    download: gr.DownloadButton
    code: tuple[gr.HTML, ...]
    save: gr.Button
    file: gr.DownloadButton
    model: gr.HTML
    served: gr.State
    timer: gr.Timer
    examples: dict[str, gr.Button]
    only_english: gr.HTML


def layout(key_required: bool) -> Parts:
    first, described = examples.EXAMPLES[0].form, inputs()
    errors: dict[Field, gr.HTML] = {}

    def error(field: Field) -> None:
        errors[field] = _html(visible=False, elem_id=f"e5-error-{field}")

    model = _html(header("Looking for the model …"), elem_id="e5-model")
    served, timer = gr.State(None), gr.Timer(MODEL_EVERY)
    with gr.Row(elem_classes="e5-examples"):
        _html('<p class="e5-note">Examples, to run at a click:</p>')
        buttons = {
            example.name: gr.Button(
                example.label, size="sm", elem_classes="e5-example", elem_id=f"e5-example-{example.name}",
                interactive=not example.multilingual,
            )
            for example in examples.EXAMPLES
        }  # fmt: skip
    only_english = _html(visible=False, elem_id="e5-only-english")
    with gr.Row(elem_classes="e5-columns"):
        with gr.Column(min_width=300, elem_id="e5-form"):
            key = None
            if key_required:
                key = gr.Textbox(
                    label="API key", type="password", info="Sent with each request, and kept nowhere.",
                    elem_id="e5-key", html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
                )  # fmt: skip
                error("key")
            preset = gr.Dropdown(
                examples.presets(), value=examples.preset_of(first.task), label="Trained task",
                info="The instructions of the model's training; choosing one fills the task.", elem_id="e5-preset",
            )  # fmt: skip
            task = gr.Textbox(first.task, label="Task", info=described.help["task"], lines=2, elem_id="e5-task")
            error("task")
            boxes = {}
            for name, one in (("queries", "query"), ("documents", "document")):
                boxes[name] = gr.Textbox(
                    first.queries if name == "queries" else first.documents,
                    label=name.capitalize(),
                    info=f"{described.help[one]} One text a line, or a JSON list of strings.",
                    lines=3 if name == "queries" else 6,
                    max_lines=8 if name == "queries" else 14,
                    elem_id=f"e5-{name}",
                )
                error("queries" if name == "queries" else "documents")
            with gr.Row(elem_classes="e5-options"):
                normalize = gr.Checkbox(
                    first.normalize, label="Normalize", info=described.help["normalize"], min_width=260,
                    elem_id="e5-normalize",
                )  # fmt: skip
                encoding_format = gr.Radio(
                    [name for name in described.choices["encoding_format"] if name != "tokens"],
                    value=first.encoding_format, label="Encoding format",
                    info=described.help["encoding_format"], min_width=260, elem_id="e5-format",
                )  # fmt: skip
                long_texts = gr.Radio(
                    described.choices["long_texts"], value=first.long_texts, label="Long texts",
                    info=described.help["long_texts"], min_width=260, elem_id="e5-long-texts",
                )  # fmt: skip
        with gr.Column(min_width=300, elem_id="e5-results"):
            run = gr.Button("Run", variant="primary", elem_id="e5-run")
            _html(KEYS)
            status = _html(HINT, elem_id="e5-status")
            with gr.Tabs(visible=False, elem_id="e5-tabs") as tabs:
                with gr.Tab("Scores"):
                    result = _html(elem_id="e5-result")
                with gr.Tab("Vectors"):
                    vectors = _html(elem_id="e5-vectors")
                with gr.Tab("JSON"):
                    answer = _html(elem_id="e5-raw")
                    download = gr.DownloadButton("Download the whole answer", size="sm", elem_id="e5-download")
    _html('<h2 class="e5-heading">The same request as code</h2>')
    code: list[gr.HTML] = []
    with gr.Tabs(elem_id="e5-code"):
        for label, _, _ in snippets.SNIPPETS:
            with gr.Tab(label):
                code.append(_html(elem_id=f"e5-code-{len(code)}"))
    save = gr.Button(f"Save {snippets.FILE}", size="sm", visible=False, elem_id="e5-save")
    file = gr.DownloadButton("", visible="hidden", elem_id="e5-file")
    return Parts(
        preset, (task, boxes["queries"], boxes["documents"], normalize, encoding_format, long_texts), key, errors, run,
        status, tabs, result, vectors, answer, download, tuple(code), save, file, model, served, timer,
        buttons, only_english,
    )  # fmt: skip


def header(about: str) -> str:
    """The page's title, and a line of HTML about the model."""
    return f'<header class="e5-header"><h1>{TITLE}</h1><p>{about}</p></header>'


def _html(value: str = "", *, visible: bool = True, elem_id: str | None = None) -> gr.HTML:
    """HTML with the page's own style alone: Gradio's for prose has sizes and table borders of its own."""
    return gr.HTML(value, visible=visible, elem_id=elem_id, apply_default_css=False)
