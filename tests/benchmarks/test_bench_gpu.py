"""What is counted and compared for a GPU, and the command that measures it all; not how fast anything is."""

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
    latency,
    merging,
    parity,
    quality,
    random_checkpoint,
    report,
    serialization,
    suite,
    timing,
    variants,
)
from benchmarks.counts import Counts, Linear
from benchmarks.gpu_run import Step
from e5 import Embedder, catalog
from e5.network import torch_ops
from e5.network.decoder import Decoder
from e5.network.graphs import Graphs
from e5.tokens import Tokens
from e5.weights.files import LocalWeights, in_folder
from e5.weights.locate import locate
from e5_cog import server
from e5_cog.repository import ROOT
from tests import flash
from tests.unit.test_graphs import recompute


def test_the_flagship_is_counted_as_by_hand() -> None:
    counts = Counts.of({**random_checkpoint.MISTRAL_7B, "model_type": "mistral"})
    assert counts.linears == (
        Linear("qkv", 6144, 4096),  # 32 heads and 2 × 8 of keys and values, 128 wide
        Linear("out", 4096, 4096),
        Linear("gate+up", 28672, 4096),
        Linear("down", 4096, 14336),
    )
    assert counts.weights == 32 * (25_165_824 + 16_777_216 + 117_440_512 + 58_720_256) == 6_979_321_856
    assert counts.flop_per_token == 13_958_643_712
    assert counts.tokens_per_second(790e12) == pytest.approx(56_595, abs=1)
    assert counts.read_milliseconds(4.3e12) == pytest.approx(3.246, abs=1e-3)
    assert counts.read_milliseconds(4.3e12, weight_bytes=1) == pytest.approx(1.623, abs=1e-3)


def test_an_encoder_is_counted_as_by_hand() -> None:
    config = random_checkpoint.configuration(catalog.get("e5-small")).to_dict()
    assert Counts.of(config).weights == 12 * (3 * 384 * 384 + 384 * 384 + 2 * 1536 * 384)


def test_a_product_moves_its_weights_its_rows_and_its_results() -> None:
    one = Linear("down", outputs=3, inputs=5)
    assert one.flop(7) == 2 * 7 * 15
    assert one.bytes(7, weight_bytes=2) == 2 * 15 + 2 * 7 * 5 + 2 * 7 * 3
    assert one.bytes(7, weight_bytes=1, row_bytes=1) == 15 + 7 * 5 + 2 * 7 * 3


class Clock:
    """Stands in for a GPU's time: an event is recorded at the time that has passed until then."""

    now = 0.0

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = Clock.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Clock") -> float:
        return 1e3 * (other.at - self.at)


class Recorded:
    """Stands in for a CUDA graph: replaying takes half of the time of running."""

    def replay(self) -> None:
        Clock.now += 3


def test_a_gpu_is_timed_by_its_events_and_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        Clock.now += 2

    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "Event", Clock)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: contextlib.nullcontext())
    assert timing.times(work, cuda, rounds=4) == [2, 2, 2, 2]
    assert timing.seconds_each([work, work, work], cuda, rounds=2) == 1  # three in 3 s by the graph, in 6 without

    def refuses(_: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    assert timing.seconds_each([work, work, work], cuda, rounds=2) == 2


def test_a_centred_cosine_sees_what_a_dominating_dimension_hides() -> None:
    reference = np.array([[100, 1, 0], [100, -1, 0], [100, 0, 0]], dtype=np.float32)
    turned = np.array([[100, 0, 1], [100, -1, 0], [100, 0.1, 0]], dtype=np.float32)
    found = agreement.distance(turned[:2], reference[:2])
    assert found.min_centred_cosine == pytest.approx(0) and found.max_relative_l2 == pytest.approx(0.014142, abs=1e-5)
    assert found.median_relative_l2 == pytest.approx(found.max_relative_l2 / 2) and not found.identical
    assert found.max_score_difference == pytest.approx(0.01, abs=1e-4)  # 100 × (99.98 − 99.99) %
    same = agreement.distance(reference[:2], reference[:2])
    assert same.identical and same.min_centred_cosine == pytest.approx(1)


def test_ranks_of_equal_values_are_shared() -> None:
    one, other = np.array([1.0, 2, 2, 3]), np.array([10.0, 30, 20, 40])
    assert quality.spearman(one, other) == pytest.approx(0.948683, abs=1e-6)  # scipy.stats.spearmanr
    assert quality.spearman(one, -one) == pytest.approx(-1)
    assert quality.reciprocal_rank([False, False, True, True]) == pytest.approx(1 / 3)


def test_the_merge_is_peft_s_and_a_forgotten_adapter_is_seen(decoder_folder: Path) -> None:
    found = in_folder(catalog.get(catalog.EMBEDDED), decoder_folder)
    theirs = merging.by_peft(found, torch.float16)
    merged = dict(merging.merged(found, torch.device("cpu"), torch.float16))
    assert merged.keys() == theirs.keys()
    assert all(torch.equal(merged[name], theirs[name]) for name in theirs)
    bare = LocalWeights("merged", found.checkpoint, found.tokenizer, None)
    for name, tensor in merging.merged(bare, torch.device("cpu"), torch.float16):
        assert torch.equal(tensor, theirs[name]) == ("_proj" not in name)


def test_a_merged_checkpoint_in_several_files_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MAX_SHARD_BYTES", 2_000_000)
    model = catalog.get(catalog.EMBEDDED)
    found = locate(model)
    merging.save(found, torch.device("cpu"), torch.float32, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(found.tokenizer.read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    texts = ["one text", "and another one"]
    merged, adapted = (
        Embedder.load(model.name, folder, source=source, dtype="float32", device="cpu").embed_documents(texts)
        for folder, source in ((tmp_path, "merged"), (None, "adapter"))
    )
    assert np.array_equal(merged, adapted)


def test_random_weights_come_merged_as_well(tmp_path: Path) -> None:
    random_checkpoint.main(["--model", catalog.EMBEDDED, "--to", str(tmp_path), "--merged", "--layers", "1"])
    embedder = Embedder.load(catalog.EMBEDDED, tmp_path, dtype="float32", device="cpu")
    assert embedder.source == "merged" and np.isfinite(embedder.embed_documents(["one text"])).all()


def test_switches_are_put_back(library: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_graphs_are_recorded_anew_where_other_kernels_multiply(
    library: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = torch.backends.cuda.matmul
    own: Any = object()
    recorded: list[bool] = []

    def record(packed: Any) -> None:
        recorded.append(flags.allow_fp16_reduced_precision_reduction)
        packed.graphs = object()

    monkeypatch.setattr(variants, "_captured", {})
    monkeypatch.setattr(type(library.packed), "capture_graphs", record)
    monkeypatch.setattr(library.packed, "graphs", own)
    found = []
    for _ in range(2):
        with variants.sums_in_float32(library):
            found.append(library.packed.graphs)
            assert not flags.allow_fp16_reduced_precision_reduction
        assert library.packed.graphs is own and flags.allow_fp16_reduced_precision_reduction
    assert recorded == [False] and found[0] is found[1] is not own


def test_graphs_are_compared_with_direct_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    embedder = Embedder.load(dtype="float32", device="cpu")
    embedder.packed.bucketed = False  # as on a GPU
    flash.install(monkeypatch)
    with torch.inference_mode():
        graphs = Graphs(embedder.packed.network.embed, torch.device("cpu"), recompute, sizes=(32, 64))
    embedder.packed.graphs = graphs
    ids = embedder.tokenize([], ["one text", "another text that is longer", "word " * 90], "").ids
    found = locate(embedder.model)
    place = parity.Place(embedder.model, found, found.checkpoint, torch.device("cpu"), tmp_path)
    monkeypatch.setattr(parity.Place, "load", lambda *_: embedder)
    rows = parity._engine_rows(place, "float32", ids, embedder.embed_tokens(Tokens(ids, 0)))
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
        latency.engine(embedder, [ids[:2]], recorded)(0)
    assert runs == [1] and latency.capture_cost(embedder) == {"seconds": graphs.seconds, "bytes": graphs.bytes}


def test_a_lever_that_fails_is_left_out_with_its_reason() -> None:
    def fails(_: int) -> None:
        raise ValueError("no such kernel\nat length")

    skipped: dict[str, str] = {}
    found = ablations._turns({ablations.BASE: lambda _: None, "bad": fails}, 2, 1, skipped)
    assert list(found) == [ablations.BASE] and skipped == {"bad": "ValueError: no such kernel"}


def script(text: str, limit: float = 60, needs: str = "", name: str = "step") -> Step:
    return Step(name, "one.log", limit, ("-c", text), needs)


def test_a_step_that_fails_or_is_late_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
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
    assert late.result == {"benchmark": "e5-cog", "answer": 41}, "a late step keeps the figures that it had"
    assert good.status == "good" and good.result == {"benchmark": "e5-cog", "answer": 42}
    log = (tmp_path / "logs" / "one.log").read_text("utf-8")
    assert all(part in log for part in ("why", "so far", "card")) and log.count("=== step: ") == 3


def test_what_cannot_be_measured_any_more_is_left_out(tmp_path: Path) -> None:
    steps = [script("raise SystemExit(1)", name="draw"), script("", needs="draw"), script("pass")]
    outcomes = gpu_run.run(steps, tmp_path, tmp_path, 60)
    assert [one.status for one in outcomes] == ["status 1", "left out: no weights", "good"]
    assert [one.status for one in gpu_run.run(steps[2:], tmp_path, tmp_path, 10)] == ["left out: no time"]


def test_a_step_whose_package_is_missing_is_left_out(tmp_path: Path) -> None:
    steps = [Step("one", "one.log", 60, ("-c", "pass"), packages=("pytest", "no_such_package")), script("pass")]
    outcomes = list(gpu_run.run(steps, tmp_path, tmp_path, 60))
    assert [one.status for one in outcomes] == ["left out: no_such_package is not installed", "good"]
    assert gpu_run.lines(outcomes[0]) == ["one: left out: no_such_package is not installed, 0 s"]


def test_a_random_checkpoint_is_drawn_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", catalog.EMBEDDED, "--to", str(tmp_path), "--merged", "--layers", "1"]
    written = []
    for more in ([], [], ["--seed", "1"]):
        random_checkpoint.main([*options, *more])
        written.append((tmp_path / "model-00001-of-00001.safetensors").stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]
    assert capsys.readouterr().out.count("has this checkpoint already") == 1
    (tmp_path / "drawn.json").unlink()  # as after a run that was cut off
    random_checkpoint.main([*options, "--seed", "1"])
    assert (tmp_path / "model-00001-of-00001.safetensors").stat().st_mtime_ns != written[2]


def test_samples_are_reported_after_every_round() -> None:
    counts: list[list[int]] = []
    actions = {"one": lambda number: number, "two": lambda number: -number}
    report.interleaved(actions, 2, warm_up=1, after_round=lambda s: counts.append([len(s[n]) for n in actions]))
    assert counts == [[1, 1], [2, 2]]


def test_children_find_packages_beside_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(ROOT)
    monkeypatch.setenv("PYTHONPATH", "/site")
    assert serialization._environment(1, 1)["PYTHONPATH"] == server.python_path() == f"{root}{os.pathsep}/site"
    monkeypatch.delenv("PYTHONPATH")
    assert server.python_path() == root


def test_a_long_log_keeps_its_head_and_its_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "LOG_BYTES", 1500)
    log = tmp_path / "log"
    log.write_bytes(b"head" + b"." * 5000 + b"tail")
    gpu_run._shorten(log)
    content = log.read_bytes()
    assert content.startswith(b"head") and content.endswith(b"tail") and len(content) < 1600


@pytest.mark.parametrize("dry", [True, False])
def test_every_step_is_a_command_that_is_understood(dry: bool, tmp_path: Path) -> None:
    steps = gpu_run.steps(None, tmp_path, tmp_path, dry)
    assert len({step.name for step in steps}) == len(steps) == 13
    logs = {step.log for step in steps}
    assert len(logs) <= 7 and all(set(log) <= set("abcdefghijklmnopqrstuvwxyz.") for log in logs)
    for number in (1, 2, 3):
        assert gpu_run.steps(number, tmp_path, tmp_path, dry)
    for step in steps:
        if step.command[0] == "scripts/benchmark.py":
            arguments = suite._arguments(list(step.command[1:]))
            assert arguments.model == (catalog.EMBEDDED if dry else catalog.FLAGSHIP) and arguments.quick == dry
            folders = {None: "", tmp_path / "merged": "draw", tmp_path / "adapted": "draw base"}
            assert step.needs == folders[arguments.weights]
    tests = next(step for step in steps if step.name == "tests").command
    assert dry or "tests/unit/test_attention.py" in tests


def test_a_dry_run_measures_and_compares(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--dry-run", "--only", "draw,draw base,ceilings,levers,profile,equality", "--scratch", str(tmp_path)]
    status = gpu_run.main(["--to", str(tmp_path / "out"), *options])
    output = capfd.readouterr().out
    assert status == 0, [path.read_text("utf-8")[-2000:] for path in (tmp_path / "out").glob("*.log")]
    summary = (tmp_path / "out" / "summary.txt").read_text("utf-8")
    assert all(line in output for line in summary.splitlines()) and summary.count("\n") <= 60
    assert "ceilings: " in summary and "levers: as it is 1.00" in summary and "profile: one pair of" in summary
    assert "profile: gate, 128 tokens, torch's operators: " in summary
    assert "equality: float32 engine against float32 reference code: relative L2" in summary
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # the weights are gone
    assert summary.startswith("no GPU, driver none, CUDA build none, torch 2")
    options = ["--dry-run", "--only", "draw", "--weights", str(tmp_path / "kept")]
    assert [gpu_run.main(["--to", str(tmp_path / "out"), *options]) for _ in range(2)] == [0, 0]
    assert "has this checkpoint already" in (tmp_path / "out" / "setup.log").read_text("utf-8")


def test_figures_say_what_was_reached_and_what_was_not() -> None:
    engines = [{"engine": "this package", "dtype": "float16", "tokens_per_second": 42_500, "share_of_limit": 0.76}]
    ratios = [{"of": "this package float16", "to": "sentence-transformers float16", "ratio": 1.55}]
    found = gpu_figures.lines({"throughput": {"throughput": {"engines": engines, "ratios": ratios}}})
    assert len(found) == 2 and found[0].endswith("(goal ≥ 0.75: reached)") and found[1].endswith("1.6: MISSED)")
    assert gpu_figures.lines({"levers": {"gpu": {"graphs": True, "fused kernels": False}}}) == [
        "  levers: fused kernels are OFF, see its log"
    ]
    load = {"source": "adapter", "cold_seconds": 9.0, "cold_limit_seconds": 6.0, "peak_to_weights_ratio": 1.2}
    loads = [{**load, "warm_seconds": 9.0, "warm_limit_seconds": 4.9}]
    cold, warm, peak = gpu_figures.lines({"loading": {"loading": {"loads": loads, "loaders": []}}})
    assert cold.endswith("(goal ≤ 10.2: reached)") and warm.endswith("(goal ≤ 8.9: MISSED)") and "1.15: MISSED" in peak
    assert gpu_figures.lines({"latency": {"latency": {"skipped": "no rival"}}}) == ["  latency: no rival"]


def test_this_python_is_the_steps_python(tmp_path: Path) -> None:
    list(gpu_run.run([script("import sys; print(sys.executable)")], tmp_path, tmp_path, 60))
    assert sys.executable in (tmp_path / "one.log").read_text("utf-8")
