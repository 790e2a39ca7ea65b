"""Files through the gateway: uploads as Replicate's clients send them, URLs that it fetches itself, data URLs."""

import asyncio
import base64
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from e5 import Embedder
from e5.corpus.parts import to_vectors
from e5.vectors import Vectors
from e5_cog.server import Server
from e5_gateway import uploads
from e5_gateway.errors import GatewayError
from e5_gateway.store import Prediction, Store, StoredFile
from tests.gateways import Gateway, gateway, until
from tests.reference import relative_l2
from tests.rule_predictor import MODEL as RULE_MODEL
from tests.web_server import Answers, web_server

MODEL = "e5-mistral-tiny"
FORM = "multipart/form-data; boundary=x"
TEXTS = [f"text {index} " + "word " * index for index in range(20)]
JSONL = "".join(json.dumps({"id": f"r{index}", "text": text}) + "\n" for index, text in enumerate(TEXTS)).encode()


@pytest.fixture(scope="module")
def official(shared_gateway: Gateway) -> Client:
    return Client(base_url=shared_gateway.url, api_token="test-key")


def vectors_of(content: bytes) -> Vectors:
    table = pq.read_table(io.BytesIO(content))
    assert table.column("id").to_pylist() == [f"r{index}" for index in range(20)]
    return to_vectors(table, "float32")


@pytest.mark.parametrize("strategy", ["url", "base64"])
def test_official_client_s_file_input_works(official: Client, library: Embedder, tmp_path: Path, strategy: Any) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(JSONL)
    with path.open("rb") as file:
        output: Any = official.run(f"you/{MODEL}", input={"file": file}, file_encoding_strategy=strategy)
    assert relative_l2(vectors_of(output["file"].read()), library.embed_documents(TEXTS)) < 1e-5
    assert output["embeddings"] is None


def test_official_client_s_files(official: Client, tmp_path: Path) -> None:
    path = tmp_path / "some texts.txt"
    path.write_bytes(b"one\ntwo\n")
    file = official.files.create(path, metadata={"kind": "test"})
    assert (file.name, file.size, file.content_type, file.metadata) == (
        "some texts.txt",
        8,
        "text/plain",
        {"kind": "test"},
    )
    assert file.checksums["sha256"] == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert official.files.get(file.id) == file
    assert file in official.files.list()
    output: Any = official.run(f"you/{MODEL}", input={"file": file.urls["get"]})
    assert len(pq.read_table(io.BytesIO(output["file"].read()))) == 2
    official.files.delete(file.id)
    with pytest.raises(ReplicateError, match="404"):
        official.files.get(file.id)
    with pytest.raises(ReplicateError, match="this file does not exist here"):
        official.run(f"you/{MODEL}", input={"file": file.urls["get"]})


def upload(client: httpx.Client, content: bytes = JSONL, **fields: str) -> dict[str, Any]:
    response = client.post("/v1/files", files={"content": ("a.jsonl", content)}, data=fields)
    created: dict[str, Any] = response.raise_for_status().json()
    return created


def test_cog_s_api_takes_uploads_and_data_urls(client: httpx.Client, library: Embedder) -> None:
    data = f"data:text/plain;base64,{base64.b64encode(JSONL).decode()}"
    for url in (upload(client)["urls"]["get"], data):
        answer = client.post("/predictions", json={"input": {"file": url}}).json()
        content = base64.b64decode(answer["output"]["file"].partition(",")[2])
        assert relative_l2(vectors_of(content), library.embed_documents(TEXTS)) < 1e-5


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/etc/passwd", "must be a URL"),
        ("file:///etc/passwd", "must be a URL"),
        ("", "must be a URL"),
        ("ftp://example.com/a", "must be a URL"),
        ("http://", "must be a URL"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is not a public address"),
        ("http://10.0.0.1/a.jsonl", "10.0.0.1 is not a public address"),
        ("http://localhost/a.jsonl", "localhost is not a public address"),
        ("http://me:secret@example.com/a", "must not have a user and password"),
        ("http://[::1/a", "must be a URL"),
        ("https://api.replicate.com/v1/files/0123456789abcdefghjkmnpqrs", "this file does not exist here"),
    ],
)
@pytest.mark.parametrize("path", [f"/v1/models/e5/{MODEL}/predictions", "/predictions"])
def test_server_is_never_sent_elsewhere(client: httpx.Client, path: str, url: str, words: str) -> None:
    response = client.post(path, json={"input": {"file": url}}, headers={"Prefer": "wait"})
    assert response.status_code == 422 and words in response.text and "input.file" in response.text


def test_targets_cannot_be_reached_by_a_file(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path, "--files-from", "127.0.0.1") as front:
        address = f"{server.url}/health-check"
        response = httpx.post(f"{front.url}/predictions", json={"input": {"file": address}}, timeout=30)
    assert response.status_code == 422 and "is a Cog server" in response.text


def test_urls_are_fetched_by_the_gateway(server: Server, tmp_path: Path) -> None:
    """The rule predictor returns the file as it came."""
    answers = {
        "/a.txt": (200, {}, b"one two\nthree\n"),
        "/moved": (302, {"Location": "/a.txt"}, b""),
        "/five": (301, {"Location": "/4"}, b""),
        **{f"/{left}": (302, {"Location": f"/{left - 1}"}, b"") for left in (4, 3, 2)},
        "/1": (308, {"Location": "/a.txt"}, b""),
        "/inner": (302, {"Location": "http://10.0.0.1/a.txt"}, b""),
        "/local": (302, {"Location": "file:///etc/passwd"}, b""),
        "/circle": (302, {"Location": "/circle"}, b""),
        "/missing": (404, {}, b"no"),
        "/large": (200, {}, b"x" * (uploads.MAX_FILE_BYTES + 1)),
    }
    with web_server(answers) as address, gateway(server.url, tmp_path, "--files-from", "127.0.0.1") as front:

        def predictions(path: str) -> Iterator[httpx.Response]:
            for route in ("/predictions", f"/v1/models/e5/{RULE_MODEL}/predictions"):
                body = {"input": {"file": f"{address}{path}"}}
                yield httpx.post(front.url + route, json=body, headers={"Prefer": "wait"}, timeout=60)

        for path in ("/a.txt", "/moved", "/five"):
            for response in predictions(path):
                prediction = response.json()
                assert prediction["status"] == "succeeded", prediction
                content = prediction["output"]["file"].partition("base64,")[2]
                assert base64.b64decode(content) == b"one two\nthree\n"
                assert prediction["metrics"]["texts"] == 2
        refused = {
            "/inner": (422, "10.0.0.1 is not a public address: the gateway's option --files-from"),
            "/local": (422, "must be a URL"),
            "/circle": (422, "is redirected more than 5 times"),
            "/missing": (422, "answers HTTP 404"),
            "/large": (413, "larger than 64 MiB"),
        }
        for path, (status, words) in refused.items():
            by_cog, by_replicate = predictions(path)
            assert by_cog.status_code == status and words in by_cog.text, (path, by_cog.text)
            prediction = by_replicate.json()
            assert prediction["status"] == "failed" and words in prediction["error"], (path, prediction)


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/csv"])
def test_name_of_a_table_reaches_the_server(client: httpx.Client, kind: str) -> None:
    """Without a column of texts a CSV file must not be read as lines of text."""
    content = {"content": ("table.csv", b"id,body\n1,a\n", kind)}
    url = client.post("/v1/files", files=content).json()["urls"]["get"]
    prediction = client.post("/predictions", json={"input": {"file": url}}).json()
    assert "neither of the columns" in prediction["error"]


def test_long_data_url_is_kept_as_a_file(client: httpx.Client) -> None:
    """Otherwise each poll of the prediction would repeat it."""
    content = b"a line of text\n" * 20_000
    inputs = {"file": f"data:text/plain;base64,{base64.b64encode(content).decode()}"}
    created = client.post(f"/v1/models/e5/{MODEL}/predictions", json={"input": inputs}).json()
    assert re.fullmatch(r"http://127.0.0.1:\d+/v1/files/\w{26}", created["input"]["file"])
    stored = client.get(created["input"]["file"]).json()
    assert (stored["size"], stored["content_type"]) == (len(content), "text/plain")
    client.post(f"/v1/predictions/{created['id']}/cancel")
    broken = {"file": "data:text/plain;base64," + "?" * 300_000}
    response = client.post(f"/v1/models/e5/{MODEL}/predictions", json={"input": broken})
    assert response.status_code == 422 and "is no valid data URL" in response.text


def test_waiting_files_block_no_slot_and_no_memory(server: Server, tmp_path: Path) -> None:
    """Four predictions with files run; others with files wait or are refused, and those without pass."""
    with gateway(server.url, tmp_path) as front, httpx.Client(base_url=front.url, timeout=60) as http:
        content = {"content": ("a.txt", b"sleep 2\n" + b"x\n" * 1000)}
        url = http.post("/v1/files", files=content).json()["urls"]["get"]
        body = {"input": {"file": url}}
        names = [http.post(f"/v1/models/e5/{RULE_MODEL}/predictions", json=body).json()["id"] for _ in range(6)]

        def statuses() -> list[str]:
            return [http.get(f"/v1/predictions/{name}").json()["status"] for name in names]

        until(lambda: statuses().count("processing") == uploads.MAX_IN_MEMORY)
        refused = http.post("/predictions", json=body)
        assert refused.status_code == 429 and "predictions with files" in refused.text
        assert http.post("/predictions", json={"input": {"document": "a"}}).json()["status"] == "succeeded"
        assert "processing" in statuses()
        until(lambda: statuses() == ["succeeded"] * 6)
        assert http.post("/predictions", json=body).json()["status"] == "succeeded"


def test_repeated_put_joins_the_first(server: Server, tmp_path: Path) -> None:
    answers: Answers = {"/a.txt": (200, {}, b"sleep 1\n")}
    with web_server(answers) as address, gateway(server.url, tmp_path, "--files-from", "127.0.0.1") as front:
        body = {"input": {"file": f"{address}/a.txt"}}

        def put() -> dict[str, Any]:
            answer: dict[str, Any] = httpx.put(f"{front.url}/predictions/twice", json=body, timeout=60).json()
            return answer

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(put)
            until(lambda: "twice" in server.log.read_text())
            second = pool.submit(put)
            assert first.result()["status"] == "succeeded"
            assert second.result()["status"] in ("processing", "succeeded")


def test_accepted_prediction_with_a_file_survives_the_gateway(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path) as front:
        content = {"content": ("a.txt", b"sleep 3\nb\n")}
        url = httpx.post(f"{front.url}/v1/files", files=content).json()["urls"]["get"]
        body = {"input": {"file": url}}
        name = httpx.post(f"{front.url}/v1/models/e5/{RULE_MODEL}/predictions", json=body).json()["id"]
        front.process.kill()
        front.process.wait()
    with gateway(server.url, tmp_path) as front:
        for _ in range(100):
            prediction = httpx.get(f"{front.url}/v1/predictions/{name}").json()
            if prediction["status"] not in ("starting", "processing"):
                break
            threading.Event().wait(0.1)
    assert prediction["status"] == "succeeded"
    assert base64.b64decode(prediction["output"]["file"].partition("base64,")[2]) == b"sleep 3\nb\n"


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"content": b"x"}, 400, "multipart/form-data"),
        ({"files": {"other": ("a", b"x")}}, 400, "no file called `content`"),
        ({"files": {"content": (None, "x")}}, 400, "no file called `content`"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "cannot be read"),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=punycode"}},
            400,
            "charset",
        ),
        ({"content": b"--x\r\nbad", "headers": {"Content-Type": FORM}}, 400, ""),
        ({"files": {"content": ("a", b"x")}, "data": {"metadata": "[1]"}}, 400, "`metadata` must be a JSON object"),
        ({"files": {"content": ("a", b"x")}, "data": {"name": "b"}}, 400, "more than one file as `content`"),
        ({"files": {"content": ("a", b"x")}, "data": {"metadata": "{"}}, 400, "`metadata` must be a JSON object"),
        ({"files": [("content", ("a", b"x")), ("content", ("b", b"x"))]}, 400, "more than one file as `content`"),
        ({"files": {"content": ("a", b"x" * (uploads.MAX_FILE_BYTES + 1))}}, 413, "larger than 64 MiB"),
    ],
)
def test_bad_uploads_are_refused(client: httpx.Client, sent: dict[str, Any], status: int, words: str) -> None:
    response = client.post("/v1/files", **sent)
    assert response.status_code == status and words in response.text
    assert response.json()["status"] == status


def test_files_need_the_key(shared_gateway: Gateway) -> None:
    assert httpx.post(f"{shared_gateway.url}/v1/files", files={"content": ("a", b"x")}).status_code == 401
    assert httpx.get(f"{shared_gateway.url}/v1/files").status_code == 401


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1e9]
    monkeypatch.setattr("e5_gateway.uploads.time.time", lambda: now[0])
    return now


def without_network(store: Store) -> uploads.Uploads:
    return uploads.Uploads(store, None)  # type: ignore[arg-type]


def test_oldest_files_make_room_after_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(uploads, "MAX_STORED_BYTES", 30)

    async def scenario() -> None:
        async with Store(tmp_path / "store") as store:
            files = without_network(store)

            async def add() -> StoredFile:
                clock[0] += 1
                return await files.add(b"0123456789", "a", "text/plain")

            async def ids() -> list[str]:
                return [file.id for file in await store.files(9, clock[0])]

            added = await asyncio.gather(*(add() for _ in range(5)), return_exceptions=True)
            kept = [file for file in added if isinstance(file, StoredFile)]
            refused = [error for error in added if isinstance(error, GatewayError)]
            assert len(kept) == 3 and all("delete some, or try again later" in str(error) for error in refused)
            await store.insert(prediction_with(kept[0].id))
            clock[0] += 3600
            new = await add()  # kept[0] is an hour old, too, but a prediction waits for it
            assert set(await ids()) == {new.id, kept[2].id, kept[0].id}
            assert await store.file_content(kept[1].id) is None
            clock[0] += 24 * 3600
            assert await ids() == [] and await store.file(new.id, clock[0]) is None
            await store.delete_expired_files(clock[0])
            assert await store.file_content(new.id) is None and await store.file_content(kept[0].id) is not None

    asyncio.run(scenario())


def prediction_with(file_id: str) -> Prediction:
    inputs = json.dumps({"file": f"http://x/v1/files/{file_id}"}).encode()
    return Prediction(
        id="p", model="a/b", version="v", status="starting", created_at=0.0, base="", input=inputs, size=len(inputs)
    )


def test_full_disk_refuses_a_file_and_loses_no_prediction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Store(tmp_path / "store") as store:
            await store._run(lambda: store._database.execute("PRAGMA max_page_count = 40").fetchall())
            file = without_network(store).add(bytes(10**6), "a", "b")
            stored, refused = await asyncio.gather(store.insert(prediction_with("x")), file, return_exceptions=True)
            assert stored is None
            assert isinstance(refused, GatewayError) and refused.status == 503 and "full" in refused.message
            assert await store.get("p") is not None

    asyncio.run(scenario())


def test_deleted_file_is_in_no_file_of_the_database(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Store(tmp_path / "store") as store:
            secret = np.random.default_rng(1).bytes(3000)
            file = await without_network(store).add(secret, "a", "b")
            found = [path for path in tmp_path.iterdir() if secret[1000:1100] in path.read_bytes()]
            assert found
            await store.delete_file(file.id)
            assert not [path for path in tmp_path.iterdir() if secret[1000:1100] in path.read_bytes()]

    asyncio.run(scenario())
