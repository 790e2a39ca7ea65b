"""Runs the sections of scripts/benchmark.py and prints the card and the JSON line."""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import e5
from benchmarks import options
from benchmarks.report import Json, machine, machine_card, print_json
from benchmarks.suite import Suite
from e5.errors import SettingsError, WeightsError
from e5.network import openmp


def main(argv: Sequence[str]) -> int:
    """Exit status: 0; 1 if the weights are unavailable; 2 for wrong arguments."""
    arguments = options.parse(argv)
    openmp.spin_shortly()  # before torch loads, as in predict.py; applies to all engines
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="e5-benchmark-") as folder:
            result = _measure(arguments, Path(folder))
    except (SettingsError, WeightsError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    print_json(result)
    return 0


def _measure(arguments: argparse.Namespace, folder: Path) -> Json:
    """Run the sections and print the card of each as soon as it is done."""
    result: Json = {"benchmark": "e5-cog", "version": e5.__version__, "machine": machine()}
    suite = Suite(arguments, folder)
    result |= suite.facts()
    model, settings = result["model"], result["settings"]
    weights = "random weights" if model["random_weights"] else f"source {model['source']}"
    print(
        f"{result['benchmark']} {result['version']}: {model['name']} ({weights}), {model['layers']} layers, "
        f"{model['dimensions']} dimensions, on {settings['device']}"
        + ("; quick: too small for figures" if settings["quick"] else "")
        + f"\n{machine_card(result['machine'])}",
        flush=True,
    )
    if arguments.partial:
        suite.keep = lambda section: print_json(result | section)
    for name in arguments.only:
        result[name], card = getattr(suite, name)()
        print(f"\n{card}", flush=True)
        suite.keep({})
    if state := suite.gpu_state():
        result["gpu"] = state
        print("\nOn the GPU: " + ", ".join(f"{name} {'on' if on else 'OFF'}" for name, on in state.items()), flush=True)
    print(flush=True)
    return result
