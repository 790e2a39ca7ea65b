"""The official Node clients of OpenAI and Replicate, from npm, against the gateway.

The scripts tests/clients/node/*.mjs, also examples, each print one JSON object. Every vector must equal the library's.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from e5 import DEFAULT_TASK, Embedder, scores, tasks
from e5.corpus.parts import to_vectors
from e5_cog.repository import ROOT
from tests import npm
from tests.clients.test_clients_python import (
    DOCUMENT,
    KEY,
    LONG,
    MANY,
    MODEL,
    PAIR,
    QUERY,
    assert_equal,
    decoded,
    pair,
)
from tests.gateways import Gateway

CLIENTS = ROOT / "tests" / "clients" / "node"
FAILING = {"documents": ["a", ""]}

Node = Callable[..., Any]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tests/clients/node with its npm packages. Skips without Node or a connection to the registry."""
    folder = tmp_path_factory.mktemp("node") / "clients"
    shutil.copytree(CLIENTS, folder, ignore=shutil.ignore_patterns("node_modules"))
    npm.install(folder, "NODE'S CLIENTS ARE NOT TESTED")
    return folder


@pytest.fixture(scope="module")
def node(clients: Path, shared_gateway: Gateway) -> Node:
    """Runs a script with a JSON object on stdin and returns the object that it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REPLICATE_"))}
    settings = {"GATEWAY_URL": shared_gateway.url, "GATEWAY_KEY": KEY}
    settings |= {"OPENAI_BASE_URL": f"{shared_gateway.url}/v1", "OPENAI_API_KEY": KEY}

    def run(script: str, **inputs: object) -> Any:
        done = subprocess.run(
            ["node", script],
            cwd=clients,
            env=inherited | settings,
            input=json.dumps(inputs),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_openai_vectors_equal_the_librarys(node: Node, library: Embedder) -> None:
    queries = [QUERY, *MANY[:4]]
    printed = node("openai_embeddings.mjs", model=MODEL, queries=queries, documents=[DOCUMENT, *MANY])
    documents = library.embed_documents([DOCUMENT, *MANY], normalize=True)
    for name in ("batch", "float"):
        assert_equal(printed[name], documents)
    assert_equal(np.stack([decoded(text) for text in printed["base64"]]), documents)
    for name in ("single", "environment"):
        assert_equal(printed[name], documents[:1])
    for name, task in (("suffix", DEFAULT_TASK), ("field", DEFAULT_TASK), ("task", tasks.instruction("NQ"))):
        assert_equal(printed[name], library.embed_queries(queries, task=task, normalize=True))
    assert printed["indices"] == list(range(101))
    tokens = library.tokenize([], [DOCUMENT, *MANY], "").total
    assert printed["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert printed["models"] == [printed["retrieved"]["id"]] == [MODEL]
    assert printed["request_ids"][0]
    assert len(set(printed["request_ids"])) == 1


def test_openai_throws_its_error_classes_with_the_message(node: Node) -> None:
    thrown = node("openai_errors.mjs", model=MODEL)
    kinds = {name: (error["kind"], error["status"], error["code"], error["param"]) for name, error in thrown.items()}
    assert kinds == {
        "empty": ("BadRequestError", 400, None, "input"),
        "empty in a list": ("BadRequestError", 400, None, "input"),
        "token ids": ("BadRequestError", 400, None, "input"),
        "dimensions": ("BadRequestError", 400, None, "dimensions"),
        "model": ("NotFoundError", 404, "model_not_found", "model"),
        "retrieve": ("NotFoundError", 404, "model_not_found", "model"),
        "key": ("AuthenticationError", 401, "invalid_api_key", None),
    }
    assert thrown["empty in a list"]["message"].startswith("400 `input[1]` is empty")
    assert "token ids, which belong to another model's tokenizer" in thrown["token ids"]["message"]
    assert MODEL in thrown["model"]["message"]
    assert all(error["requestID"] for error in thrown.values())


def test_replicate_run_returns_the_librarys_vectors(node: Node, library: Embedder) -> None:
    printed = node("replicate_run.mjs", model=f"e5/{MODEL}", input=PAIR, failing=FAILING)
    expected = pair(library)
    for name in ("block", "block_for_seconds", "poll", "version"):
        assert_equal(printed[name]["embeddings"], expected)
        assert printed[name]["score"] == pytest.approx(float(scores(expected[:1], expected[1:])[0, 0]), abs=1e-3)
    assert_equal(np.stack([decoded(text) for text in printed["base64"]["embeddings_base64"]]), expected)
    assert printed["statuses"][0] in ("starting", "processing")
    assert printed["statuses"][-1] == "succeeded"
    assert printed["described"] == ["e5", MODEL, *printed["versions"]]
    assert {"query", "queries", "document", "documents"} <= set(printed["inputs"])


def test_replicate_throws_the_models_and_the_gateways_messages(node: Node) -> None:
    printed = node("replicate_run.mjs", model=f"e5/{MODEL}", input=PAIR, failing=FAILING)
    reason = "Prediction failed: `documents[1]` is empty: pass the text to embed, or leave it out"
    assert printed["failing"] == printed["failing_poll"] == {"message": reason}
    refused = {name: printed[name]["status"] for name in ("invalid", "unknown", "stranger")}
    assert refused == {"invalid": 422, "unknown": 404, "stranger": 401}
    assert 'input.query: 5 is not of type \\"string\\"' in printed["invalid"]["message"]


def test_replicate_predictions_end_as_requested(node: Node, library: Embedder) -> None:
    printed = node("replicate_predictions.mjs", model=f"e5/{MODEL}", input=PAIR, long=LONG)
    assert printed["created"]["status"] in ("starting", "processing")
    assert printed["waited"] == printed["fetched"]
    for name in ("waited", "blocking"):
        assert printed[name]["status"] == "succeeded"
        assert_equal(printed[name]["output"]["embeddings"], pair(library))
    assert (printed["canceled"]["status"], printed["canceled"]["output"]) == ("canceled", None)
    assert printed["aborted"]["output"] is None
    assert printed["aborted"]["statuses"][-1] == printed["aborted"]["after_abort"] == "canceled"
    assert printed["listed"][:55] == printed["many"][::-1]


def test_replicate_client_validates_a_webhook(node: Node, library: Embedder) -> None:
    printed = node("replicate_webhook.mjs", model=f"e5/{MODEL}", input=PAIR)
    assert_equal(printed.pop("embeddings"), pair(library))
    assert printed == {"same": True, "status": "succeeded", "valid": True, "forged": False}


def test_npm_packages_are_pinned_and_not_committed() -> None:
    package = json.loads((CLIENTS / "package.json").read_text())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
    assert {path.suffix for path in CLIENTS.iterdir() if path.name not in ("package.json", "node_modules")} == {".mjs"}


def test_replicate_files_go_in_and_come_out(node: Node, library: Embedder) -> None:
    content = "".join(json.dumps({"text": text}) + "\n" for text in MANY)
    printed = node("replicate_files.mjs", model=f"e5/{MODEL}", content=content)
    for name in ("upload", "blob"):
        table = pq.read_table(io.BytesIO(base64.b64decode(printed[name])))
        assert_equal(to_vectors(table, "float32"), library.embed_documents(MANY))
    uploaded = printed["uploaded"]
    assert (uploaded["name"], uploaded["size"], uploaded["metadata"]) == ("texts.jsonl", len(content), {"kind": "test"})
    assert (printed["again"], printed["listed"], printed["deleted"]) == (uploaded, True, True)
