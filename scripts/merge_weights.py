"""Merge a base and its adapter into one checkpoint, so that later starts need not merge.

    .venv/bin/python scripts/merge_weights.py --model e5-mistral-7b-instruct --to /data/e5-merged
    E5_MODEL=e5-mistral-7b-instruct E5_SOURCE=merged E5_WEIGHTS=/data/e5-merged make serve

The files are laid out like the checkpoint that the adapter's authors publish: config.json, tokenizer.json and
safetensors of at most 5 GB with the bare model's names. The parameters are those that loading base and adapter in the
same dtype gives, bit for bit. One tensor at a time is in memory, merged on the GPU if there is one. The folder appears
when it is complete. Exit status: 0 success, 1 failure, 2 wrong arguments.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from e5 import catalog
from e5.declaration import FILE
from e5.errors import SettingsError, WeightsError
from e5.network.device import choose_device
from e5.settings import DTYPES, Settings
from e5.weights.locate import locate
from e5.weights.merge import write_merged


def main(argv: Sequence[str]) -> int:
    arguments = _arguments(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        name = arguments.model or os.environ.get("E5_MODEL", "").strip() or catalog.EMBEDDED
        model = Settings(name, arguments.weights).resolve()
        if "adapter" not in dict(model.sources):
            raise SettingsError(f"{model.name} has no adapter: its published checkpoint needs no merging")
        device = choose_device(arguments.device)
        files = locate(model, arguments.weights, arguments.source)
        own = arguments.weights / FILE if model.name not in catalog.names() else None
        folder = write_merged(files, arguments.to, getattr(torch, arguments.dtype), device, declaration=own)
    except SettingsError as error:
        print(f"merge_weights.py: {error}", file=sys.stderr)
        return 2
    except WeightsError as error:
        print(f"merge_weights.py: {error}", file=sys.stderr)
        return 1
    print(f"merged on {device} in {time.perf_counter() - started:.1f} s, {arguments.dtype}; to use it:")
    print(f"  E5_MODEL={model.name} E5_SOURCE=merged E5_WEIGHTS={folder}")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, without the usage
        self.exit(2, f"{self.prog}: {message}\n")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="merge_weights.py", description="Merge a base and its adapter into one checkpoint.")
    parser.add_argument("--model", choices=catalog.names(), metavar="MODEL", help="default: E5_MODEL")
    parser.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="base/ and adapter/ (default: local copy or download)"
    )
    parser.add_argument("--source", default="adapter", choices=("adapter",), help="the only source that can be merged")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="an empty folder or a new one")
    dtypes = [name for name in DTYPES if name != "float8"]  # float8 is rounded while loading
    parser.add_argument("--dtype", default="float16", choices=dtypes, help="default: float16, like the published one")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
