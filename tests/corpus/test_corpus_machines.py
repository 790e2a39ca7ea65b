"""Corpora on several machines: a real Ray cluster, one node of which is killed, and a bucket of moto's S3 server."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import httpx
import pyarrow as pa
import pytest
import ray
from moto.server import ThreadedMotoServer
from ray.cluster_utils import Cluster

from e5 import Embedder
from e5.corpus import plan as plans
from e5.corpus import report, run
from e5.corpus.errors import CorpusError
from e5.corpus.identity import identify
from e5.corpus.on_ray import run_on_ray
from e5.corpus.parts import Folder, part_name, read_part, to_vectors
from e5.corpus.plan import Options, UnitSize
from e5.corpus.rows import Columns
from e5.corpus.unit import Receipt
from e5_cog.server import free_port
from tests.corpus.test_corpus_runs import command, contents, environment, planned, settings, text_of

BUCKET = "s3://corpora"
SIZE = UnitSize(2_000, 10**6)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(text_of(index) for index in range(300)))
    return path


@pytest.fixture
def options() -> Options:
    return Options(identify(settings()), columns=Columns(), task="")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


# ---- Ray


@pytest.fixture
def cluster(variables: None) -> Iterator[Cluster]:
    """Two nodes with a core each, and a head without."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.timeout(300)
def test_killed_node_costs_no_row(tmp_path: Path, source: Path, options: Options, cluster: Cluster) -> None:
    plan, folder = planned(tmp_path / "alone", options, source)
    run.run(plan, folder, Embedder.from_settings(settings()), run.pending(plan, folder), lambda _: None)
    same, output = planned(tmp_path / "out", options, source)
    assert same == plan
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    receipts: list[Receipt] = []

    def receive(receipt: Receipt) -> None:
        receipts.append(receipt)
        if len(receipts) == 3:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    failures = run_on_ray(plan, output, run.pending(plan, output), receive, cluster.address)
    assert failures == {}
    assert nodes and len(nodes) == 1
    assert {receipt.unit for receipt in receipts} == set(range(len(plan.units)))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert report.finish(plan, output).texts == 300


def test_ray_lists_units_that_fail_and_refuses_a_folder_with_another_plan(
    tmp_path: Path, source: Path, options: Options, cluster: Cluster
) -> None:
    cluster.add_node(num_cpus=1)
    plan, folder = planned(tmp_path / "out", options, source, 20_000)
    units = list(range(len(plan.units)))
    (tmp_path / "out" / part_name(plan.id, 1)).mkdir()  # cannot be replaced by a file
    failures = run_on_ray(plan, folder, units, lambda _: None, cluster.address)
    assert list(failures) == [1] and "Error" in failures[1]
    (tmp_path / "out" / part_name(plan.id, 1)).rmdir()
    assert run.pending(plan, folder) == [1]
    with pytest.raises(CorpusError, match=r"Ray gave up: .*another plan here"):
        run_on_ray(replace(plan, id="0"), folder, units, lambda _: None, cluster.address)


def test_ray_that_is_not_there_is_an_error(tmp_path: Path, source: Path, options: Options) -> None:
    plan, folder = planned(tmp_path / "out", options, source)
    with pytest.raises(CorpusError, match=r"Ray cannot be reached at 127.0.0.1"):
        run_on_ray(plan, folder, [0], lambda _: None, f"127.0.0.1:{free_port()}")


# ---- buckets


@pytest.fixture
def bucket(variables: None, monkeypatch: pytest.MonkeyPatch, source: Path) -> Iterator[str]:
    """A bucket with the source in it; returns the source's URL."""
    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    try:
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.mkdir("corpora")
        filesystem.pipe_file("corpora/in/texts.txt", source.read_bytes())
        yield f"{BUCKET}/in/texts.txt"
    finally:
        httpx.post(f"http://127.0.0.1:{port}/moto-api/reset")  # its buckets outlive the server
        server.stop()
        fsspec.filesystem("s3").clear_instance_cache()


def test_bucket_to_bucket_and_killed_in_between(bucket: str, options: Options, library: Embedder) -> None:
    folder = Folder(f"{BUCKET}/out")
    plan = plans.settle(folder, options, [bucket], SIZE)
    program = command(Path("x"), Path("y"))[:3]
    arguments = [*program, bucket, "--out", f"{BUCKET}/out"]
    process = subprocess.Popen(arguments, env=os.environ)
    end = time.monotonic() + 60
    while len(run.pending(plan, folder)) > len(plan.units) - 3 and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert 0 < len(run.pending(plan, folder)) < len(plan.units)
    both = [subprocess.Popen(arguments, env=os.environ) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert report.finish(plan, folder).texts == 300
    table = pa.concat_tables([read_part(folder, plan.id, unit) for unit in range(len(plan.units))])
    assert table.column("id").to_pylist() == [f"texts.txt:{index + 1}" for index in range(300)]
    expected = library.embed_documents([text_of(index) for index in range(300)])
    assert abs(to_vectors(table, "float32") - expected).max() < 1e-5


def test_first_plan_in_a_bucket_wins(bucket: str, options: Options) -> None:
    folder = Folder(f"{BUCKET}/out")
    folder.write_new(plans.FILE, b"first")
    folder.write_new(plans.FILE, b"second")
    assert folder.read_text(plans.FILE) == "first"


def test_changed_object_is_refused(bucket: str, options: Options) -> None:
    folder = Folder(f"{BUCKET}/out")
    plans.settle(folder, options, [bucket], SIZE)
    folder.filesystem.pipe_file("corpora/in/texts.txt", b"other texts")
    folder.filesystem.invalidate_cache()
    with pytest.raises(CorpusError, match=r"texts.txt has changed since the run was planned"):
        plans.settle(folder, options, [bucket], SIZE)
