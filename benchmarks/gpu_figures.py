"""The figures of a run on a GPU against the goals that were set for it: a line each, from the sections' JSON."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.report import Json

OURS, RIVAL = "this package", "sentence-transformers"
GOALS = {
    "share": 0.75,
    "rival": 1.6,
    "float8": 1.5,
    "limit": 1.3,
    "cold_bytes": 1.2,
    "cold_seconds": 3.0,
    "peak": 1.15,
    "capture_seconds": 5.0,
    "capture_bytes": 1e9,
}
"""Share of the matrix peak at least; × sentence-transformers at least; float8 × float16 at least; × the memory-read
limit at most; a cold start in × bytes / bandwidth, and seconds on top; device memory at its peak in × the weights; what
capturing graphs may cost."""


def machine(result: Json) -> str:
    """What a figure must be quoted with: figures of other cards, drivers or CUDA builds are other figures."""
    found = result["machine"]
    commit = f", commit {found['commit']}" if found["commit"] else ""
    return (
        f"{found['gpu'] or 'no GPU'}, driver {found['driver'] or 'none'}, CUDA build {found['cuda_build'] or 'none'}, "
        f"torch {found['packages']['torch']}{commit}"
    )


def lines(results: Mapping[str, Json]) -> list[str]:
    """From step → its JSON line; what is not there has no line, and what cannot be read says so."""
    parts: dict[str, Callable[[Any], Iterator[str]]] = {
        "ceilings": _ceilings,
        "throughput": _throughput,
        "latency": _latency,
        "levers": _levers,
        "equality": _equality,
        "merge": _equality,
        "profile": _profile,
        "elementwise": _elementwise,
        "setup": _setup,
        "loading": _loading,
        "serve": _serve,
    }
    found = []
    for step, result in results.items():
        found += [f"  {step}: {name} are OFF, see its log" for name, on in result.get("gpu", {}).items() if not on]
        for section, figures in parts.items():
            if section in result:
                try:
                    found += [f"  {step}: {line}" for line in figures(result[section])]
                except (KeyError, TypeError, ValueError) as error:  # a section that was skipped has other keys
                    found.append(f"  {step}: {result[section].get('skipped', f'no figure, {error!r}')}")
    return found


def _verdict(good: bool) -> str:
    return "reached" if good else "MISSED"


def _ceilings(section: Json) -> Iterator[str]:
    yield (
        f"{section['flop_per_second'] / 1e12:.0f} TFLOP/s, {section['copy_bytes_per_second'] / 1e12:.2f} TB/s copy, "
        f"{section['read_bytes_per_second'] / 1e12:.2f} read; "
        f"limits {section['limit_tokens_per_second']:,.0f} tokens/s, {section['limit_read_milliseconds']:.2f} ms"
    )
    for kind in dict.fromkeys(row["kind"] for row in section["products"]):
        most = max(row["tokens"] for row in section["products"])
        rows = [row for row in section["products"] if row["kind"] == kind and row["tokens"] == most]
        rates = ", ".join(f"{row['layer']} {row['flop_per_second'] / 1e12:.0f}" for row in rows)
        yield f"{kind} at {most:,} tokens, TFLOP/s: {rates}"
    for kind, reason in section["skipped"].items():
        yield f"{kind}: {reason[:100]}"


def _throughput(section: Json) -> Iterator[str]:
    for row in section["engines"]:
        if row["engine"] == OURS:
            goal = _verdict(row["share_of_limit"] >= GOALS["share"])
            yield (
                f"{row['dtype']} {row['tokens_per_second']:,.0f} tokens/s = {row['share_of_limit']:.2f} of the peak "
                f"(goal ≥ {GOALS['share']}: {goal})"
            )
    for row in section["ratios"]:
        if row["to"].startswith(RIVAL) and row["of"].split()[-1] == row["to"].split()[-1]:
            goal = _verdict(row["ratio"] >= GOALS["rival"])
            yield f"{row['of']} / {row['to']} {row['ratio']:.2f} (goal ≥ {GOALS['rival']}: {goal})"


def _latency(section: Json) -> Iterator[str]:
    for row in section["engine_alone"]:
        goal = _verdict(row["ratio_to_limit"] <= GOALS["limit"])
        yield (
            f"{row['engine']}, {row['dtype']}: p50 {row['p50_milliseconds']:.2f} ms = {row['ratio_to_limit']:.2f} × "
            f"the limit of {row['limit_milliseconds']:.2f} (goal ≤ {GOALS['limit']}: {goal})"
        )
    for row in section["ratios"]:
        yield f"{row['of']} / {row['to']} {row['ratio']:.2f}"
    for dtype, cost in section["graphs"].items():
        if cost:
            good = cost["seconds"] <= GOALS["capture_seconds"] and cost["bytes"] <= GOALS["capture_bytes"]
            yield (
                f"graphs in {dtype}: {cost['seconds']:.2f} s, {cost['bytes'] / 1e9:.2f} GB "
                f"(goal ≤ {GOALS['capture_seconds']:.0f} s and 1 GB: {_verdict(good)})"
            )


def _levers(section: Json) -> Iterator[str]:
    yield ", ".join(f"{row['lever']} {row['ratio']:.2f}" for row in section["levers"])
    for row in section["levers"]:
        if row["lever"] == "float8":
            goal = _verdict(row["ratio"] >= GOALS["float8"])
            yield f"float8 / {section['dtype']} {row['ratio']:.2f} (goal ≥ {GOALS['float8']}: {goal})"
    yield "a pair, ms: " + ", ".join(f"{row['lever']} {row['p50_milliseconds']:.2f}" for row in section["pair_levers"])
    for name, reason in section["skipped"].items():
        yield f"{name}: not measured, {reason[:100]}"


def _equality(section: Json) -> Iterator[str]:
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
    for one in section["passes"]:
        most = one["top"][0]["name"][:60] if one["top"] else "none"
        yield f"{one['pass']}: {one['milliseconds']:.2f} ms in {one['launches']:,} kernels, most in {most}"


def _elementwise(section: Json) -> Iterator[str]:
    for row in section["rows"]:
        yield (
            f"{row['step']}, {row['tokens']:,} tokens, {row['way']}: {row['microseconds']:,.1f} µs, "
            f"{100 * row['share_of_floor']:.0f} % of it the floor"
        )
    for way, reason in section["skipped"].items():
        yield f"{way}: not measured, {reason[:100]}"


def _setup(section: Json) -> Iterator[str]:
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in section["seconds"].items())
    yield f"{section['total_seconds']:.1f} s ({phases}); peak {section['peak_to_weights_ratio']:.2f} × weights"


def _loading(section: Json) -> Iterator[str]:
    for row in section["loads"]:
        for state in ("cold", "warm"):
            taken, limit = row[f"{state}_seconds"], row[f"{state}_limit_seconds"]
            if taken is not None and limit is not None:
                allowed = GOALS["cold_bytes"] * limit + GOALS["cold_seconds"]
                yield (
                    f"{row['source']}, {state}: {taken:.1f} s, reading alone {limit:.1f} "
                    f"(goal ≤ {allowed:.1f}: {_verdict(taken <= allowed)})"
                )
        peak = row["peak_to_weights_ratio"]
        if peak is not None:
            goal = _verdict(peak <= GOALS["peak"])
            yield f"{row['source']}: peak {peak:.2f} × weights (goal ≤ {GOALS['peak']}: {goal})"
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
    most = max(shares)
    yield f"{most} clients: {shares[most]:.2f} of the engine's {section['engine_requests_per_second']:,.0f} pairs/s"
