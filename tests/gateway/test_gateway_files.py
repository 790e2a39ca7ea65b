"""Files through the gateway: uploads as Replicate's clients send them, URLs that it fetches itself, data URLs."""

import asyncio
import base64
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from e5_gateway.store import Store, StoredFile
from tests.gateways import Gateway, gateway
from tests.reference import relative_l2
from tests.rule_predictor import MODEL as RULE_MODEL

MODEL = "e5-mistral-tiny"
TEXTS = [f"text {index} " + "word " * index for index in range(20)]
JSONL = "".join(json.dumps({"id": f"r{index}", "text": text}) + "\n" for index, text in enumerate(TEXTS)).encode()


@pytest.fixture(scope="module")
def client(shared_gateway: Gateway) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer test-key"}
    with httpx.Client(base_url=shared_gateway.url, headers=headers, timeout=60) as client:
        yield client


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
    with pytest.raises(ReplicateError, match="there is no such file here"):
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
        ("https://api.replicate.com/v1/files/0123456789abcdefghjkmnpqrs", "there is no such file here"),
    ],
)
@pytest.mark.parametrize("path", [f"/v1/models/e5/{MODEL}/predictions", "/predictions"])
def test_server_is_never_sent_elsewhere(client: httpx.Client, path: str, url: str, words: str) -> None:
    response = client.post(path, json={"input": {"file": url}}, headers={"Prefer": "wait"})
    assert response.status_code == 422 and words in response.text and "input.file" in response.text


def test_targets_cannot_be_reached_by_a_file(server: Server, tmp_path: Path) -> None:
    with gateway(server.url, tmp_path, "--webhooks-to", "127.0.0.1") as front:
        address = f"{server.url}/health-check"
        response = httpx.post(f"{front.url}/predictions", json={"input": {"file": address}}, timeout=30)
    assert response.status_code == 422 and "is a Cog server" in response.text


@contextmanager
def web_server(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client has read enough
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_urls_are_fetched_by_the_gateway(server: Server, tmp_path: Path) -> None:
    """The rule predictor returns the file as it came."""
    answers = {
        "/a.txt": (200, {}, b"one two\nthree\n"),
        "/moved": (302, {"Location": "/a.txt"}, b""),
        "/inner": (302, {"Location": "http://10.0.0.1/a.txt"}, b""),
        "/local": (302, {"Location": "file:///etc/passwd"}, b""),
        "/circle": (302, {"Location": "/circle"}, b""),
        "/missing": (404, {}, b"no"),
        "/large": (200, {}, b"x" * (uploads.MAX_FILE_BYTES + 1)),
    }
    with web_server(answers) as address, gateway(server.url, tmp_path, "--webhooks-to", "127.0.0.1") as front:

        def predictions(path: str) -> Iterator[httpx.Response]:
            for route in ("/predictions", f"/v1/models/e5/{RULE_MODEL}/predictions"):
                body = {"input": {"file": f"{address}{path}"}}
                yield httpx.post(front.url + route, json=body, headers={"Prefer": "wait"}, timeout=60)

        for path in ("/a.txt", "/moved"):
            for response in predictions(path):
                prediction = response.json()
                assert prediction["status"] == "succeeded", prediction
                content = prediction["output"]["file"].partition("base64,")[2]
                assert base64.b64decode(content) == b"one two\nthree\n"
                assert prediction["metrics"]["texts"] == 2
        refused = {
            "/inner": "10.0.0.1 is not a public address",
            "/local": "must be a URL",
            "/circle": "leads to more than 5 other URLs",
            "/missing": "answers HTTP 404",
        }
        for path, words in refused.items():
            for response in predictions(path):
                assert response.status_code == 422 and words in response.text, (path, response.text)
        for response in predictions("/large"):
            assert response.status_code == 413 and "larger than 64 MiB" in response.text
        kept = httpx.get(f"{front.url}/v1/predictions").json()["results"][0]["id"]
        url = httpx.get(f"{front.url}/v1/predictions/{kept}").json()["input"]["file"]
        assert url.startswith(f"{front.url}/v1/files/")  # the answer does not repeat the content


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
        ({"content": b"--x\r\nbad", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, ""),
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


def test_oldest_files_make_room_after_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_STORED_BYTES", 30)
    now = [1e9]
    monkeypatch.setattr("e5_gateway.uploads.time.time", lambda: now[0])

    async def scenario() -> None:
        async with Store(tmp_path / "store") as store:
            files = uploads.Uploads(store, None)  # type: ignore[arg-type]  # nothing is fetched

            async def add() -> StoredFile:
                now[0] += 1
                return await files.add(b"0123456789", "a", "text/plain")

            first, second, third = [await add() for _ in range(3)]
            with pytest.raises(GatewayError, match="delete some, or try again later"):
                await add()
            now[0] += 3599
            fourth = await add()  # the first one is an hour old
            assert [file.id for file in await store.files(9)] == [fourth.id, third.id, second.id]
            assert await store.file_content(first.id) is None
            now[0] += 24 * 3600
            fifth = await add()
            assert [file.id for file in await store.files(9)] == [fifth.id]

    asyncio.run(scenario())


def test_deleted_file_is_in_no_file_of_the_database(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Store(tmp_path / "store") as store:
            secret = np.random.default_rng(1).bytes(3000)
            file = await uploads.Uploads(store, None).add(secret, "a", "b")  # type: ignore[arg-type]
            found = [path for path in tmp_path.iterdir() if secret[1000:1100] in path.read_bytes()]
            assert found
            await store.delete_file(file.id)
            assert not [path for path in tmp_path.iterdir() if secret[1000:1100] in path.read_bytes()]

    asyncio.run(scenario())
