"""Computes the expected vectors from the real weights: token ids go through the package's own forward pass.

Memory holds one model at a time.
"""

import gc
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np

from e5.catalog import Pooling
from e5.embedder import Embedder
from e5.errors import WeightsError
from e5.settings import Settings
from e5.tokens import Tokenizer
from e5.weights import fetch, files
from e5.weights.locate import WEIGHTS
from evaluation.server_check import forward
from evaluation.server_check.candidates import POOLING_NAMES, cut, framed, prompt_variants, prompted, text_variants
from evaluation.server_check.expected import Expected, ExpectedText, Facts, probes
from evaluation.server_check.forward import Inputs
from evaluation.server_check.mistakes import Candidate
from evaluation.server_check.subject import unit
from evaluation.server_check.texts import COMPARED, Probe

FLOAT32_PARAMETERS = 1_000_000_000
"""Models up to this size are computed in float32. Larger ones use E5_DTYPE or the machine's default, often 16 bits."""


def local_settings(name: str, folder: Path | None) -> Settings | None:
    """Settings that load local weights: of `folder`, of E5_WEIGHTS, of weights/NAME or of the hub's cache.

    None if there are none: nothing is downloaded. Raises SettingsError for an unknown model.
    """
    settings = Settings.from_environment(model=name, weights=folder)
    if settings.weights is not None:
        return settings
    model = settings.resolve()
    source = settings.source or model.default_source
    try:
        files.in_folder(model, WEIGHTS / model.name, settings.source)
    except WeightsError:
        cached = fetch.cached(model, source) if model.parts(source) else None
        return settings if cached and not files.check(model, cached) else None
    return settings


def compute(settings: Settings) -> Expected:
    """Load the model and compute all vectors. Raises SettingsError, WeightsError.

    An adapter's base weights are loaded after the model has been freed.
    """
    model = settings.resolve()
    if settings.dtype is None and model.parameters <= FLOAT32_PARAMETERS:
        settings = replace(settings, dtype="float32")
    embedder = Embedder.from_settings(settings)
    facts = Facts.of(model, embedder.dimensions)
    all_inputs = {probe.name: _inputs(embedder.tokenizer, facts, probe) for probe in probes(facts)}
    limit = embedder.packed.max_positions
    vectors = {
        name: forward.vectors(
            embedder, {c: (ids, pooling) for c, (ids, pooling) in inputs.items() if len(ids) <= limit}, facts.pooling
        )
        for name, inputs in all_inputs.items()
    }
    source, dtype = embedder.source, embedder.dtype
    if source == "adapter":
        tokenizer = embedder.tokenizer
        del embedder
        gc.collect()
        base = forward.base_only(settings, tokenizer)
        for probe in COMPARED:
            vectors[probe.name] |= forward.vectors(
                base, {("adapter missing",): all_inputs[probe.name][()]}, facts.pooling
            )
    texts = {}
    for probe in probes(facts):
        right = vectors[probe.name][()]
        units = {candidate: unit(vector).astype(np.float32) for candidate, vector in vectors[probe.name].items()}
        tokens = len(all_inputs[probe.name][()][0])
        texts[probe.name] = ExpectedText(probe, float(np.linalg.norm(right)), tokens, units)
    return Expected(facts, f"the {source} weights of {model.name}, {dtype}", dtype, texts)


def _inputs(tokenizer: Tokenizer, facts: Facts, probe: Probe) -> Inputs:
    """Token ids and pooling of each candidate, the right one first. Candidates that change nothing are left out."""
    uncut = copy(tokenizer)
    uncut.max_tokens = 1 << 30

    def parts(text: str) -> tuple[list[int], list[int], list[int]]:
        """First special tokens, body, last special tokens."""
        ids = uncut.encode([text]).ids[0].tolist()
        begins, ends = (1, 1) if facts.special_tokens is None else (bool(token) for token in facts.special_tokens)
        return ids[:begins], ids[begins : len(ids) - ends], ids[len(ids) - ends :]

    right = prompted(facts.prompt, probe)
    if probe.name == "long":
        return _without_repeats((c, ids, facts.pooling) for c, ids in cut(*parts(right), facts.max_tokens))
    if probe not in COMPARED:
        first, body, last = parts(right)
        return {(): ([*first, *body, *last], facts.pooling)}

    def candidates() -> Iterable[tuple[Candidate, list[int], Pooling]]:
        for special, ids in framed(*parts(right)):
            for pooling, name in POOLING_NAMES.items():
                yield (special if pooling == facts.pooling else (*special, name)), ids, pooling
        for mistake, text in prompt_variants(facts.prompt, probe).items():
            for special, ids in framed(*parts(text)):
                if special in ((), ("no EOS",)):
                    yield (*special, mistake), ids, facts.pooling
        for mistake, text in text_variants(right).items():
            first, body, last = parts(text)
            yield (mistake,), [*first, *body, *last], facts.pooling

    return _without_repeats(sorted(candidates(), key=lambda entry: len(entry[0])))


def _without_repeats(candidates: Iterable[tuple[Candidate, list[int], Pooling]]) -> Inputs:
    """Of candidates that compute the same, keep the first."""
    inputs: Inputs = {}
    seen: set[tuple[tuple[int, ...], Pooling]] = set()
    for candidate, ids, pooling in candidates:
        if ids and (key := (tuple(ids), pooling)) not in seen:
            seen.add(key)
            inputs[candidate] = ids, pooling
    return inputs
