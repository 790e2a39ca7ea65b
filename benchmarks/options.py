"""Command line of scripts/benchmark.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from e5 import catalog
from e5.settings import DTYPES

SECTIONS = (
    "roofline",
    "setup",
    "loading",
    "serialization",
    "throughput",
    "latency",
    "ablations",
    "profile",
    "fused_ops",
    "parity",
    "scaling",
    "serve",
    "gateway",
    "dispatch",
)
"""In running order: setup and loading come before the sections that leave engines in a GPU's memory."""
OPT_IN_SECTIONS = ("ablations", "profile", "fused_ops", "parity", "dispatch")
"""Sections on internals, accuracy and several servers, which run only if `--only` names them."""
DEFAULT_SECTIONS = [name for name in SECTIONS if name not in OPT_IN_SECTIONS]
TEXTS, QUICK_TEXTS = 256, 24
ROUNDS, QUICK_ROUNDS = 5, 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse and check the arguments. On wrong ones, print one line and exit with status 2."""
    parser = _Parser(prog="benchmark.py", description="Measure the package on this machine.")
    parser.add_argument("--model", default=catalog.EMBEDDED, choices=catalog.names(), metavar="MODEL")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the model's files (default: found or fetched)")
    parser.add_argument("--random-weights", action="store_true", help="random weights of the model's real size instead")
    parser.add_argument("--layers", type=int, metavar="N", help="with --random-weights: N layers instead of all")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--dtypes", type=_dtypes, metavar="LIST", help="default: float32 and the device's default")
    parser.add_argument("--only", type=_sections, default=DEFAULT_SECTIONS, metavar="LIST", help=",".join(SECTIONS))
    parser.add_argument("--serve", action="store_const", dest="only", const=["serve"], help="the same as --only serve")
    parser.add_argument("--partial", action="store_true", help="print a line of JSON whenever there are new numbers")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial run, not for figures")
    parser.add_argument("--repeats", type=_positive, metavar="N", help=f"rounds per measurement (default: {ROUNDS})")
    parser.add_argument("--texts", type=_positive, metavar="N", help=f"documents for throughput (default: {TEXTS})")
    parser.add_argument(
        "--rival-batches",
        type=_positives,
        metavar="LIST",
        help="batch sizes of sentence-transformers; the fastest counts (default: 32; on a GPU 32,128)",
    )
    parser.add_argument("--data", type=_folder, metavar="FOLDER", help="for parity: trecqa-dev.csv and stsb-en-dev.csv")
    arguments = parser.parse_args(argv)
    if arguments.random_weights and arguments.weights:
        parser.error("--random-weights and --weights exclude each other: pass one")
    if arguments.layers is not None and not arguments.random_weights:
        parser.error("--layers is for random weights: pass --random-weights as well")
    if arguments.dtypes == ["float8"]:
        parser.error("--dtypes float8 has nothing to be compared with: add another one, as in float16,float8")
    arguments.repeats = arguments.repeats or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    arguments.texts = arguments.texts or (QUICK_TEXTS if arguments.quick else TEXTS)
    return arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without argparse's usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def _sections(text: str) -> list[str]:
    return sorted(_names(text, SECTIONS), key=SECTIONS.index)


def _dtypes(text: str) -> list[str]:
    return _names(text, DTYPES)


def _names(text: str, choices: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in choices:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(choices)}")
    return names


def _positives(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text)
