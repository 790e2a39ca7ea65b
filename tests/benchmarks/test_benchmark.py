"""The benchmark runs, and its figures are consistent with each other. No test depends on speed."""

import contextlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks import loading, main, options, random_checkpoint, report, serialization, throughput
from benchmarks.texts import RandomTexts
from e5 import catalog
from e5.embedder import Embedder
from e5.settings import Settings
from e5.weights.locate import WEIGHTS, locate
from e5.weights.writer import plan_shards
from e5_cog.repository import ROOT

Json = dict[str, Any]
ROUNDING = 2e-5
"""The JSON line has six significant digits; a figure computed from two of its numbers may differ by 2e-5."""


def run(*arguments: str) -> tuple[Json, str]:
    """Run in this process. Returns the JSON line and the card."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOMP_SPINCOUNT", "20000")  # or main() sets it for all later tests
        assert main.main(arguments) == 0
    return split(output.getvalue())


def split(output: str) -> tuple[Json, str]:
    card, _, line = output.removesuffix("\n").rpartition("\n")
    return json.loads(line), card


@pytest.fixture(scope="module")
def everything() -> tuple[Json, str]:
    """The default sections on the embedded model, with the smallest sizes.

    Runs in a subprocess, because GOMP_SPINCOUNT only works if it is set before torch loads. Without it this run took
    95 s instead of 18 s on cores under other load.
    """
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--quick", "--repeats", "1", "--texts", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return split(done.stdout)


def test_card_and_json_line_have_every_default_section(everything: tuple[Json, str]) -> None:
    result, card = everything
    assert {"benchmark", "version", "machine", "model", "settings", *options.DEFAULT_SECTIONS} == set(result)
    for section in options.DEFAULT_SECTIONS:
        assert f"\n\n{section.capitalize()}: " in card
    assert result["machine"]["cpu"] in card and result["machine"]["packages"]["torch"] in card
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["model"]["name"] == "e5-mistral-tiny" and not result["model"]["random_weights"]
    assert "too small for figures" in card.splitlines()[0]


def test_throughput_is_tokens_over_the_median_time(everything: tuple[Json, str]) -> None:
    result, card = everything[0]["throughput"], everything[1]
    names = [(row["engine"], row["dtype"]) for row in result["engines"]]
    assert len(set(names)) == len(names) and {engine for engine, _ in names} == {
        "this package",
        "sentence-transformers",
    }
    for row in result["engines"]:
        assert len(row["seconds"]) == result["rounds"] == 1
        assert row["median_seconds"] == statistics.median(row["seconds"])
        assert row["tokens_per_second"] == pytest.approx(result["tokens"] / row["median_seconds"], rel=ROUNDING)
        # The JSON line is rounded to six digits, so the card may round to the neighbouring integer.
        assert any(f"{row['tokens_per_second'] + side:,.0f}" in card for side in (-0.1, 0.1))
    speed = {f"{row['engine']} {row['dtype']}": row["tokens_per_second"] for row in result["engines"]}
    for row in result["ratios"]:
        assert row["ratio"] == pytest.approx(speed[row["of"]] / speed[row["to"]], rel=ROUNDING)
    assert 0 < result["median_tokens"] <= result["longest_tokens"] <= result["tokens"]


def test_shares_refer_to_the_roofline_of_the_same_run(everything: tuple[Json, str]) -> None:
    result = everything[0]
    roofline = result["roofline"]
    assert (
        roofline["flop_per_token"] == 2 * roofline["linear_weights"] == 2 * 3 * (1024 * 256 + 512 * 256 + 3 * 768 * 256)
    )
    limit = roofline["flop_per_second"] / roofline["flop_per_token"]
    assert roofline["limit_tokens_per_second"] == pytest.approx(limit, rel=ROUNDING)
    for row in roofline["products"]:
        assert row["share_of_floor"] == pytest.approx(row["floor_microseconds"] / row["microseconds"], rel=ROUNDING)
    for row in result["throughput"]["engines"]:
        assert row["share_of_limit"] == pytest.approx(row["tokens_per_second"] / limit, rel=ROUNDING)
    for row in result["latency"]["forward"]:
        read = max(roofline["copy_bytes_per_second"], roofline["read_bytes_per_second"])
        size = {"float32": 4, "bfloat16": 2}[row["dtype"]] * roofline["linear_weights"]
        assert row["limit_milliseconds"] == pytest.approx(1e3 * size / read, rel=ROUNDING)
        assert row["ratio_to_limit"] == pytest.approx(row["p50_milliseconds"] / row["limit_milliseconds"], rel=ROUNDING)


def test_rival_s_fastest_batch_size_counts_and_one_out_of_memory_is_left_out() -> None:
    def too_large(_: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    key = ("sentence-transformers", "float16")
    actions: dict[Any, Any] = {(key, 32): lambda _: None, (key, 128): too_large}
    assert throughput._warm_up(actions) == [{"dtype": "float16", "batch_texts": 128}]
    assert list(actions) == [(key, 32)]
    with pytest.raises(torch.OutOfMemoryError):
        throughput._warm_up({(key, 32): too_large})
    slow, fast = ([report.Sample(time, torch.empty(0).numpy()) for time in times] for times in ((3, 5), (2, 3)))
    assert throughput._fastest({(key, 32): slow, (key, 128): fast}) == {key: (key, 128)}


def test_both_libraries_give_the_same_vectors(everything: tuple[Json, str]) -> None:
    limits = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}
    rows = everything[0]["throughput"]["engines"]
    for row in rows:
        assert row["max_relative_l2"] <= limits[row["dtype"]], rows
        assert row["min_cosine"] > 1 - limits[row["dtype"]], rows


def test_latency_compares_equal_scores(everything: tuple[Json, str]) -> None:
    result = everything[0]["latency"]
    assert result["pairs"] == 10 and result["query_tokens"] in range(25, 36)
    assert result["document_tokens"] in range(70, 91)
    for row in result["engines"]:
        assert 0 < row["p50_milliseconds"] <= row["p90_milliseconds"]
        assert row["max_score_difference"] < (0.001 if row["dtype"] == "float32" else 2)
    p50 = {f"{row['engine']} {row['dtype']}": row["p50_milliseconds"] for row in result["engines"]}
    for row in result["ratios"]:
        assert row["ratio"] == pytest.approx(p50[row["of"]] / p50[row["to"]], rel=ROUNDING)


def test_answer_went_through_the_server_in_every_way(everything: tuple[Json, str]) -> None:
    result = everything[0]["serialization"]
    assert (result["vectors"], result["dimensions"], result["requests"]) == (2, 4096, 10)
    size = {row["encoding"]: row["response_bytes"] for row in result["encodings"]}
    assert list(size) == list(serialization.ENCODINGS)
    assert size["list"] > size["float"] > size["base64"] > 2 * 4096 * 4 > size["nothing"]
    assert all(0 < row["p50_milliseconds"] <= row["p90_milliseconds"] for row in result["encodings"])


def test_setup_has_every_phase_and_compares_memory_with_the_weights(everything: tuple[Json, str]) -> None:
    result = everything[0]["setup"]
    assert list(result["seconds"]) == ["import", "locate", "load", "merge", "first prediction"]
    assert all(value > 0 for value in result["seconds"].values())
    assert result["total_seconds"] == pytest.approx(sum(result["seconds"].values()), rel=ROUNDING)
    embedded = Embedder.from_settings(Settings())
    with safe_open(WEIGHTS / catalog.EMBEDDED / "base" / "model.safetensors", framework="pt") as file:
        stored = sum(file.get_tensor(name).nbytes for name in map(str, file.keys()))
    assert result["weights_bytes"] == stored * (2 if embedded.dtype == "float32" else 1)
    peak = result["load_added_peak_bytes"]
    if peak is not None:  # Linux, or a GPU
        assert peak >= result["weights_bytes"] and peak >= result["load_added_kept_bytes"] > 0
        assert result["peak_to_weights_ratio"] == pytest.approx(peak / result["weights_bytes"], rel=ROUNDING)


def test_loading_is_compared_with_the_bandwidth(everything: tuple[Json, str]) -> None:
    result, card = everything[0]["loading"], everything[1]
    file = WEIGHTS / catalog.EMBEDDED / "base" / "model.safetensors"
    assert result["bytes"] == file.stat().st_size
    states = [state for state in ("cold", "warm") if result["bandwidth_bytes_per_second"][state]]
    assert "warm" in states
    for state in states:
        rates = [row[f"{state}_bytes_per_second"] for row in result["raw"]]
        assert result["bandwidth_bytes_per_second"][state] == max(rates)
        for row in [*result["raw"], *result["loaders"]]:
            rate = pytest.approx(result["bytes"] / row[f"{state}_seconds"], rel=ROUNDING)
            assert row[f"{state}_bytes_per_second"] == rate
    assert {"this package, read ahead", "mapped file, copied"} <= {row["loader"] for row in result["loaders"]}
    assert [row["source"] for row in result["loads"]] == ["adapter", "merged"]
    base, merged = result["loads"]
    adapter = file.parents[1] / "adapter" / "adapter_model.safetensors"
    assert 0 < file.stat().st_size + adapter.stat().st_size - base["bytes"] < 10_000  # headers of the files
    assert merged["bytes"] == merged["weights_bytes"] == base["weights_bytes"]
    for row in result["loads"]:
        for state in states:
            limit = pytest.approx(row["bytes"] / result["bandwidth_bytes_per_second"][state], rel=ROUNDING)
            assert row[f"{state}_limit_seconds"] == limit and row[f"{state}_seconds"] > row["merge_seconds"]
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0.95 * row["weights_bytes"]
    assert base["merge_seconds"] > merged["merge_seconds"] == 0
    assert "e5.network.load" in card


@pytest.mark.skipif(sys.platform != "linux", reason="the page cache is Linux's")
def test_dropped_file_leaves_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(10_000_000))
    assert loading.resident(file) == 1
    if not loading.drop([file]):
        pytest.skip("this file system keeps its pages in memory")
    assert loading.resident(file) <= 0.01
    file.read_bytes()
    assert loading.resident(file) == 1


def test_scaling_reports_the_time_per_token(everything: tuple[Json, str]) -> None:
    result = everything[0]["scaling"]
    assert [row["texts"] for row in result["sizes"]] == [300, 1000, 3000]
    for row in result["sizes"]:
        assert row["tokens"] / row["texts"] == pytest.approx(12, abs=1)
        assert row["microseconds_per_token"] == pytest.approx(row["median_seconds"] / row["tokens"] * 1e6, rel=ROUNDING)
    first, *_, last = (row["microseconds_per_token"] for row in result["sizes"])
    assert result["largest_to_smallest_ratio"] == pytest.approx(last / first, rel=ROUNDING)


def test_section_without_its_package_is_skipped_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cog" else find_spec(name))
    result, card = run("--quick", "--only", "serialization")
    assert result["serialization"]["skipped"] in card and 'pip install "cog' in card


def test_both_libraries_run_an_encoder_with_random_weights() -> None:
    options = ("--model", "e5-small", "--random-weights", "--layers", "1", "--dtypes", "float32")
    result, card = run("--quick", "--repeats", "1", "--texts", "4", "--only", "throughput", *options)
    assert result["model"] == {
        "name": "e5-small",
        "source": "merged",
        "random_weights": True,
        "layers": 1,
        "dimensions": 384,
        "max_tokens": 512,
    }
    assert "random weights" in card
    assert [row["dtype"] for row in result["throughput"]["engines"]] == ["float32", "float32"]
    assert all(row["max_relative_l2"] < 1e-5 for row in result["throughput"]["engines"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "speed"],
            "'speed' is not one of roofline, setup, loading, serialization, throughput, latency, ablations",
        ),
        (["--rival-batches", "8,x"], "'x' is not a positive whole number"),
        (["--data", "nowhere"], "'nowhere' is not a folder"),
        (["--repeats", "0"], "'0' is not a positive whole number"),
        (["--layers", "2"], "--layers is for random weights"),
        (["--random-weights", "--weights", "."], "exclude each other"),
    ],
)
def test_wrong_arguments_print_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_actions_are_interleaved_and_warm_up_is_discarded() -> None:
    calls: list[tuple[str, int]] = []

    def action(name: str) -> Callable[[int], str]:
        def call(number: int) -> str:
            calls.append((name, number))
            return name

        return call

    samples = report.interleaved({name: action(name) for name in "abc"}, rounds=20, warm_up=2)
    assert Counter(number for _, number in calls) == dict.fromkeys(range(22), 3)
    assert [number for _, number in calls] == sorted(number for _, number in calls)
    assert len({calls[3 * number][0] for number in range(22)}) == 3  # each one starts some round
    assert {name: len(calls) for name, calls in samples.items()} == {"a": 20, "b": 20, "c": 20}
    assert samples["a"][0].value == "a" and samples["a"][0].seconds >= 0


def test_percentiles_are_measured_values() -> None:
    assert report.percentile([5.0, 1.0, 3.0, 2.0, 4.0], 50) == 3
    assert report.percentile([float(value) for value in range(1, 11)], 90) == 9
    assert report.percentile([7.0], 90) == 7


def test_agreement_reports_the_worst_vector() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).numpy()
    worst = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).numpy()
    assert throughput.agreement(reference, reference) == {"min_cosine": 1, "max_relative_l2": 0}
    agreement = throughput.agreement(worst, reference)
    assert agreement["min_cosine"] == 0 and agreement["max_relative_l2"] == pytest.approx(2**0.5)


def test_texts_are_reproducible_and_have_the_requested_lengths() -> None:
    embedder = Embedder.from_settings(Settings(dtype="float32"))
    file = locate(embedder.model).tokenizer
    texts, same = RandomTexts(embedder, file), RandomTexts(embedder, file)
    assert texts.mixed(50) == same.mixed(50) and texts.pairs(3) == same.pairs(3) and texts.short(5) == same.short(5)
    assert texts.mixed(50) != RandomTexts(embedder, file, seed=1).mixed(50)
    lengths = sorted(map(len, embedder.tokenize([], texts.mixed(400), "").ids))
    assert lengths[200] == pytest.approx(150, rel=0.15) and 2 < lengths[0] < 50 < 500 < lengths[-1] <= 4096


@pytest.mark.parametrize("model", catalog.MODELS, ids=lambda model: model.name)
def test_random_weights_have_the_real_number_of_parameters(model: catalog.Model) -> None:
    shapes = random_checkpoint.shapes(random_checkpoint.configuration(model))
    total = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.startswith("pooler."))
    assert total == pytest.approx(model.parameters, rel=0.02)


def test_flagship_shards_match_the_published_7b_model() -> None:
    tensors = random_checkpoint.decoder_shapes(random_checkpoint.configuration(catalog.get(catalog.FLAGSHIP)))
    shards = plan_shards(tensors, 2, random_checkpoint.MAX_SHARD_BYTES).values()
    sizes = [sum(2 * torch.Size(tensors[name]).numel() for name in names) for names in shards]
    assert sum(sizes) == 14_483_464_192  # total_size in the index of mistralai/Mistral-7B-v0.1
    assert max(sizes) < 5_000_000_000
    assert [name for names in shards for name in names] == list(tensors)
    assert "model.layers.31.mlp.down_proj.weight" in tensors and "lm_head.weight" in tensors


def test_random_decoder_has_shards_and_an_adapter_and_loads(tmp_path: Path) -> None:
    model = catalog.get(catalog.EMBEDDED)
    random_checkpoint.build(model, tmp_path, layers=1, max_shard_bytes=1_000_000)
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and len(files) > 2
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as adapter:
        names = list(adapter.keys())
        assert len(names) == 2 * 7
        assert adapter.get_tensor("base_model.model.layers.0.self_attn.q_proj.lora_A.weight").shape == (16, 256)
    embedder = Embedder.from_settings(Settings(model.name, tmp_path, dtype="float32"))
    vectors = embedder.embed_documents(["random weights", "give random vectors"])
    assert (
        embedder.source == "adapter" and vectors.shape == (2, 256) and torch.isfinite(torch.from_numpy(vectors)).all()
    )


def test_same_seed_draws_same_weights(tmp_path: Path) -> None:
    model = catalog.get(catalog.EMBEDDED)
    folders = [
        random_checkpoint.build(model, tmp_path / str(number), layers=1, seed=seed)
        for number, seed in enumerate((0, 0, 1))
    ]
    first, same, other = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert first == same and first != other
