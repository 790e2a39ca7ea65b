"""Node's official clients, as npm has them, in front of the gateway: tests/clients/*.mjs, which are examples, too.

Each script prints one JSON object. Its vectors have to be those that the library computes.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5 import DEFAULT_TASK, Embedder, scores, tasks
from e5_cog.repository import ROOT
from tests.clients.test_clients_python import (
    DOCUMENT,
    KEY,
    LONG,
    MANY,
    MODEL,
    PAIR,
    QUERY,
    assert_equal,
    pair,
    unpacked,
)
from tests.gateways import Gateway

CLIENTS = ROOT / "tests" / "clients"
UNREACHABLE = re.compile(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH)\b")
INSTALL = [
    "install",
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
    "--no-package-lock",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
]
FAILING = {"documents": ["a", ""]}

Node = Callable[..., Any]


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tests/clients with its packages. Skips where there is no Node, and no way to the packages."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"NODE'S CLIENTS ARE NOT TESTED: there is no `{program}` on this machine")
    folder = tmp_path_factory.mktemp("node") / "clients"
    shutil.copytree(CLIENTS, folder, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(["npm", *INSTALL], cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    if done.returncode and (code := UNREACHABLE.search(done.stderr)):
        pytest.skip(f"NODE'S CLIENTS ARE NOT TESTED: npm's registry cannot be reached ({code[0]})")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def node(clients: Path, shared_gateway: Gateway) -> Node:
    """Run one script with an object on stdin → the object that it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REPLICATE_"))}
    settings = {"GATEWAY_URL": shared_gateway.url, "GATEWAY_KEY": KEY}
    settings |= {"OPENAI_BASE_URL": f"{shared_gateway.url}/v1", "OPENAI_API_KEY": KEY}

    def run(script: str, **given: object) -> Any:
        done = subprocess.run(
            ["node", script],
            cwd=clients,
            env=kept | settings,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_openai_gets_the_library_s_vectors_in_every_way(node: Node, library: Embedder) -> None:
    queries = [QUERY, *MANY[:4]]
    found = node("openai_embeddings.mjs", model=MODEL, queries=queries, documents=[DOCUMENT, *MANY])
    documents = library.embed_documents([DOCUMENT, *MANY], normalize=True)
    for name in ("batch", "float"):
        assert_equal(found[name], documents)
    assert_equal(np.stack([unpacked(one) for one in found["base64"]]), documents)
    for name in ("single", "environment"):
        assert_equal(found[name], documents[:1])
    for name, task in (("suffix", DEFAULT_TASK), ("field", DEFAULT_TASK), ("task", tasks.instruction("NQ"))):
        assert_equal(found[name], library.embed_queries(queries, task=task, normalize=True))
    assert found["indices"] == list(range(101))
    tokens = library.tokenize([], [DOCUMENT, *MANY], "").total
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found["models"] == [found["retrieved"]["id"]] == [MODEL]
    assert found["request_ids"][0]
    assert len(set(found["request_ids"])) == 1


def test_openai_throws_its_own_error_with_the_reason(node: Node) -> None:
    thrown = node("openai_errors.mjs", model=MODEL)
    kinds = {name: (one["kind"], one["status"], one["code"], one["param"]) for name, one in thrown.items()}
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
    assert all(one["requestID"] for one in thrown.values())


def test_replicate_runs_the_model_in_every_way(node: Node, library: Embedder) -> None:
    found = node("replicate_run.mjs", model=f"e5/{MODEL}", input=PAIR, failing=FAILING)
    expected = pair(library)
    for name in ("block", "block_for_seconds", "poll", "version"):
        assert_equal(found[name]["embeddings"], expected)
        assert found[name]["score"] == pytest.approx(float(scores(expected[:1], expected[1:])[0, 0]), abs=1e-3)
    assert_equal(np.stack([unpacked(one) for one in found["base64"]["embeddings_base64"]]), expected)
    assert found["statuses"][0] in ("starting", "processing")
    assert found["statuses"][-1] == "succeeded"
    assert found["described"] == ["e5", MODEL, *found["versions"]]
    assert {"query", "queries", "document", "documents"} <= set(found["inputs"])


def test_replicate_throws_the_model_s_and_the_gateway_s_words(node: Node) -> None:
    found = node("replicate_run.mjs", model=f"e5/{MODEL}", input=PAIR, failing=FAILING)
    reason = "Prediction failed: `documents[1]` is empty: pass the text to embed, or leave it out"
    assert found["failing"] == found["failing_poll"] == {"message": reason}
    refused = {name: found[name]["status"] for name in ("invalid", "unknown", "stranger")}
    assert refused == {"invalid": 422, "unknown": 404, "stranger": 401}
    assert 'input.query: 5 is not of type \\"string\\"' in found["invalid"]["message"]


def test_replicate_predictions_live_and_end_as_asked(node: Node, library: Embedder) -> None:
    found = node("replicate_predictions.mjs", model=f"e5/{MODEL}", input=PAIR, long=LONG)
    assert found["created"]["status"] in ("starting", "processing")
    assert found["waited"] == found["fetched"]
    for name in ("waited", "blocking"):
        assert found[name]["status"] == "succeeded"
        assert_equal(found[name]["output"]["embeddings"], pair(library))
    assert (found["canceled"]["status"], found["canceled"]["output"]) == ("canceled", None)
    assert found["aborted"]["output"] is None
    assert found["aborted"]["statuses"][-1] == found["aborted"]["after_abort"] == "canceled"
    assert found["listed"][:55] == found["many"][::-1]


def test_replicate_s_client_validates_a_delivered_webhook(node: Node, library: Embedder) -> None:
    found = node("replicate_webhook.mjs", model=f"e5/{MODEL}", input=PAIR)
    assert_equal(found.pop("embeddings"), pair(library))
    assert found == {"same": True, "status": "succeeded", "valid": True, "forged": False}


def test_the_packages_are_pinned_and_nothing_of_a_machine_is_kept() -> None:
    package = json.loads((CLIENTS / "package.json").read_text())
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["dependencies"].values())
    assert {path.suffix for path in CLIENTS.iterdir() if path.name not in ("package.json", "node_modules")} == {".mjs"}
