"""The program scripts/check_server.py: arguments, expected vectors, the checks, and the report."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from e5 import __version__, catalog
from e5.errors import SettingsError, WeightsError
from evaluation.client.remote import APIS, Server, ServerError, catalog_name, connect
from evaluation.server_check import checks, fixtures
from evaluation.server_check.expected import Expected, Facts
from evaluation.server_check.findings import Finding
from evaluation.server_check.fixtures import FixturesError
from evaluation.server_check.subject import CannotAsk, Subject

PROGRAM = "check_server.py"
READ_SECONDS = 120.0
"""A text without an answer for so long counts as a hang."""
EPILOG = """\
exit status: 0 nothing is wrong; 1 something is wrong; 2 the server could not be asked, or the arguments are wrong.
OPENAI_API_KEY and REPLICATE_API_TOKEN are sent as the key to servers of these APIs, if they are set.
"""


def main(argv: Sequence[str]) -> int:
    """Check a server, and record fixtures. Returns the exit status."""
    arguments = _arguments(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        compute = _source(arguments)
        server = _connect(arguments) if arguments.url is not None else None  # before the weights load, for minutes
        expected = compute()
        if arguments.record is not None:
            if expected is None:
                raise SettingsError("--record needs the model's weights: name their folder with --weights")
            fixtures.write(expected, arguments.record)
            print(f"{arguments.record}: the vectors of {expected.origin}", file=sys.stderr)
        if server is None:
            return 0
        facts = expected.facts if expected is not None else Facts.of(catalog.get(arguments.model))
        findings = _check(arguments, Subject(server, facts, expected))
    except (ServerError, CannotAsk, SettingsError, WeightsError, FixturesError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    return 1 if any(finding.status == "wrong" for finding in findings) else 0


def _source(arguments: argparse.Namespace) -> Callable[[], Expected | None]:
    """How to get the expected vectors: from the fixtures, else from local weights. None if there are neither."""
    if arguments.fixtures is not None:
        expected = fixtures.read(arguments.fixtures)
        if expected.facts.model != arguments.model:
            name = f"{arguments.fixtures} has vectors of {expected.facts.model}"
            raise FixturesError(f"{name}, not of {arguments.model}: name the file of this model")
        return lambda: expected
    from evaluation.server_check import compute  # here: torch takes seconds to import

    settings = compute.local_settings(arguments.model, arguments.weights)
    if settings is None:
        print(f"no weights of {arguments.model} on this machine: checking from outside only", file=sys.stderr)
        return lambda: None

    def from_weights() -> Expected:
        print("computing the expected vectors …", file=sys.stderr)
        return compute.compute(settings)

    return from_weights


def _connect(arguments: argparse.Namespace) -> Server:
    """The server, which has embedded a first text. Raises ServerError."""
    server = connect(arguments.url, arguments.api, arguments.served_name, read_seconds=READ_SECONDS)
    answer = server.ask(["a first text"], "document" if server.adds_prompts else "raw")
    if answer.vectors is None or len(answer.vectors) != 1:
        raise server.failure(answer)
    return server


def _check(arguments: argparse.Namespace, subject: Subject) -> list[Finding]:
    """Run the checks and print the report."""
    server, expected, name = subject.server, subject.expected, arguments.served_name
    findings = []
    contract = "the server adds the prompts" if server.adds_prompts else "the client adds the prompts"
    if not arguments.json:
        print(f"{arguments.url}, API {arguments.api}, {name}: {contract}", flush=True)
    try:
        for finding in checks.run(subject):
            findings.append(finding)
            if not arguments.json:
                print(finding, flush=True)
    finally:
        server.close()
    counts = {status: sum(finding.status == status for finding in findings) for status in ("right", "wrong", "unknown")}
    if arguments.json:
        report = {
            "version": __version__,
            "url": arguments.url,
            "api": arguments.api,
            "model": arguments.model,
            "served_name": name,
            "server_adds_prompts": server.adds_prompts,
            "expected": expected.origin if expected is not None else None,
            **counts,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return findings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, without the usage
        self.exit(2, f"{self.prog}: {message}\n")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog=PROGRAM,
        description="Check a server that claims to embed texts with an E5 model: special tokens, pooling, prompts,\n"
        "truncation, batches, precision, odd input. Prints one line for each, with evidence and cure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="the server's address, such as http://127.0.0.1:8080")
    parser.add_argument("--api", choices=APIS, help="the API to speak")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="the model: a name of the catalog, with or without owner"
    )
    parser.add_argument("--served-name", metavar="NAME", help="the name that requests use (default: --model)")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="the model's weights (default: a local copy; none is downloaded)"
    )
    parser.add_argument(
        "--fixtures", type=Path, metavar="FILE", help="compare with the vectors in FILE, without weights"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the vectors for --fixtures to FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments = parser.parse_args(argv)
    if (arguments.url is None) != (arguments.api is None) or (arguments.url is None and arguments.record is None):
        parser.error("give --url and --api, or --record without them")
    if arguments.fixtures is not None and (arguments.weights is not None or arguments.record is not None):
        parser.error("--fixtures takes the place of the weights: leave out --weights and --record")
    arguments.served_name = arguments.served_name or arguments.model
    arguments.model = catalog_name(arguments.model)
    return arguments
