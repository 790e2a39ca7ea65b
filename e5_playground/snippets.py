"""The same request as code, to be pasted and run: cURL, and the official clients of Replicate and OpenAI.

Pure functions of the request. A key is never part of the code: it is read from the environment. What is too long to
print is read from request.json, which the page offers for download.
"""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from e5_playground.form import Json, sides

LONG = 20_000
"""Characters of JSON from which the code reads a file: Linux takes no argument above 131,072 bytes, and no person reads
that much in a code tab."""
FILE = "request.json"
KEY = "GATEWAY_API_KEY"
NO_KEY = "no-key-needed"  # both clients insist on a key
OWNER = "e5"


@dataclass(frozen=True)
class Target:
    """Where the code sends it: the address that the browser used, the model's name, and whether a key is needed."""

    base: str
    model: str
    key_required: bool = False


def is_long(sent: Json) -> bool:
    """Whether the code reads the request from a file."""
    left, right = sides(sent)
    if sum(map(len, left + right)) > LONG:  # at each key: of megabytes, JSON is not even written
        return True
    return len(json.dumps(sent, ensure_ascii=False)) > LONG


def file_content(sent: Json) -> str:
    """request.json: the body of POST /predictions."""
    return _literal({"input": sent}, 0)


def curl(target: Target, sent: Json) -> str:
    """A shell command."""
    body = f"@{FILE}" if is_long(sent) else shlex.quote(file_content(sent))
    lines = [
        f"curl -sS {shlex.quote(f'{target.base}/predictions')}",
        "-H 'Content-Type: application/json'",
        *([f'-H "Authorization: Bearer ${KEY}"'] if target.key_required else []),
        f"--data-binary {body}",
    ]
    return " \\\n  ".join(lines) + "\n"


def replicate_python(target: Target, sent: Json) -> str:
    """Replicate's Python client: it puts /v1 behind the address itself (replicate 1.0, models.predictions.create)."""
    long = is_long(sent)
    imports = (["import json"] if long else []) + (["import os"] if target.key_required else [])
    return "\n".join(
        [
            *imports,
            *([""] if imports else []),
            "import replicate  # pip install replicate",
            "",
            f"client = replicate.Client(base_url={_python(target.base)}, api_token={_python_key(target)})",
            "output = client.run(",
            f"    {_python(f'{OWNER}/{target.model}')},",
            f"    input={_python_file() if long else _python(sent, 1)},",
            ")",
            'print(output["scores"])' if all(sides(sent)) else _print_vectors(sent),
            "",
        ]
    )


def openai_python(target: Target, sent: Json) -> str:
    """OpenAI's Python client: one call for each side, and the scores from the vectors."""
    left, right = sides(sent)
    long = is_long(sent)
    imports = (["import json"] if long else []) + (["import os"] if target.key_required else [])
    lines = [
        *imports,
        *([""] if imports else []),
        "from openai import OpenAI  # pip install openai",
        "",
        f"client = OpenAI(base_url={_python(f'{target.base}/v1')}, api_key={_python_key(target)})",
    ]
    if long:
        lines.append(f"request = {_python_file()}")
    for name, texts in (("queries", left), ("documents", right)):
        if texts:
            lines.append(f"{name} = {_python_side(sent, name) if long else _python(texts)}")
    lines += ["", "# The client asks for base64 and decodes it by itself. Vectors of this API have length 1."]
    cut = f', "long_texts": {_python(sent["long_texts"])}' if "long_texts" in sent else ""
    if left:
        task = 'request["task"]' if long else _python(sent["task"])
        extra = f'{{"input_type": "query", "task": {task}{cut}}}'
        lines += _create("left", target.model, "queries", extra)
    if right:
        lines += _create("right", target.model, "documents", f'{{"input_type": "document"{cut}}}')
    if left and right:
        lines += [
            "for query, a in zip(queries, left.data):",
            "    for document, b in zip(documents, right.data):",
            "        score = 100 * sum(x * y for x, y in zip(a.embedding, b.embedding))",
            '        print(f"{score:6.2f}  {query[:40]!r}  {document[:40]!r}")',
        ]
    else:
        name = "left" if left else "right"
        lines.append(f"print(len({name}.data), {name}.data[0].embedding[:4])")
    return "\n".join([*lines, ""])


def replicate_javascript(target: Target, sent: Json) -> str:
    """Replicate's client for Node: its baseUrl has the /v1."""
    long = is_long(sent)
    key = f"process.env.{KEY}" if target.key_required else _literal(NO_KEY, 0)
    value = f'JSON.parse(await readFile("{FILE}", "utf8")).input' if long else _literal(sent, 1)
    return "\n".join(
        [
            "// npm install replicate, then: node request.mjs",
            *(['import { readFile } from "node:fs/promises";'] if long else []),
            'import Replicate from "replicate";',
            "",
            f"const replicate = new Replicate({{ auth: {key}, baseUrl: {_literal(f'{target.base}/v1', 0)} }});",
            f"const output = await replicate.run({_literal(f'{OWNER}/{target.model}', 0)}, {{",
            f"  input: {value},",
            "});",
            f"console.log({'output.scores' if all(sides(sent)) else 'output'});",
            "",
        ]
    )


SNIPPETS: tuple[tuple[str, str, Callable[[Target, Json], str]], ...] = (
    ("cURL", "bash", curl),
    ("Replicate", "python", replicate_python),
    ("OpenAI", "python", openai_python),
    ("Node.js", "javascript", replicate_javascript),
)
"""(label, language, writer) of each tab."""


def _create(name: str, model: str, texts: str, extra: str) -> list[str]:
    return [
        f"{name} = client.embeddings.create(",
        f"    model={_python(model)},",
        f"    input={texts},",
        f"    extra_body={extra},",
        ")",
    ]


def _print_vectors(sent: Json) -> str:
    return f'print(output["{"embeddings_base64" if "encoding_format" in sent else "embeddings"}"])'


def _python_key(target: Target) -> str:
    return f'os.environ["{KEY}"]' if target.key_required else _python(NO_KEY)


def _python_file() -> str:
    return f'json.load(open("{FILE}", encoding="utf-8"))["input"]'


def _python_side(sent: Json, many: str) -> str:
    return f'request["{many}"]' if many in sent else f'[request["{"query" if many == "queries" else "document"}"]]'


def _python(value: object, depth: int = 0) -> str:
    return _literal(value, depth, indent="    ", words=("False", "True"))


def _literal(value: object, depth: int, *, indent: str = "  ", words: tuple[str, str] = ("false", "true")) -> str:
    """JSON, which Python and JavaScript read as well but for the two words; one entry a line."""
    if isinstance(value, bool):
        return words[value]
    if isinstance(value, dict | list) and value:
        inner, outer = indent * (depth + 1), indent * depth
        keys = [f"{_string(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
        values = value.values() if isinstance(value, dict) else value
        entries = [
            inner + key + _literal(one, depth + 1, indent=indent, words=words)
            for key, one in zip(keys, values, strict=True)
        ]
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        trailing = "," if words[0] == "False" else ""
        return f"{opening}\n" + ",\n".join(entries) + f"{trailing}\n{outer}{closing}"
    return _string(value) if isinstance(value, str) else json.dumps(value)


# What does not show, or turns the direction of writing, is written as an escape: pasted code must be what it seems.
# Those beyond U+FFFF stay: Python and JSON escape them differently.
_UNSEEN = re.compile(
    r"[\x7f-\xa0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb]"
)


def _string(text: str) -> str:
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))
