"""Download and verify a model's weights into a folder, to bake them into an image or copy them to another machine.

    .venv/bin/python scripts/download_weights.py --model e5-small
    .venv/bin/python scripts/download_weights.py --model e5-mistral-7b-instruct --source merged --to /data/e5

An interrupted download resumes at the next run. Exit status: 0 success, 1 failure, 2 wrong arguments.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from e5 import catalog
from e5.errors import SettingsError, WeightsError
from e5.settings import Settings
from e5.weights.files import LocalWeights
from e5.weights.locate import WEIGHTS, locate


def main() -> int:
    arguments = _arguments()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("e5").setLevel(logging.INFO)
    started = time.perf_counter()
    try:
        # Only these two variables: E5_WEIGHTS may already name the folder that this run is about to create.
        settings = Settings.from_environment({name: os.environ.get(name, "") for name in ("E5_MODEL", "E5_SOURCE")})
        model = catalog.get(arguments.model or settings.model)
        source = arguments.source or settings.source or model.default_source
        files = _download(model, source, arguments.to)
    except SettingsError as error:
        print(f"download_weights.py: {error}", file=sys.stderr)
        return 2
    except WeightsError as error:
        print(f"download_weights.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("download_weights.py: interrupted; the next run resumes the download", file=sys.stderr)
        return 130
    print(f"complete after {time.perf_counter() - started:.1f} s, source {files.source}:")
    for path in (files.checkpoint, files.tokenizer, files.adapter):
        if path is not None:
            print(f"  {path}")
    return 0


def _download(model: catalog.Model, source: str, to: Path | None) -> LocalWeights:
    if not model.parts(source):
        if to is not None:
            raise SettingsError(f"--to {to}: {model.name} comes with the repository; copy {WEIGHTS / model.name}")
        print(f"{model.name} comes with the repository: nothing to download", file=sys.stderr)
        return locate(model, source=source)
    from e5.weights import fetch  # here: huggingface_hub takes 0.2 s to import

    folder = (to or WEIGHTS / model.name).expanduser().absolute()
    print(f"{model.name}, source {source} → {folder}", file=sys.stderr)
    return fetch.to_folder(model, source, folder)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, without the usage
        self.exit(2, f"{self.prog}: {message}\n")


def _arguments() -> argparse.Namespace:
    parser = _Parser(
        prog="download_weights.py",
        description="Download and verify a model's weights. HF_TOKEN, HF_HOME and HF_ENDPOINT apply.",
    )
    parser.add_argument("--model", choices=catalog.names(), help="default: E5_MODEL", metavar="MODEL")
    parser.add_argument("--source", choices=("adapter", "merged"), help="default: E5_SOURCE, else the model's own")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: weights/MODEL; E5_WEIGHTS=FOLDER uses it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
