"""One prediction without Docker: the flags of `cog predict`, run by predict.py's Predictor in this process.

    python scripts/cog_predict.py -i query="how tall is it?" -i document="It is 300 m high."
    python scripts/cog_predict.py -i documents=one -i documents=two -i normalize=true -o vectors.json
    python scripts/cog_predict.py --json @request.json

The output goes to stdout as one line of JSON, everything else to stderr. Status 2 with one line on stderr: the request
or a setting is wrong, which is found before the model is loaded. Status 1: the model cannot be loaded or run.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path

import predict
from e5.errors import InputError, ModelError, SettingsError, WeightsError
from e5.settings import Settings
from e5_cog import static_schema
from e5_cog.openapi import write_atomically
from e5_cog.repository import ROOT
from e5_cog.static_schema import Json, Signature


def main(argv: list[str]) -> int:
    """Run one prediction; return the exit status."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    try:
        inputs = read_inputs(arguments.input, arguments.json, static_schema.read(ROOT / "predict.py"))
        limits = Settings.from_environment().limits
        predict.gather_texts(limits, *(inputs[name] for name in ("query", "document", "queries", "documents", "task")))
        check_target(arguments.output)
        with contextlib.redirect_stdout(sys.stderr):
            text = asyncio.run(answer(inputs))
    except (InputError, SettingsError) as error:
        return complain(parser.prog, error, 2)
    except (WeightsError, ModelError, FloatingPointError) as error:
        return complain(parser.prog, error, 1)
    except KeyboardInterrupt:
        return 130
    return deliver(text + "\n", arguments.output)


async def answer(inputs: Json) -> str:
    """Set the predictor up, predict, and return the output as JSON."""
    predictor = predict.Predictor()
    await predictor.setup()
    output = await predictor.predict(**inputs)
    return json.dumps(dataclasses.asdict(output), default=lambda rows: rows.tolist(), allow_nan=False)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run one prediction and print its output as JSON.")
    parser.add_argument(
        *("-i", "--input"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input: text as it is, true or false; repeat it for each item of a list",
    )
    parser.add_argument("--json", metavar="JSON|@FILE|@-", help="all inputs as one JSON object; @- reads stdin")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the output there instead of stdout")
    return parser


def read_inputs(pairs: list[str], text: str | None, signature: Signature) -> Json:
    """Every input of the signature: those given, checked against it, and the defaults. Raises InputError."""
    if pairs and text is not None:
        raise InputError("-i and --json exclude each other: pass all inputs in one way")
    given = from_pairs(pairs, signature) if text is None else from_json(text)
    for name, value in given.items():
        check_value(name, value, signature)
    missing = [name for name in signature.required if name not in given]
    if missing:
        raise InputError(f"`{missing[0]}` is missing")
    return {name: given.get(name, entry.get("default")) for name, entry in signature.inputs.items()}


def from_pairs(pairs: list[str], signature: Signature) -> Json:
    """name=value texts → inputs. Raises InputError."""
    given: Json = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"-i {pair}: write NAME=VALUE")
        kind = known_input(name, signature).get("type")
        if kind == "array":
            given.setdefault(name, []).append(value)
        elif name in given:
            raise InputError(f"`{name}` is given twice, but is not a list")
        else:
            given[name] = {"true": True, "false": False}.get(value, value) if kind == "boolean" else value
    return given


def from_json(text: str) -> Json:
    """The object in a JSON text, in @FILE, or in @- (stdin). Raises InputError."""
    try:
        if text.startswith("@"):
            text = (sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()).decode("utf-8")
        given = json.loads(text)
    except OSError as error:
        raise InputError(f"--json {text}: {error.strerror}: name a file that can be read") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--json does not hold JSON in UTF-8: {error}") from None
    if not isinstance(given, dict):
        raise InputError('--json does not hold an object: pass {"name": value, …}')
    return given


def known_input(name: str, signature: Signature) -> Json:
    """An input's entry in the schema, with that of its choices. Raises InputError for a name that is none."""
    if name not in signature.inputs:
        raise InputError(f"there is no input `{name}`: the inputs are {', '.join(signature.inputs)}")
    return {**signature.inputs[name], **signature.enums.get(name, {})}


def check_value(name: str, value: object, signature: Signature) -> None:
    """Raise InputError unless the value is what the schema says. What a text may hold is e5.inputs' business."""
    entry = known_input(name, signature)
    if value is None and entry.get("nullable"):
        return
    if entry["type"] == "boolean" and not isinstance(value, bool):
        raise InputError(f"`{name}` is {shown(value)}: pass true or false")
    if entry["type"] == "string" and not isinstance(value, str):
        raise InputError(f"`{name}` is {shown(value)}: pass a text")
    if entry["type"] == "array" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise InputError(f"`{name}` is {shown(value)}: pass a list of texts")
    if "enum" in entry and value not in entry["enum"]:
        raise InputError(f"`{name}` is {shown(value)}: pass one of {', '.join(entry['enum'])}")


def shown(value: object) -> str:
    """A value as JSON, cut to fit a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_target(path: Path | None) -> None:
    """Raise InputError for an --output that cannot be written, before an hour's work is lost to it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"--output {path}: name a file in a folder that exists")
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--output {path}: writing there is not permitted")


def deliver(text: str, path: Path | None) -> int:
    """Write the output; return the exit status."""
    if path is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
    elif path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe or a device cannot be replaced
    else:
        write_atomically(path.resolve(), text)
    return 0


def complain(program: str, error: Exception, status: int) -> int:
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    return status
