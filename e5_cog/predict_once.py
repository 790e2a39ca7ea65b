"""scripts/cog_predict.py: the flags of `cog predict`, with predict.py's Predictor in this process."""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import cog

import predict
from e5.errors import InputError, ModelError, SettingsError, WeightsError
from e5.serving.request import read_request
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
        read_request(Settings.from_environment().limits, **inputs)
        check_writable(arguments.output)
        vectors = vectors_path(arguments.output, inputs)
        with contextlib.redirect_stdout(sys.stderr):
            output = asyncio.run(answer(inputs))
            move_file(output, vectors)
    except (InputError, SettingsError) as error:
        return complain(parser.prog, error, 2)
    except (WeightsError, ModelError, FloatingPointError) as error:
        return complain(parser.prog, error, 1)
    except KeyboardInterrupt:
        return 130
    text = json.dumps(output, default=lambda rows: rows.tolist(), allow_nan=False)
    return deliver(text + "\n", arguments.output)


async def answer(inputs: Json) -> Json:
    """Run setup() and predict(); return the output."""
    predictor = predict.Predictor()
    umask = os.umask(0o077)
    await predictor.setup()
    os.umask(umask)  # setup() changes both, but the output file is the user's, and no server cleans up here
    tempfile.tempdir = None
    return dataclasses.asdict(await predictor.predict(**inputs))


def vectors_path(output: Path | None, inputs: Json) -> Path:
    """The path for a returned file: next to the output, or in the current folder. Raises InputError."""
    is_file = output is not None and (output.is_file() or not output.exists())
    path = output.with_suffix(".parquet") if output is not None and is_file else Path("vectors.parquet")
    if inputs["file"] is not None:
        for name, other in (("the input", Path(inputs["file"])), ("--output", output)):
            if other is not None and path.resolve() == other.resolve():
                raise InputError(f"the vectors would be written over {name}, {path}: pass another --output")
        check_writable(path)
    return path


def move_file(output: Json, path: Path) -> None:
    """Move a returned file to `path`, which takes its place in the output."""
    if output["file"] is not None:
        source = Path(output["file"])
        shutil.move(source, path)
        source.parent.rmdir()
        output["file"] = str(path)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run one prediction and print its output as JSON.")
    parser.add_argument(
        "-i",
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an input: plain text, true or false, or @FILE for a file; repeat it for each item of a list",
    )
    parser.add_argument("--json", metavar="JSON|@FILE|@-", help="all inputs as one JSON object; @- reads stdin")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the output to FILE instead of stdout")
    return parser


def read_inputs(pairs: list[str], text: str | None, signature: Signature) -> Json:
    """Every input of the signature: those given, checked against their types, and the defaults. Raises InputError."""
    if pairs and text is not None:
        raise InputError("-i and --json exclude each other: use one of them for all inputs")
    given = from_pairs(pairs, signature) if text is None else from_json(text)
    for name, value in given.items():
        check_value(name, value, signature)
    given |= {name: read_file(name, given[name]) for name in given if is_file(name, signature) and given[name]}
    missing = [name for name in signature.required if name not in given]
    if missing:
        raise InputError(f"`{missing[0]}` is missing")
    return {name: given.get(name, entry.get("default")) for name, entry in signature.inputs.items()}


def from_pairs(pairs: list[str], signature: Signature) -> Json:
    """NAME=VALUE strings → inputs. Raises InputError."""
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
    """The inputs in a JSON string, in @FILE, or in @- (stdin). Raises InputError."""
    try:
        if text.startswith("@"):
            text = (sys.stdin.buffer.read() if text == "@-" else Path(text[1:]).read_bytes()).decode("utf-8")
        given = json.loads(text)
    except OSError as error:
        raise InputError(f"--json {text}: {error.strerror}: name a readable file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--json is not JSON in UTF-8: {error}") from None
    if not isinstance(given, dict):
        raise InputError('--json is not an object: pass {"name": value, …}')
    return given


def known_input(name: str, signature: Signature) -> Json:
    """An input's schema, with its choices. Raises InputError for an unknown name."""
    if name not in signature.inputs:
        raise InputError(f"there is no input `{name}`: the inputs are {', '.join(signature.inputs)}")
    return {**signature.inputs[name], **signature.enums.get(name, {})}


def is_file(name: str, signature: Signature) -> bool:
    return bool(known_input(name, signature).get("format") == "uri")


def read_file(name: str, value: str) -> cog.Path:
    """The file of @FILE. Raises InputError."""
    if not value.startswith("@"):
        raise InputError(f"`{name}` is {shown(value)}: pass @ and the name of a file")
    path = cog.Path(value[1:])
    if not path.is_file():
        raise InputError(f"`{name}`: there is no file {path}")
    return path


def check_value(name: str, value: object, signature: Signature) -> None:
    """Raise InputError unless the value fits the schema. `EmbedRequest` checks the content of texts."""
    entry = known_input(name, signature)
    if value is None and entry.get("nullable"):
        return
    if entry["type"] == "boolean" and not isinstance(value, bool):
        raise InputError(f"`{name}` is {shown(value)}: pass true or false")
    if entry["type"] == "string" and not isinstance(value, str):
        raise InputError(f"`{name}` is {shown(value)}: pass a string")
    if entry["type"] == "array" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise InputError(f"`{name}` is {shown(value)}: pass a list of strings")
    if "enum" in entry and value not in entry["enum"]:
        raise InputError(f"`{name}` is {shown(value)}: pass one of {', '.join(entry['enum'])}")


def shown(value: object) -> str:
    """A value as JSON, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_writable(path: Path | None) -> None:
    """Raise InputError for an --output that cannot be written, before the model is loaded."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"--output {path}: name a file in a folder that exists")
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"--output {path}: no permission to write there")


def deliver(text: str, path: Path | None) -> int:
    """Write the output; return the exit status."""
    if path is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as `head`, has exited
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
