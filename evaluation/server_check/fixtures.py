"""Expected vectors as a file, so that a machine without the weights can check a server.

One JSON object. Vectors have length 1 and are float16 in base64: rounding them moves a cosine by less than 1e-7.
"""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from e5 import __version__
from e5.vectors import Vectors
from e5_cog.openapi import write_atomically
from evaluation.server_check.expected import Expected, ExpectedText, Facts, probes
from evaluation.server_check.mistakes import SEPARATOR

FORMAT = "e5 server check, 1"


class FixturesError(Exception):
    """A file of fixtures that cannot be used. The message says why, and the cure."""


def write(expected: Expected, path: Path) -> None:
    """Write the file, which appears only when it is complete. Raises FixturesError."""
    content = {
        "format": FORMAT,
        "e5_version": __version__,
        "facts": asdict(expected.facts),
        "origin": expected.origin,
        "dtype": expected.dtype,
        "texts": {name: _packed(text) for name, text in expected.texts.items()},
    }
    try:
        path.parent.stat()  # a missing folder is a mistake: do not create it
        write_atomically(path, json.dumps(content, ensure_ascii=False) + "\n")
    except OSError as error:
        raise FixturesError(f"{path} cannot be written ({error.strerror}): name another file") from error


def read(path: Path) -> Expected:
    """Read a file that `write` wrote. Raises FixturesError, also for texts of another version of this check."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FixturesError(f"{path} cannot be read ({error.strerror}): record it with --record") from error
    except ValueError as error:
        raise FixturesError(f"{path} is not JSON ({error}): record it again with --record") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FixturesError(f"{path} has no fixtures of this version of the check: record it again with --record")
    try:
        tokens = content["facts"].pop("special_tokens")
        facts = Facts(**content["facts"], special_tokens=None if tokens is None else (tokens[0], tokens[1]))
        texts = {probe.name: _unpacked(probe, content["texts"][probe.name]) for probe in probes(facts)}
        return Expected(facts, f"{path.name}: {content['origin']}", content["dtype"], texts)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FixturesError(f"{path} is broken ({error}): record it again with --record") from error


def _packed(text: ExpectedText) -> dict[str, Any]:
    vectors = {SEPARATOR.join(candidate): _encode(vector) for candidate, vector in text.vectors.items()}
    # The long text can be made again from the model's max_tokens.
    return {"text": text.probe.text[:200], "norm": text.norm, "tokens": text.tokens, "vectors": vectors}


def _unpacked(probe: Any, packed: dict[str, Any]) -> ExpectedText:
    if packed["text"] != probe.text[:200]:
        raise ValueError(f"its text {probe.name!r} is another one")
    vectors = {
        tuple(name.split(SEPARATOR)) if name else (): _decode(content) for name, content in packed["vectors"].items()
    }
    if () not in vectors:
        raise ValueError(f"its text {probe.name!r} has no right vector")
    return ExpectedText(probe, float(packed["norm"]), int(packed["tokens"]), vectors)


def _encode(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f2").tobytes()).decode()


def _decode(content: str) -> Vectors:
    vector: Vectors = np.frombuffer(base64.b64decode(content, validate=True), "<f2").astype(np.float32)
    if not vector.size or not np.isfinite(vector).all():
        raise ValueError("a vector is empty or not finite")
    return vector / np.float32(np.linalg.norm(vector))
