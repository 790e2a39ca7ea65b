"""The benchmark's sections."""

import importlib.util

from benchmarks.report import Json, Keep
from benchmarks.resources import SEED, Resources

CALLS_PER_ROUND = 10
"""Calls of latency and serialization, whose calls are short, for each round of the other sections."""
NO_COG = 'cog is not installed: pip install "cog>=0.22,<0.24"'
NO_RIVAL = "sentence-transformers is not installed: pip install -e '.[dev]'"

Section = tuple[Json, str]
"""A section's numbers and its card."""


class Suite(Resources):
    """One method per section."""

    def roofline(self) -> Section:
        from benchmarks import roofline

        result = roofline.measure(self.counts, self.device, self.dtype, self.quick)
        self.device_roofline = roofline.Roofline.of(result)
        return result, roofline.card(result)

    def setup(self) -> Section:
        from benchmarks import setup

        result = setup.measure(self.model.name, self.weights_folder, str(self.device), self.rounds)
        return result, setup.card(result)

    def loading(self) -> Section:
        from benchmarks import loading

        merged, keep = self.folder / "merged", self._keep_as("loading")
        result = loading.measure(self.model, self.weights, self.device, self.rounds, merged, keep)
        return result, loading.card(result)

    def serialization(self) -> Section:
        if not _installed("cog"):
            return _skipped("serialization", NO_COG)
        from benchmarks import serialization

        result = serialization.measure(CALLS_PER_ROUND * self.rounds)
        return result, serialization.card(result)

    def throughput(self) -> Section:
        if not _installed("sentence_transformers"):
            return _skipped("throughput", NO_RIVAL)
        from benchmarks import throughput

        batches = self.rival_batches or throughput.RIVAL_BATCHES[self.device.type]
        limit = self.counts.tokens_per_second(self.device_roofline.flop_per_second)
        keep = self._keep_as("throughput")
        result = throughput.measure(self.engines, self.texts, self.count, self.rounds, batches, limit, keep)
        return result, throughput.card(result)

    def latency(self) -> Section:
        if not _installed("sentence_transformers"):
            return _skipped("latency", NO_RIVAL)
        from benchmarks import latency

        count, bandwidth = CALLS_PER_ROUND * self.rounds, self.device_roofline.bytes_per_second
        keep = self._keep_as("latency")
        result = latency.measure(self.engines, self.texts, count, self.counts, bandwidth, keep)
        return result, latency.card(result)

    def ablations(self) -> Section:
        from benchmarks import ablations

        result = ablations.measure(self.texts, self.load, self.count, self.rounds, self._keep_as("ablations"))
        return result, ablations.card(result)

    def profile(self) -> Section:
        from benchmarks import profiling

        result = profiling.measure(self.texts)
        return result, profiling.card(result)

    def fused_ops(self) -> Section:
        from benchmarks import fused_ops

        result = fused_ops.measure(self.config, self.device, self.dtype, self.device_roofline.bytes_per_second)
        return result, fused_ops.card(result)

    def parity(self) -> Section:
        from benchmarks import parity, reference

        scratch, keep = self.folder / "parity", self._keep_as("parity")
        subject = reference.ModelUnderTest(self.model, self.weights, self.checkpoint, self.device, scratch)
        result = parity.measure(subject, self.dtypes, self.data, self.quick, SEED, keep)
        return result, parity.card(result)

    def scaling(self) -> Section:
        from benchmarks import scaling

        sizes = scaling.QUICK_SIZES if self.quick else scaling.SIZES
        result = scaling.measure(self.texts.embedder, self.texts, sizes, self.rounds)
        return result, scaling.card(result)

    def serve(self) -> Section:
        if not _installed("cog", "aiohttp"):
            return _skipped("serve", NO_COG + "; pip install aiohttp")
        from benchmarks import serving

        keep = self._keep_as("serve")
        embedder, environment = self.texts.embedder, self.environment
        result = serving.measure(embedder, self.texts, environment, self.quick, self.rounds, keep)
        return result, serving.card(result)

    def gateway(self) -> Section:
        if not _installed("cog", "fastapi"):
            return _skipped("gateway", "it is not installed: pip install -e '.[cog,gateway]'")
        from benchmarks import gateway

        result = gateway.measure(self.model.name, self.texts, self.environment, self.quick, self.rounds)
        return result, gateway.card(result)

    def dispatch(self) -> Section:
        if not _installed("cog", "fastapi"):
            return _skipped("dispatch", "it is not installed: pip install -e '.[cog,gateway]'")
        from benchmarks import dispatch

        result = dispatch.measure(self.rounds, self.quick)
        return result, dispatch.card(result)

    def gpu_state(self) -> dict[str, bool]:
        """Whether the measured decoder uses its GPU features; {} without a GPU, decoder or loaded engine."""
        embedder = self.loaded_embedder()
        if embedder is None or self.device.type != "cuda" or self.model.architecture != "mistral":
            return {}
        from benchmarks import variants

        return {"fused kernels": variants.uses_kernels(embedder), "graphs": embedder.packed.graphs is not None}

    def _keep_as(self, section: str) -> Keep:
        return lambda numbers: self.keep({section: numbers})


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _skipped(name: str, reason: str) -> Section:
    return {"skipped": reason}, f"{name.capitalize().replace('_', ' ')}: skipped, {reason}"
