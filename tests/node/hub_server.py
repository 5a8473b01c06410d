"""A Hugging Face hub on loopback: the part of its HTTP interface that huggingface_hub and shoal speak.

Repositories are folders. Weight files are served as git LFS does: hash and size in the metadata and in headers.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
STALL_S = 60.0
_INFO = re.compile(r"^/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?$")
_FILE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass(slots=True)
class Hub:
    """What the server offers and what it was asked."""

    repositories: dict[str, Path]
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    cut_after: int | None = None  # bytes of the next weight file's body before the connection breaks, once
    lies: bool = False  # weight files arrive with one byte changed
    stall_after: int | None = None  # bytes of the next weight file's body before the rest waits for `go_on`, once
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def downloads(self) -> dict[str, list[str]]:
        """Ranges asked of each file with GET."""
        found: dict[str, list[str]] = {}
        for method, path, wanted in self.requests:
            if (match := _FILE.match(path)) and method == "GET":
                found.setdefault(match[3], []).append(wanted)
        return found


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            info, file = _INFO.match(path), _FILE.match(path)
            name = info[1] if info else file[1] if file else ""
            folder = hub.repositories.get(name)
            if folder is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            elif info:
                self._send(200, json.dumps(_metadata(name, folder)).encode(), {}, body=body)
            elif file and (folder / file[3]).is_file():
                self._send_file(folder / file[3], body=body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)

        def _send_file(self, path: Path, *, body: bool) -> None:
            content = path.read_bytes()
            weights = path.suffix == ".safetensors"
            headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "ETag": f'"{_git_hash(content)}"'}
            if weights:
                digest = hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                if hub.lies:
                    content = content[:-1] + bytes([content[-1] ^ 1])
            match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not match:
                self._send(200, content, headers, body=body, cuttable=weights)
                return
            start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            self._send(206, content[start:stop], headers, body=body, cuttable=not match[2])

        def _send(
            self, status: int, content: bytes, headers: dict[str, str], *, body: bool, cuttable: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            if cuttable and hub.cut_after is not None:
                content, hub.cut_after = content[: hub.cut_after], None
                self.close_connection = True
            if cuttable and hub.stall_after is not None:
                first, content, hub.stall_after = content[: hub.stall_after], content[hub.stall_after :], None
                self.wfile.write(first)
                hub.stalled.set()
                hub.go_on.wait(STALL_S)
            with suppress(ConnectionError):  # whoever asked has gone meanwhile
                self.wfile.write(content)

    return Handler


def _metadata(name: str, folder: Path) -> dict[str, object]:
    siblings = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        entry: dict[str, object] = {"rfilename": path.name, "size": len(content), "blobId": _git_hash(content)}
        if path.suffix == ".safetensors":
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
