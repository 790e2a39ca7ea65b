"""One line per figure of a GPU run, compared with its goal, from the sections' JSON."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.report import Json

OURS, RIVAL = "this package", "sentence-transformers"
MIN_SHARE_OF_LIMIT, MIN_RATIO_TO_RIVAL, MIN_FLOAT8_RATIO = 0.75, 1.6, 1.5
"""Share of the matrix rate; speed relative to sentence-transformers; float8 relative to float16."""
MAX_LATENCY_RATIO, MAX_PEAK_RATIO = 1.3, 1.15
"""Latency relative to reading the weights once; peak device memory relative to the weights."""
MAX_LOAD_RATIO, MAX_LOAD_SECONDS = 1.2, 3.0
"""A load may take this multiple of bytes / bandwidth, plus the seconds."""
MAX_CAPTURE_SECONDS, MAX_CAPTURE_BYTES = 5.0, 1e9
"""Cost of capturing CUDA graphs."""


def machine_line(result: Json) -> str:
    """Card, driver, CUDA build and commit, without which no figure may be quoted."""
    machine = result["machine"]
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return (
        f"{machine['gpu'] or 'no GPU'}, driver {machine['driver'] or 'none'}, "
        f"CUDA build {machine['cuda_build'] or 'none'}, torch {machine['packages']['torch']}{commit}"
    )


def figure_lines(results: Mapping[str, Json]) -> list[str]:
    """`results`: step → its JSON line. A section that was skipped or has no figures gets a line that says so."""
    sections: dict[str, Callable[[Any], Iterator[str]]] = {
        "roofline": _roofline,
        "throughput": _throughput,
        "latency": _latency,
        "ablations": _ablations,
        "parity": _parity,
        "profile": _profile,
        "fused_ops": _fused_ops,
        "setup": _setup,
        "loading": _loading,
        "serve": _serve,
    }
    lines = []
    for step, result in results.items():
        lines += [f"  {step}: {name} are OFF, see its log" for name, on in result.get("gpu", {}).items() if not on]
        for name, figures in sections.items():
            if name in result:
                try:
                    lines += [f"  {step}: {line}" for line in figures(result[name])]
                except (KeyError, TypeError, ValueError) as error:  # a skipped section has other keys
                    lines.append(f"  {step}: {result[name].get('skipped', f'no figure, {error!r}')}")
    return lines


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def _roofline(section: Json) -> Iterator[str]:
    yield (
        f"{section['flop_per_second'] / 1e12:.0f} TFLOP/s, {section['copy_bytes_per_second'] / 1e12:.2f} TB/s copy, "
        f"{section['read_bytes_per_second'] / 1e12:.2f} read; "
        f"limits {section['limit_tokens_per_second']:,.0f} tokens/s, {section['limit_read_milliseconds']:.2f} ms"
    )
    for kind in dict.fromkeys(row["kind"] for row in section["products"]):
        max_tokens = max(row["tokens"] for row in section["products"])
        rows = [row for row in section["products"] if row["kind"] == kind and row["tokens"] == max_tokens]
        rates = ", ".join(f"{row['layer']} {row['flop_per_second'] / 1e12:.0f}" for row in rows)
        yield f"{kind} at {max_tokens:,} tokens, TFLOP/s: {rates}"
    for kind, reason in section["skipped"].items():
        yield f"{kind}: {reason[:100]}"


def _throughput(section: Json) -> Iterator[str]:
    for row in section["engines"]:
        if row["engine"] == OURS:
            verdict = _verdict(row["share_of_limit"] >= MIN_SHARE_OF_LIMIT)
            yield (
                f"{row['dtype']} {row['tokens_per_second']:,.0f} tokens/s = {row['share_of_limit']:.2f} of the peak "
                f"(goal ≥ {MIN_SHARE_OF_LIMIT}: {verdict})"
            )
    for row in section["ratios"]:
        if row["to"].startswith(RIVAL) and row["of"].split()[-1] == row["to"].split()[-1]:
            verdict = _verdict(row["ratio"] >= MIN_RATIO_TO_RIVAL)
            yield f"{row['of']} / {row['to']} {row['ratio']:.2f} (goal ≥ {MIN_RATIO_TO_RIVAL}: {verdict})"


def _latency(section: Json) -> Iterator[str]:
    for row in section["forward"]:
        verdict = _verdict(row["ratio_to_limit"] <= MAX_LATENCY_RATIO)
        yield (
            f"{row['engine']}, {row['dtype']}: p50 {row['p50_milliseconds']:.2f} ms = {row['ratio_to_limit']:.2f} × "
            f"the limit of {row['limit_milliseconds']:.2f} (goal ≤ {MAX_LATENCY_RATIO}: {verdict})"
        )
    for row in section["ratios"]:
        yield f"{row['of']} / {row['to']} {row['ratio']:.2f}"
    for dtype, cost in section["graphs"].items():
        if cost:
            reached = cost["seconds"] <= MAX_CAPTURE_SECONDS and cost["bytes"] <= MAX_CAPTURE_BYTES
            yield (
                f"graphs in {dtype}: {cost['seconds']:.2f} s, {cost['bytes'] / 1e9:.2f} GB "
                f"(goal ≤ {MAX_CAPTURE_SECONDS:.0f} s and 1 GB: {_verdict(reached)})"
            )


def _ablations(section: Json) -> Iterator[str]:
    yield ", ".join(f"{row['ablation']} {row['ratio']:.2f}" for row in section["ablations"])
    for row in section["ablations"]:
        if row["ablation"] == "float8":
            verdict = _verdict(row["ratio"] >= MIN_FLOAT8_RATIO)
            yield f"float8 / {section['dtype']} {row['ratio']:.2f} (goal ≥ {MIN_FLOAT8_RATIO}: {verdict})"
    pairs = [f"{row['ablation']} {row['p50_milliseconds']:.2f}" for row in section["pair_ablations"]]
    yield f"a pair, ms: {', '.join(pairs)}"
    for name, reason in section["skipped"].items():
        yield f"{name}: not measured, {reason[:100]}"


def _parity(section: Json) -> Iterator[str]:
    for row in section["rows"]:
        if "failed" in row:
            yield f"{row['dtype']}: failed, {row['failed'][:100]}"
        else:
            yield (
                f"{row['dtype']} {row['of']} against {row['to']}: relative L2 {row['max_relative_l2']:.1e}, "
                f"centred cosine {row['min_centred_cosine']:.6f}" + (", same bits" if row["identical"] else "")
            )
    for row in section["merge"]:
        yield f"merged in {row['dtype']}: " + (
            row.get("failed") or f"{row['different_weights']:,} of {row['weights']:,} weights differ from peft's"
        )
    for row in section["quality"]:
        yield f"quality in {row['dtype']}: " + (
            row.get("failed") or f"TrecQA MRR {row['trecqa_mrr']:.2f}, STS-B {row['stsb_spearman']:.2f}"
        )


def _profile(section: Json) -> Iterator[str]:
    for profiled in section["passes"]:
        slowest = profiled["top"][0]["name"][:60] if profiled["top"] else "none"
        yield (
            f"{profiled['pass']}: {profiled['milliseconds']:.2f} ms in {profiled['launches']:,} kernels, "
            f"most in {slowest}"
        )


def _fused_ops(section: Json) -> Iterator[str]:
    for row in section["rows"]:
        yield (
            f"{row['step']}, {row['tokens']:,} tokens, {row['implementation']}: {row['microseconds']:,.1f} µs, "
            f"floor / time {100 * row['share_of_floor']:.0f} %"
        )
    for implementation, reason in section["skipped"].items():
        yield f"{implementation}: not measured, {reason[:100]}"


def _setup(section: Json) -> Iterator[str]:
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in section["seconds"].items())
    yield f"{section['total_seconds']:.1f} s ({phases}); peak {section['peak_to_weights_ratio']:.2f} × weights"


def _loading(section: Json) -> Iterator[str]:
    for row in section["loads"]:
        for state in ("cold", "warm"):
            seconds, limit = row[f"{state}_seconds"], row[f"{state}_limit_seconds"]
            if seconds is not None and limit is not None:
                goal = MAX_LOAD_RATIO * limit + MAX_LOAD_SECONDS
                yield (
                    f"{row['source']}, {state}: {seconds:.1f} s, reading only {limit:.1f} "
                    f"(goal ≤ {goal:.1f}: {_verdict(seconds <= goal)})"
                )
        peak = row["peak_to_weights_ratio"]
        if peak is not None:
            verdict = _verdict(peak <= MAX_PEAK_RATIO)
            yield f"{row['source']}: peak {peak:.2f} × weights (goal ≤ {MAX_PEAK_RATIO}: {verdict})"
    for row in section["loaders"]:
        times = [f"{row[f'{state}_seconds']:.1f} s {state}" for state in ("cold", "warm") if row[f"{state}_seconds"]]
        yield f"{row['loader']}: {', '.join(times)}"


def _serve(section: Json) -> Iterator[str]:
    for row in section["servers"]:
        if row["server"] == "shared batches":
            yield (
                f"{row['clients']} clients: {row['requests_per_second']:,.0f} requests/s, "
                f"p50 {row['p50_milliseconds']:.1f} ms, p99 {row['p99_milliseconds']:.1f} ms"
            )
    shares = {row["clients"]: row["of_engine"] for row in section["shares"]}
    clients = max(shares)
    engine_rate = section["engine_requests_per_second"]
    yield f"{clients} clients: {shares[clients]:.2f} of the engine's {engine_rate:,.0f} pairs/s"
