"""Runs scripts/evaluate.py: arguments, the model or server, the plan, the evaluation."""

import argparse
import datetime
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import datasets

from e5.embedder import Embedder
from e5.errors import SettingsError, WeightsError
from e5.settings import Settings
from e5.tokens import Tokenizer
from e5.weights.files import in_folder
from e5.weights.locate import WEIGHTS
from e5_cog.openapi import write_atomically
from e5_cog.repository import ROOT
from evaluation import backends, local_data, page, plan, protocols, report, run, sizes, tasks
from evaluation.backends import Backend, Local, Remote
from evaluation.client.remote import ServerError, catalog_name, connect
from evaluation.compress import COMPRESSIONS
from evaluation.encoder import Encoder
from evaluation.errors import EvaluationError
from evaluation.progress import Progress
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.report import Json
from evaluation.tasks import GROUPS

CACHE = ROOT / ".evaluation"
APIS = ("openai", "cog", "tei")
HOURS_WITHOUT_YES = 24
PACKAGES = ("e5-cog", "mteb", "torch")


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 if a score is outside its tolerance; 2 if something could not be evaluated."""
    arguments = _arguments(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    logging.getLogger("mteb").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mteb|sklearn")
    datasets.disable_progress_bars()
    try:
        return _run(arguments)
    except (EvaluationError, SettingsError, WeightsError, ServerError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
    except OSError as error:
        print(f"evaluate.py: {error}; the finished work is in {arguments.cache}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"evaluate.py: interrupted; the next run continues from {arguments.cache}", file=sys.stderr)
        return 130
    return 2


def _run(arguments: argparse.Namespace) -> int:
    protocol = PROTOCOLS[arguments.protocol]
    name = catalog_name(arguments.model) if arguments.model else None
    settings = Settings.from_environment(model=name, weights=arguments.weights)
    model = settings.resolve()
    names = arguments.tasks or (local_data.names(arguments.data) if arguments.data else [])
    selection = tasks.select(names, arguments.data)
    if not arguments.plan:
        for path in filter(None, (arguments.out, arguments.html, arguments.cache / "results")):
            report.check_writable(path)
    for task in selection.tasks:
        for part in tasks.parts(task):
            protocols.check(protocol, model.prompt, part.metadata)
    backend = _backend(arguments, settings, protocol)
    for task in selection.tasks:
        backends.check(backend, protocol, task.metadata)
    known = {task.metadata.name: sizes.measure(task, arguments.data is not None) for task in selection.tasks}
    prompts = {t.metadata.name: protocols.main_prompt(protocol, model.prompt, t.metadata) for t in selection.tasks}
    rows = plan.plan(known, prompts, backend)
    print(plan.table(rows), file=sys.stdout if arguments.plan else sys.stderr)
    if arguments.plan:
        return 0
    if (hours := plan.hours(rows)) > HOURS_WITHOUT_YES and not arguments.yes:
        raise EvaluationError(f"this takes about {hours:,.0f} hours here: add --yes to start it, or choose fewer tasks")
    characters = sum(size.characters for size in known.values() if size) or None
    with Progress(characters) as progress:
        encoder = Encoder(
            backend, protocol, vectors=arguments.vectors, cache=arguments.cache / "vectors", progress=progress
        )
        folder = arguments.cache / f"{protocol.name}-{backend.max_tokens}-{backend.dtype}-{arguments.vectors}"
        write = partial(_write, arguments)
        summary, stopped = run.evaluate(selection, encoder, known, folder, _facts(arguments, backend), write)
    print(report.table(summary))
    if stopped is not None:
        raise EvaluationError(f"{stopped}; the finished work is kept, and the same command continues with it")
    if summary["failed"]:
        return 2
    return int(any(task["within"] is False for task in summary["tasks"].values()))


def _backend(arguments: argparse.Namespace, settings: Settings, protocol: Protocol) -> Backend:
    if arguments.against is None:
        return Local(Embedder.from_settings(settings), protocol.max_tokens)
    model = settings.resolve()
    server = connect(arguments.against, arguments.api, arguments.model or model.name)
    folder = settings.weights or WEIGHTS / model.name
    tokenizer = None
    with suppress(WeightsError):  # then the texts are sent uncut, or the backend says that it needs the tokenizer
        files = in_folder(model, folder, settings.source)
        limit = min(model.max_tokens, protocol.max_tokens or model.max_tokens)
        tokenizer = Tokenizer(files.tokenizer, model.special_tokens, limit, literal=model.architecture == "mistral")
    return Remote(server, model, protocol.max_tokens, tokenizer)


def _facts(arguments: argparse.Namespace, backend: Backend) -> Json:
    return {
        "model": backend.model.name,
        "revision": backend.revision,
        "protocol": arguments.protocol,
        "max_tokens": backend.max_tokens,
        "dtype": backend.dtype,
        "device": None if arguments.against else backend.place,
        "server": f"{arguments.against} ({arguments.api})" if arguments.against else None,
        "vectors": arguments.vectors,
        "data": "hub" if arguments.data is None else "local",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def _write(arguments: argparse.Namespace, summary: Json) -> None:
    if arguments.out is not None:
        write_atomically(arguments.out, report.dumps(summary))
    if arguments.html is not None:
        write_atomically(arguments.html, page.render(summary))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Evaluate an E5 model on BEIR and MTEB tasks, and compare with published scores.",
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="default: E5_MODEL, or the embedded model")
    add("--weights", type=Path, metavar="FOLDER", help="default: E5_WEIGHTS, weights/NAME, or a download")
    add("--tasks", type=_names, metavar="NAME,…", help=f"mteb's names, or groups: {', '.join(GROUPS)}")
    add("--protocol", choices=PROTOCOLS, default="mteb", help="unilm: model cards; mteb: leaderboard (%(default)s)")
    add("--data", type=Path, metavar="DIR", help="local data sets instead of the hub; default for --tasks: all of them")
    add("--against", metavar="URL", help="evaluate this server, not a model in this process")
    add("--api", choices=APIS, help="the server's API; required with --against")
    add("--vectors", choices=COMPRESSIONS, default="float32", help="compress the vectors first (%(default)s)")
    add("--out", type=Path, metavar="FILE.json", help="write the report as JSON")
    add("--html", type=Path, metavar="FILE", help="write the report as a page")
    add("--cache", type=Path, default=CACHE, metavar="DIR", help="vectors and results (.evaluation)")
    add("--plan", action="store_true", help="print texts, tokens, hours and disk, and end")
    add("--yes", action="store_true", help=f"start although it takes more than {HOURS_WITHOUT_YES} hours")
    arguments = parser.parse_args(argv)
    if (arguments.against is None) != (arguments.api is None):
        parser.error("--against URL and --api go together")
    if not arguments.tasks and (arguments.tasks is not None or arguments.data is None):
        parser.error(f"--tasks is missing: name tasks, or groups of them: {', '.join(GROUPS)}")
    return arguments


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
