"""A fake model hub: an HTTP server on 127.0.0.1 that implements the requests of huggingface_hub.

Supports: the listing of a repository at a commit (`/api/models/…/revision/…?blobs=true`), HEAD and GET of
`/<repo>/resolve/<commit>/<file>` with the hub's headers, the redirect of LFS files to another host (here another port
and host name), ranges, and the faults that a download must survive. Does not support: Xet storage itself (it can be
offered, to test its failure), branches, uploads, private repositories.

Also: the small checkpoints that its repositories and the tests' folders contain.
"""

import hashlib
import io
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from safetensors.numpy import save

LFS = (".safetensors", ".bin", "tokenizer.json")


@dataclass
class Fault:
    """What goes wrong with the first `times` GET requests of a file."""

    times: int = 1_000_000
    cut_after: int | None = None  # bytes sent before the connection is reset
    close_after: int | None = None  # bytes sent before the connection is closed normally
    flip: bool = False  # corrupts the last byte
    status: int | None = None  # sent instead of the file
    hold_at: int | None = None  # bytes sent before setting `Hub.held` and waiting for `Hub.go_on`; sets `Hub.ended`
    ranges: bool = True  # whether the server honours Range
    content_range: str | None = None  # sent with status 206, whatever was requested
    endless: bool = False  # sends up to 50 MB more, without a length


@dataclass
class Hub:
    """The server and a record of its requests. A context manager; `url` is for HF_ENDPOINT."""

    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    listing_status: list[int] = field(default_factory=list)
    """Statuses of the next listings; a negative one stays (-503: always 503)."""
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to the listing's entries, by path."""
    raw_listing: bytes | None = None
    """Sent instead of the listing."""
    certificate: Path | None = None
    """A PEM file with key and certificate for 127.0.0.1: the hub uses HTTPS, the other host does not."""
    gated: dict[str, int] = field(default_factory=dict)
    """Repositories whose files (but not the listing) answer with this status and GatedRepo."""
    offer_xet: Counter[str] = field(default_factory=Counter)
    """How many of the next HEAD requests of a file offer Xet storage, which this hub does not have."""
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of each file's content written to sockets, over all requests."""
    tokens: dict[str, set[str | None]] = field(default_factory=lambda: {"hub": set(), "cdn": set()})
    """The Authorization headers that each of the two hosts has received."""
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Hub":
        hub = self
        handler = type("Bound", (_Handler,), {"hub": hub})
        self.servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        # Two host names: huggingface_hub 1 treats two ports of one name as one host.
        hosts = ("127.0.0.1", "localhost")
        addresses = zip(hosts, self.servers, strict=True)
        self.url, self.cdn = (f"http://{host}:{server.server_port}" for host, server in addresses)
        if self.certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.certificate)
            self.servers[0].socket = tls.wrap_socket(self.servers[0].socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, revision: str, files: dict[str, bytes]) -> None:
        self.repos.setdefault((repo, revision), {}).update(files)

    def forget(self) -> None:
        """Reset the record of requests and bytes."""
        self.requests.clear()
        self.sent.clear()

    def listing(self, repo: str, revision: str) -> dict[str, Any]:
        siblings = []
        for path, content in self.repos[repo, revision].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_blob(content)}
            if path.endswith(LFS):
                entry["blobId"] = git_blob(b"pointer of " + path.encode())
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry | self.listed.get(path, {}))
        return {"_id": "0", "id": repo, "modelId": repo, "sha": revision, "private": False, "siblings": siblings}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def tensors(seed: int, size: int = 300_000) -> bytes:
    return save({"weight": np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)})


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def pickled() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return file.getvalue()


def sharded(model_type: str, seed: int, count: int) -> dict[str, bytes]:
    shards = {f"model-{n:05}-of-{count:05}.safetensors": tensors(seed + n) for n in range(1, count + 1)}
    index = {"metadata": {}, "weight_map": {f"layer.{n}": name for n, name in enumerate(shards)}}
    config = {"config.json": as_json({"model_type": model_type}), "model.safetensors.index.json": as_json(index)}
    return config | shards


def encoder() -> dict[str, bytes]:
    return {
        "config.json": as_json({"model_type": "bert"}),
        "tokenizer.json": as_json({"version": "1.0", "model": {"type": "WordPiece"}}),
        "model.safetensors": tensors(1),
    }


def adapter() -> dict[str, bytes]:
    return {"adapter_config.json": as_json({"r": 16}), "adapter_model.safetensors": tensors(2, 5000)}


TOKENIZER = {"tokenizer.json": as_json({"version": "1.0", "model": {"type": "BPE"}})}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may be killed
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not path.startswith("/api/models/") and "/resolve/" not in path:
            return self._refuse(404, "")  # a daily request of huggingface_hub 2 for its User-Agent: not recorded
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens["cdn" if path.startswith("/cdn/") else "hub"].add(self.headers.get("Authorization"))
        repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        if path.startswith("/api/models/") and revision:
            return self._list(repo, revision)
        repo, _, rest = path.removeprefix("/cdn").removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if (repo, revision) not in self.hub.repos:
            return self._refuse_unknown(repo)
        if repo in self.hub.gated:
            return self._refuse(self.hub.gated[repo], "GatedRepo")
        content = self.hub.repos[repo, revision].get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        return self._file(path, revision, name, content)

    def _list(self, repo: str, revision: str) -> None:
        statuses = self.hub.listing_status
        if statuses:
            status = statuses[0] if statuses[0] < 0 else statuses.pop(0)
            return self._refuse(abs(status), "Busy")
        if (repo, revision) not in self.hub.repos:
            return self._refuse_unknown(repo)
        listing = self.hub.raw_listing or as_json(self.hub.listing(repo, revision))
        return self._send(200, listing, {"X-Repo-Commit": revision})

    def _refuse_unknown(self, repo: str) -> None:
        known = any(repo == name for name, _ in self.hub.repos)
        self._refuse(404, "RevisionNotFound" if known else "RepoNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _file(self, path: str, revision: str, name: str, content: bytes) -> None:
        etag = sha256(content) if name.endswith(LFS) else git_blob(content)
        headers = {"X-Repo-Commit": revision, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if name.endswith(LFS) and not path.startswith("/cdn/"):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            if self.command == "HEAD" and self.hub.offer_xet[name] > 0:
                self.hub.offer_xet[name] -= 1
                headers |= {"X-Xet-Hash": etag, "X-Xet-Refresh-Route": f"{self.hub.url}/api/xet-read-token"}
            return self._send(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn{path}"})
        if self.command == "HEAD":
            return self._send(200, b"", headers, length=len(content))
        return self._content(name, content, headers)

    def _content(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        fault = self.hub.faults.get(name, Fault())
        fault.times -= 1
        if fault.times < 0:
            fault = Fault()
        if fault.status is not None:
            self._refuse(fault.status, "Busy")
            return
        if fault.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, start = 200, 0
        requested = self.headers.get("Range")
        if requested and fault.ranges:
            status, start = 206, int(requested.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault.content_range:
            status, headers["Content-Range"] = 206, fault.content_range
        self._head(status, headers, None if fault.endless else len(content) - start)
        if fault.endless:
            self.close_connection = True
            self._body(name, content + bytes(50_000_000))
            return
        stop = len(content)
        for limit in (fault.cut_after, fault.close_after):
            stop = stop if limit is None else min(stop, start + limit)
        if fault.hold_at is not None:
            self._body(name, content[start : fault.hold_at])
            start = fault.hold_at
            self.hub.held.set()
            self.hub.go_on.wait(60)
        self._body(name, content[start:stop])
        if fault.hold_at is not None:
            self.hub.ended.set()
        if stop < len(content):
            self.close_connection = True
            if fault.cut_after is not None:
                time.sleep(0.05)  # a reset discards what the client has not read yet
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())

    def _body(self, name: str, content: bytes) -> None:
        for at in range(0, len(content), 1 << 16):
            chunk = content[at : at + (1 << 16)]
            try:
                self.wfile.write(chunk)
            except OSError:  # the client was killed
                self.close_connection = True
                return
            self.hub.sent[name] += len(chunk)

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self._head(status, headers, len(body) if length is None else length)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
