"""Counts and comparisons of the GPU benchmark, and scripts/measure_gpu.py. No test depends on speed."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    ablations,
    agreement,
    gpu_figures,
    gpu_run,
    gpu_steps,
    latency,
    merging,
    options,
    parity,
    quality,
    random_checkpoint,
    reference,
    report,
    serialization,
    timing,
    variants,
)
from benchmarks.counts import Counts, LinearLayer
from benchmarks.gpu_steps import Step
from e5 import Embedder, catalog
from e5.network import torch_ops
from e5.network.decoder import Decoder
from e5.network.graphs import Graphs
from e5.tokens import Tokens
from e5.weights.files import LocalWeights, in_folder
from e5.weights.locate import locate
from e5.weights.merge import merged_tensors, write_merged
from e5_cog import server
from e5_cog.repository import ROOT
from tests import flash
from tests.unit.test_graphs import recompute


def test_flagship_counts_match_hand_calculation() -> None:
    counts = Counts.of({**random_checkpoint.MISTRAL_7B, "model_type": "mistral"})
    assert counts.linears == (
        LinearLayer("qkv", 6144, 4096),  # 32 + 2 × 8 heads of head_dim 128
        LinearLayer("out", 4096, 4096),
        LinearLayer("gate+up", 28672, 4096),
        LinearLayer("down", 4096, 14336),
    )
    assert counts.weights == 32 * (25_165_824 + 16_777_216 + 117_440_512 + 58_720_256) == 6_979_321_856
    assert counts.flop_per_token == 13_958_643_712
    assert counts.tokens_per_second(790e12) == pytest.approx(56_595, abs=1)
    assert counts.read_milliseconds(4.3e12) == pytest.approx(3.246, abs=1e-3)
    assert counts.read_milliseconds(4.3e12, weight_bytes=1) == pytest.approx(1.623, abs=1e-3)


def test_encoder_counts_match_hand_calculation() -> None:
    config = random_checkpoint.configuration(catalog.get("e5-small")).to_dict()
    assert Counts.of(config).weights == 12 * (3 * 384 * 384 + 384 * 384 + 2 * 1536 * 384)


def test_linear_layer_moves_weights_inputs_and_outputs() -> None:
    layer = LinearLayer("down", out_features=3, in_features=5)
    assert layer.flop(7) == 2 * 7 * 15
    assert layer.bytes(7, weight_bytes=2) == 2 * 15 + 2 * 7 * 5 + 2 * 7 * 3
    assert layer.bytes(7, weight_bytes=1, input_bytes=1) == 15 + 7 * 5 + 2 * 7 * 3


class FakeEvent:
    """Stands in for torch.cuda.Event with a simulated clock."""

    now = 0.0

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 1e3 * (other.at - self.at)


class FakeGraph:
    """Stands in for a CUDA graph whose replay takes half of the eager time."""

    def replay(self) -> None:
        FakeEvent.now += 3


def test_gpu_is_timed_with_events_and_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        FakeEvent.now += 2

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: contextlib.nullcontext())
    assert timing.times(work, cuda, rounds=4) == [2, 2, 2, 2]
    assert (
        timing.seconds_each([work, work, work], cuda, rounds=2) == 1
    )  # three actions take 3 s in the graph, 6 s without

    def fail(_: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    assert timing.seconds_each([work, work, work], cuda, rounds=2) == 2


def test_centred_cosine_shows_differences_hidden_by_a_dominating_dimension() -> None:
    reference = np.array([[100, 1, 0], [100, -1, 0], [100, 0, 0]], dtype=np.float32)
    turned = np.array([[100, 0, 1], [100, -1, 0], [100, 0.1, 0]], dtype=np.float32)
    distance = agreement.distance(turned[:2], reference[:2])
    assert distance.min_centred_cosine == pytest.approx(0) and distance.max_relative_l2 == pytest.approx(
        0.014142, abs=1e-5
    )
    assert distance.median_relative_l2 == pytest.approx(distance.max_relative_l2 / 2) and not distance.identical
    assert distance.max_score_difference == pytest.approx(0.01, abs=1e-4)  # 100 × (99.98 − 99.99) %
    same = agreement.distance(reference[:2], reference[:2])
    assert same.identical and same.min_centred_cosine == pytest.approx(1)


def test_equal_values_share_their_rank() -> None:
    first, second = np.array([1.0, 2, 2, 3]), np.array([10.0, 30, 20, 40])
    assert quality.spearman(first, second) == pytest.approx(0.948683, abs=1e-6)  # scipy.stats.spearmanr
    assert quality.spearman(first, -first) == pytest.approx(-1)
    assert quality.reciprocal_rank([False, False, True, True]) == pytest.approx(1 / 3)


def test_merge_matches_peft_and_a_missing_adapter_is_detected(decoder_folder: Path) -> None:
    weights = in_folder(catalog.get(catalog.EMBEDDED), decoder_folder)
    theirs = merging.by_peft(weights, torch.float16)
    cpu = torch.device("cpu")
    merged = {name: tensor.to(torch.float16, copy=True) for name, tensor in merged_tensors(weights, cpu)}
    assert merged.keys() == theirs.keys()
    assert all(torch.equal(merged[name], theirs[name]) for name in theirs)
    bare = LocalWeights("merged", weights.checkpoint, weights.tokenizer, None)
    for name, tensor in merged_tensors(bare, cpu):
        assert torch.equal(tensor.to(torch.float16), theirs[name]) == ("_proj" not in name)


def test_merged_checkpoint_in_several_shards_loads(tmp_path: Path) -> None:
    model = catalog.get(catalog.EMBEDDED)
    weights = locate(model)
    write_merged(weights, tmp_path, torch.float32, torch.device("cpu"), max_shard_bytes=2_000_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    texts = ["one text", "and another one"]
    merged, adapted = (
        Embedder.load(model.name, folder, source=source, dtype="float32", device="cpu").embed_documents(texts)
        for folder, source in ((tmp_path, "merged"), (None, "adapter"))
    )
    assert np.array_equal(merged, adapted)


def test_random_weights_can_be_drawn_merged(tmp_path: Path) -> None:
    random_checkpoint.main(["--model", catalog.EMBEDDED, "--to", str(tmp_path), "--merged", "--layers", "1"])
    embedder = Embedder.load(catalog.EMBEDDED, tmp_path, dtype="float32", device="cpu")
    assert embedder.source == "merged" and np.isfinite(embedder.embed_documents(["one text"])).all()


def test_variants_are_undone(library: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(library.packed.network, Decoder)
    graphs: Any = object()
    cudnn_enabled: Any = torch.backends.cuda.cudnn_sdp_enabled
    monkeypatch.setattr(library.packed, "graphs", graphs)
    for switch in (variants.without_graphs, variants.without_kernels, variants.dense_attention):
        with switch(library):
            assert variants.graphs(library) is None
            if switch is variants.dense_attention:
                assert not cudnn_enabled()
        assert cudnn_enabled()
        assert variants.graphs(library) is graphs
    monkeypatch.setattr(library.packed, "graphs", None)
    kernels: Any = object()
    with monkeypatch.context() as patch:
        patch.setattr(library.packed.network, "ops", kernels)
        with variants.without_kernels(library):
            inside = library.packed.network.ops
        assert (inside, library.packed.network.ops) == (torch_ops, kernels)
    tokens = library.max_batch_tokens
    with variants.budget(library, 7):
        assert library.max_batch_tokens == 7
    assert library.max_batch_tokens == tokens
    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(1))
    with variants.synchronised(library), variants.budget(library, 1):
        library.embed_documents(["one", "two"])
    library.embed_documents(["one", "two"])
    assert len(waits) == 2


def test_graphs_are_recorded_again_for_other_matrix_kernels(library: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = torch.backends.cuda.matmul
    own: Any = object()
    recorded: list[bool] = []

    def record(packed: Any) -> None:
        recorded.append(flags.allow_fp16_reduced_precision_reduction)
        packed.graphs = object()

    monkeypatch.setattr(variants, "_captured", {})
    monkeypatch.setattr(type(library.packed), "capture_graphs", record)
    monkeypatch.setattr(library.packed, "graphs", own)
    used = []
    for _ in range(2):
        with variants.sums_in_float32(library):
            used.append(library.packed.graphs)
            assert not flags.allow_fp16_reduced_precision_reduction
        assert library.packed.graphs is own and flags.allow_fp16_reduced_precision_reduction
    assert recorded == [False] and used[0] is used[1] is not own


def test_parity_compares_graphs_with_eager_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    embedder = Embedder.load(dtype="float32", device="cpu")
    embedder.packed.bucket_step = None  # as on a GPU
    flash.install(monkeypatch)
    with torch.inference_mode():
        graphs = Graphs(embedder.packed.network.embed, torch.device("cpu"), recompute, sizes=(32, 64))
    embedder.packed.graphs = graphs
    ids = embedder.tokenize([], ["one text", "another text that is longer", "word " * 90], "").ids
    weights = locate(embedder.model)
    subject = reference.ModelUnderTest(embedder.model, weights, weights.checkpoint, torch.device("cpu"), tmp_path)
    monkeypatch.setattr(reference.ModelUnderTest, "load", lambda *_: embedder)
    rows = parity._engine_rows(subject, "float32", ids, embedder.embed_tokens(Tokens(ids, list(map(len, ids)))))
    assert [(row["of"], row["to"]) for row in rows] == [
        ("engine", "float32 reference code"),
        ("packed", "one by one"),
        ("graphs, packed", "eager"),
        ("graphs, one by one", "eager"),
    ]
    assert rows[0]["identical"] and all(row["max_relative_l2"] < 1e-5 for row in rows)
    runs: list[int] = []
    monkeypatch.setattr(Graphs, "embed", lambda *_: runs.append(1))
    for recorded in (True, False):
        latency.forward_action(embedder, [ids[:2]], recorded)(0)
    assert runs == [1] and latency.capture_cost(embedder) == {"seconds": graphs.seconds, "bytes": graphs.bytes}


def test_failing_ablation_is_skipped_with_its_error() -> None:
    def fail(_: int) -> None:
        raise ValueError("no such kernel\nat length")

    skipped: dict[str, str] = {}
    samples = ablations._interleave({ablations.UNCHANGED: lambda _: None, "bad": fail}, 2, 1, skipped)
    assert list(samples) == [ablations.UNCHANGED] and skipped == {"bad": "ValueError: no such kernel"}


def script(text: str, limit: float = 60, needs: str = "", name: str = "step") -> Step:
    return Step(name, "one.log", limit, ("-c", text), needs)


def test_failed_or_late_step_does_not_stop_the_next(tmp_path: Path) -> None:
    line = json.dumps({"benchmark": "e5-cog", "answer": 42})
    so_far = json.dumps({"benchmark": "e5-cog", "answer": 41})
    steps = [
        script("import sys; print('why'); sys.exit(3)"),
        script(f"import time; print({so_far!r}); print('so far', flush=True); time.sleep(60)", limit=3),
        script(f"print('card'); print({line!r}); print('{{\"benchmark\"')"),
    ]
    bad, late, good = gpu_run.run(steps, tmp_path / "logs", tmp_path, 120)
    assert (bad.status, bad.last_line) == ("status 3", "why")
    assert (late.status, late.last_line) == ("late: over 3 s", "so far")
    assert late.result == {"benchmark": "e5-cog", "answer": 41}, "a late step keeps its figures"
    assert good.status == "good" and good.result == {"benchmark": "e5-cog", "answer": 42}
    log = (tmp_path / "logs" / "one.log").read_text("utf-8")
    assert all(part in log for part in ("why", "so far", "card")) and log.count("=== step: ") == 3


def test_steps_without_weights_or_time_are_left_out(tmp_path: Path) -> None:
    steps = [script("raise SystemExit(1)", name="draw"), script("", needs="draw"), script("pass")]
    results = gpu_run.run(steps, tmp_path, tmp_path, 60)
    assert [result.status for result in results] == ["status 1", "left out: no weights", "good"]
    assert [result.status for result in gpu_run.run(steps[2:], tmp_path, tmp_path, 10)] == ["left out: no time"]


def test_step_without_its_package_is_left_out(tmp_path: Path) -> None:
    steps = [Step("one", "one.log", 60, ("-c", "pass"), packages=("pytest", "no_such_package")), script("pass")]
    results = list(gpu_run.run(steps, tmp_path, tmp_path, 60))
    assert [result.status for result in results] == ["left out: no_such_package is not installed", "good"]
    assert gpu_run.report_lines(results[0]) == ["one: left out: no_such_package is not installed, 0 s"]


def test_random_checkpoint_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", catalog.EMBEDDED, "--to", str(tmp_path), "--merged", "--layers", "1"]
    written = []
    for more in ([], [], ["--seed", "1"]):
        random_checkpoint.main([*options, *more])
        written.append((tmp_path / "model.safetensors").stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]
    assert capsys.readouterr().out.count("has this checkpoint already") == 1
    (tmp_path / "drawn.json").unlink()  # as after a run that was cut off
    random_checkpoint.main([*options, "--seed", "1"])
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns != written[2]


def test_samples_are_passed_on_after_every_round() -> None:
    counts: list[list[int]] = []
    actions = {"one": lambda number: number, "two": lambda number: -number}
    report.interleaved(
        actions, 2, warm_up=1, after_round=lambda samples: counts.append(list(map(len, samples.values())))
    )
    assert counts == [[1, 1], [2, 2]]


def test_subprocesses_find_the_repository_and_pythonpath(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(ROOT)
    monkeypatch.setenv("PYTHONPATH", "/site")
    assert serialization._environment(1, 1)["PYTHONPATH"] == server.python_path() == f"{root}{os.pathsep}/site"
    monkeypatch.delenv("PYTHONPATH")
    assert server.python_path() == root


def test_long_log_keeps_head_and_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "MAX_LOG_BYTES", 1500)
    log = tmp_path / "log"
    log.write_bytes(b"head" + b"." * 5000 + b"tail")
    gpu_run._shorten(log)
    content = log.read_bytes()
    assert content.startswith(b"head") and content.endswith(b"tail") and len(content) < 1600


@pytest.mark.parametrize("dry", [True, False])
def test_every_step_has_valid_arguments(dry: bool, tmp_path: Path) -> None:
    steps = gpu_steps.steps(None, tmp_path, tmp_path, dry)
    assert len({step.name for step in steps}) == len(steps) == 14
    logs = {step.log for step in steps}
    assert len(logs) <= 7 and all(set(log) <= set("abcdefghijklmnopqrstuvwxyz.") for log in logs)
    for number in (1, 2, 3):
        assert gpu_steps.steps(number, tmp_path, tmp_path, dry)
    for step in steps:
        if step.command[0] == "scripts/benchmark.py":
            arguments = options.parse(step.command[1:])
            models = ("e5-small", gpu_steps.ENCODER) if step.name == "encoder" else (catalog.EMBEDDED, catalog.FLAGSHIP)
            assert arguments.model == models[not dry] and arguments.quick == dry
            folders = {None: "", tmp_path / "merged": "draw", tmp_path / "adapted": "draw base"}
            assert step.needs == folders[arguments.weights]
    tests = next(step for step in steps if step.name == "tests").command
    assert dry or "tests/unit/test_attention.py" in tests


def test_dry_run_measures_and_reports_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--dry-run", "--only", "draw,draw base,roofline,ablations,profile,parity", "--scratch", str(tmp_path)]
    status = gpu_run.main(["--to", str(tmp_path / "out"), *options])
    output = capfd.readouterr().out
    assert status == 0, [path.read_text("utf-8")[-2000:] for path in (tmp_path / "out").glob("*.log")]
    summary = (tmp_path / "out" / "summary.txt").read_text("utf-8")
    assert all(line in output for line in summary.splitlines()) and summary.count("\n") <= 60
    assert "roofline: " in summary and "ablations: unchanged 1.00" in summary and "profile: one pair of" in summary
    assert "profile: gate, 128 tokens, torch's operators: " in summary
    assert "parity: float32 engine against float32 reference code: relative L2" in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # the weights were removed
    assert summary.startswith("no GPU, driver none, CUDA build none, torch 2")
    options = ["--dry-run", "--only", "draw", "--weights", str(tmp_path / "kept")]
    assert [gpu_run.main(["--to", str(tmp_path / "out"), *options]) for _ in range(2)] == [0, 0]
    assert "has this checkpoint already" in (tmp_path / "out" / "setup.log").read_text("utf-8")


def test_figures_say_which_goals_were_reached() -> None:
    engines = [{"engine": "this package", "dtype": "float16", "tokens_per_second": 42_500, "share_of_limit": 0.76}]
    ratios = [{"of": "this package float16", "to": "sentence-transformers float16", "ratio": 1.55}]
    lines = gpu_figures.figure_lines({"throughput": {"throughput": {"engines": engines, "ratios": ratios}}})
    assert len(lines) == 2 and lines[0].endswith("(goal ≥ 0.75: reached)") and lines[1].endswith("1.6: MISSED)")
    assert gpu_figures.figure_lines({"ablations": {"gpu": {"graphs": True, "fused kernels": False}}}) == [
        "  ablations: fused kernels are OFF, see its log"
    ]
    load = {"source": "adapter", "cold_seconds": 9.0, "cold_limit_seconds": 6.0, "peak_to_weights_ratio": 1.2}
    loads = [{**load, "warm_seconds": 9.0, "warm_limit_seconds": 4.9}]
    cold, warm, peak = gpu_figures.figure_lines({"loading": {"loading": {"loads": loads, "loaders": []}}})
    assert cold.endswith("(goal ≤ 10.2: reached)") and warm.endswith("(goal ≤ 8.9: MISSED)") and "1.15: MISSED" in peak
    assert gpu_figures.figure_lines({"latency": {"latency": {"skipped": "no rival"}}}) == ["  latency: no rival"]


def test_steps_run_with_this_python(tmp_path: Path) -> None:
    list(gpu_run.run([script("import sys; print(sys.executable)")], tmp_path, tmp_path, 60))
    assert sys.executable in (tmp_path / "one.log").read_text("utf-8")
