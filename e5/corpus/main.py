"""The program scripts/corpus.py: run, plan, status, finish, search."""

import argparse
import functools
import json
import logging
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from e5.corpus import plan as plans
from e5.corpus import run as runs
from e5.corpus import unit as steps
from e5.corpus.errors import CorpusError
from e5.corpus.identity import identify
from e5.corpus.parts import DIMENSION_BYTES, Folder, VectorType
from e5.corpus.plan import Identity, Options, Plan, UnitSize
from e5.corpus.processes import Share, run_shares
from e5.corpus.report import Progress, Status, duration, finish
from e5.corpus.rows import Columns
from e5.corpus.search import search
from e5.corpus.sources import find
from e5.corpus.unit import Receipt
from e5.embedder import Embedder
from e5.errors import InputError, SettingsError, WeightsError
from e5.inputs import check_task
from e5.network.device import choose_device
from e5.prompts import DEFAULT_TASK
from e5.settings import Settings, usable_cores

SAMPLE_ROWS = 512
"""Rows that `plan` embeds to measure the rate."""
PROGRAM = str(Path(__file__).resolve().parents[2] / "scripts" / "corpus.py")


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 something is missing or has failed, 2 the command is wrong."""
    parser = argument_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(format=f"{parser.prog}: %(message)s", level=logging.WARNING, stream=sys.stderr)
    arguments.argv = argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the workers end, too
    try:
        status: int = arguments.action(arguments)
        return status
    except (CorpusError, WeightsError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except (SettingsError, InputError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on", file=sys.stderr)
        return 130


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Embed files of texts into Parquet files of vectors (docs/corpora.md)."
    )
    actions = parser.add_subparsers(required=True, metavar="run | plan | status | finish | search")
    for name, action, words in (
        ("run", _run, "embed the input; started again, it goes on where it ended"),
        ("plan", _plan, "say what `run` would do, and how long it would take here"),
    ):
        command = actions.add_parser(name, help=words, description=words)
        command.set_defaults(action=action)
        _add_options(command)
        if name == "run":
            command.add_argument(
                "--workers", type=int, help="processes; by default one for each GPU, or one on the CPU"
            )
            command.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster; `local` starts one here")
            command.add_argument("--shard", metavar="I/N", help="do every Nth unit only, from the Ith (0 to N-1) on")
            command.add_argument("--json", action="store_true", help="write progress as JSON lines to stdout")
            command.add_argument("--killed", type=int, default=0, help=argparse.SUPPRESS)  # of run_shares()
    for name, action, words in (
        ("status", _status, "say how far a run is, from its files"),
        ("finish", _finish, "check every file of a run and write manifest.json"),
    ):
        command = actions.add_parser(name, help=words, description=words)
        command.set_defaults(action=action)
        command.add_argument("folder", metavar="DIR")
        if name == "finish":
            command.add_argument("--lance", metavar="URL", help="also write a Lance table with texts and an index")
    command = actions.add_parser("search", help="find the rows nearest to a query")
    command.set_defaults(action=_search)
    command.add_argument("folder", metavar="DIR")
    command.add_argument("query")
    command.add_argument("--lance", metavar="URL", help="search in this table of the run, by its index")
    command.add_argument("--task", default=DEFAULT_TASK, help="instruction of the query")
    command.add_argument("-k", type=int, default=10, help="rows (default: %(default)s)")
    return parser


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="files, folders or globs: .parquet, .jsonl, .csv, .txt"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the output, local or s3://…")
    command.add_argument("--model", help="model (default: E5_MODEL)")
    command.add_argument("--text-column", default=Columns.text, help="(default: %(default)s)")
    command.add_argument("--title-column", help="goes in front of the text")
    command.add_argument("--id-column", help="(default: file name and row)")
    command.add_argument("--side", choices=get_args(plans.Side), default=Options.side, help="(default: %(default)s)")
    command.add_argument("--task", default=DEFAULT_TASK, help="instruction for --side query")
    command.add_argument(
        "--long-texts", choices=get_args(plans.LongTexts), default=Options.long_texts, help="(default: %(default)s)"
    )
    command.add_argument(
        "--vectors", choices=get_args(VectorType), default=Options.vectors, help="(default: %(default)s)"
    )
    command.add_argument("--normalize", action="store_true", help="scale vectors to length 1")


def _options(arguments: argparse.Namespace, identity: Identity) -> Options:
    return Options(
        identity=identity,
        side=arguments.side,
        task=check_task(arguments.task) if arguments.side == "query" else "",
        long_texts=arguments.long_texts,
        vectors=arguments.vectors,
        normalize=arguments.normalize,
        columns=Columns(arguments.text_column, arguments.title_column, arguments.id_column),
    )


def _run(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment(model=arguments.model)
    shard, shards = _parse_shard(arguments.shard)
    if arguments.workers is not None and arguments.workers < 1:
        raise CorpusError(f"--workers {arguments.workers}: pass 1 or more")
    plan, folder = _settled(arguments, settings)
    units = runs.pending(plan, folder, shard, shards)
    if units and arguments.killed:
        start = arguments.killed % len(units)
        units = units[start:] + units[:start]
    total = len(range(shard, len(plan.units), shards))
    progress = Progress(total, total - len(units))

    def report(receipt: Receipt) -> None:
        progress.add(receipt.texts, receipt.tokens)
        if arguments.json:
            print(json.dumps(vars(receipt)), flush=True)
        elif progress.is_due:
            print(progress, file=sys.stderr, flush=True)

    workers = 1 if arguments.shard else arguments.workers or _devices(settings)
    if units and workers > 1 and not arguments.ray:
        status = run_shares(_shares(arguments.argv, plan, folder, settings, workers), report)
        if status:
            return status
    elif units:
        if arguments.ray:
            from e5.corpus.on_ray import run_on_ray  # Ray is an extra of its own

            failures = run_on_ray(plan, folder, units, report, arguments.ray, arguments.workers)
        else:
            embedder = Embedder.from_settings(settings)
            embedder.tokenize(["a"] if arguments.side == "query" else [], [], arguments.task)  # is the task too long?
            failures = runs.run(plan, folder, embedder, units, report, one_by_one=arguments.killed > 0)
        for unit, reason in failures.items():
            print(f"unit {unit} of {plan.files[plan.units[unit].file].name}: {reason}", file=sys.stderr)
        if failures:
            raise CorpusError(f"{len(failures)} of {total} units failed; the same command tries them again")
    if not arguments.shard:
        done = Status.of(plan, folder)
        print(_words(done, folder), file=sys.stderr)
        if not done.texts:
            raise CorpusError("no row could be embedded: rejected-*.parquet has the reasons")
        return int(done.done < done.units)
    return 0


def _shares(argv: list[str], plan: Plan, folder: Folder, settings: Settings, workers: int) -> list[Share]:
    """One process for each GPU in turn, or with a part of the CPU's cores."""
    gpus = torch.cuda.device_count() if choose_device(settings.device).type == "cuda" else 0
    shares = []
    for index in range(workers):
        own = (
            {"E5_DEVICE": f"cuda:{index % gpus}"}
            if gpus
            else {"OMP_NUM_THREADS": str(max(1, usable_cores() // workers))}
        )
        undone = functools.partial(_count_pending, plan, folder, index, workers)
        shares.append(Share([PROGRAM, "run", "--shard", f"{index}/{workers}", "--json", *argv[1:]], own, undone))
    return shares


def _count_pending(plan: Plan, folder: Folder, shard: int, shards: int) -> int:
    return len(runs.pending(plan, folder, shard, shards))


def _devices(settings: Settings) -> int:
    """Processes by default: one for each GPU, if no device is named."""
    return torch.cuda.device_count() if settings.device is None and torch.cuda.is_available() else 1


def _parse_shard(text: str | None) -> tuple[int, int]:
    """ "2/8" → (2, 8); None → (0, 1). Raises CorpusError."""
    if text is None:
        return 0, 1
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise CorpusError(f"--shard {text}: pass I/N with I from 0 to N-1, such as 0/8")
    return int(index), int(count)


def _settled(arguments: argparse.Namespace, settings: Settings) -> tuple[Plan, Folder]:
    folder = Folder(arguments.out)
    options = _options(arguments, identify(settings))
    return plans.settle(folder, options, arguments.inputs, _unit_size(settings)), folder


def _unit_size(settings: Settings) -> UnitSize:
    return plans.unit_size(settings.resolve(), choose_device(settings.device).type)


def _plan(arguments: argparse.Namespace) -> int:
    settings = Settings.from_environment(model=arguments.model)
    options = _options(arguments, identify(settings))
    folder = Folder(arguments.out)
    plan = plans.load(folder)
    if plan is None:
        plan = plans.make(options, arguments.inputs, _unit_size(settings), folder.full_url)
    else:
        plans.check(plan, options, arguments.inputs, folder.full_url)
    embedder = Embedder.from_settings(settings)
    tokens = steps.prepare(plan, 0, embedder).tokens
    rows = min(len(tokens.lengths), SAMPLE_ROWS)
    if not rows:
        raise CorpusError("none of the first unit's rows can be embedded: is --text-column right?")
    sample = replace(tokens, ids=tokens.ids[:rows], lengths=tokens.lengths[:rows], weights=None)
    embedder.embed_tokens(sample)  # warm up
    started = time.perf_counter()
    embedder.embed_tokens(sample)
    seconds = time.perf_counter() - started
    row_bytes = DIMENSION_BYTES[options.vectors] * options.identity.dimensions
    print(
        f"{len(plan.files):,} files, {plan.records:,} rows, {len(plan.units):,} units of about a minute",
        f"about {plan.records * sample.total / rows:,.0f} tokens: {sample.total / rows:.0f} a row, "
        f"in the first {rows} rows",
        f"about {duration(plan.records * seconds / rows)} on one {embedder.device} like this one: "
        f"{sample.total / seconds:,.0f} tokens/s, measured on these rows",
        f"about {plan.records * row_bytes / 1e9:,.3f} GB of {options.vectors} vectors",
        sep="\n",
    )
    return 0


def _status(arguments: argparse.Namespace) -> int:
    plan, folder = _existing(arguments.folder)
    status = Status.of(plan, folder)
    print(_words(status, folder))
    return 0 if status.done == status.units else 1


def _finish(arguments: argparse.Namespace) -> int:
    plan, folder = _existing(arguments.folder)
    print(_words(finish(plan, folder), folder))
    if arguments.lance:
        from e5.corpus.lance_table import write_table

        plans.check_input(plan, find([file.url for file in plan.files]))
        print(f"{arguments.lance}: {write_table(plan, folder, arguments.lance):,} rows")
    return 0


def _search(arguments: argparse.Namespace) -> int:
    plan, folder = _existing(arguments.folder)
    identity = plan.options.identity
    settings = Settings.from_environment(model=identity.model)
    if (now := identify(settings)) != replace(identity, dtype=now.dtype):
        raise CorpusError(f"the vectors are of other weights of {identity.model}: set E5_WEIGHTS to these")
    vector = Embedder.from_settings(settings).embed_queries([arguments.query], task=arguments.task)[0]
    if arguments.lance:
        from e5.corpus.lance_table import nearest

        hits = nearest(plan, arguments.lance, vector, arguments.k)
    else:
        hits = search(plan, folder, vector, arguments.k)
    for hit in hits:
        text = " ".join((hit.text or "").split())
        print(f"{hit.score:6.2f}  {hit.id}  {text if len(text) <= 100 else text[:99] + '…'}")
    return 0


def _existing(url: str) -> tuple[Plan, Folder]:
    folder = Folder(url)
    plan = plans.load(folder)
    if plan is None:
        raise CorpusError(f"{url} has no {plans.FILE}: name the --out of a run")
    return plan, folder


def _words(status: Status, folder: Folder) -> str:
    rejected = f", {status.rejected:,} rows rejected (rejected-*.parquet says why)" if status.rejected else ""
    return f"{folder.url}: {status.done:,} of {status.units:,} units done, {status.vectors:,} vectors{rejected}"
