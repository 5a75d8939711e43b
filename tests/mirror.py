"""A mirror of the hub and of torchvision's store on this machine, with the faults that networks have.

Layouts are the genuine ones: `/{repo}/resolve/{revision}/{file}` answers 302 to a content address, with `X-Repo-Commit`, and
for large files `X-Linked-ETag` (SHA-256) and `X-Linked-Size`; small files carry git's blob hash as `ETag`. torchvision's
files lie at the root and carry the start of their SHA-256 in their name.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Mirror(ThreadingHTTPServer):
    """Serves `files` (path → content); `cuts` says after how many bytes the next answers for a path break off, `stops` after
    how many they stop, without an end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.stops: dict[str, int] = {}
        self.over = threading.Event()
        self.lies: set[str] = set()
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put_hub(self, repo: str, revision: str, name: str, content: bytes) -> None:
        self.files[f"/{repo}/resolve/{revision}/{name}"] = content

    def put_torchvision(self, stem: str, content: bytes) -> str:
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        self.files[f"/{name}"] = content
        return name


class _Handler(BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.removeprefix("/cdn")
        self.server.asked.append((self.path, self.headers.get("Range")))
        content = self.server.files.get(path)
        if content is None:
            self._answer(404, {}, b"Entry not found")
        elif "/resolve/" in path and self.path == path:
            self._redirect(path, content)
        else:
            self._send(path, content)

    def _redirect(self, path: str, content: bytes) -> None:
        large = path.endswith(".safetensors")
        digest = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if path in self.server.lies:
            digest = digest[::-1]
        headers = {"Location": f"/cdn{path}", "X-Repo-Commit": path.split("/resolve/")[1].split("/")[0], "ETag": f'"{digest}"'}
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}  # of small files, too
        self._answer(302, headers, b"")

    def _send(self, path: str, content: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self._answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            return
        part = content[start:]
        status = 206 if start else 200
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        cuts = self.server.cuts.get(path)
        if path in self.server.stops:
            self._answer(status, headers, part, cut=self.server.stops[path])
            self.server.over.wait()
            return
        self._answer(status, headers, part, cut=cuts.pop(0) if cuts else None)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def running() -> Iterator[Mirror]:
    mirror = Mirror()
    thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.over.set()
        mirror.shutdown()
        thread.join()
        mirror.server_close()
