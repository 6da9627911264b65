"""A stand-in for Azure's Blob Storage: the few requests that a target of backups makes, over HTTP on loopback.

Put, get, list and delete of block blobs, as https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
describes them, with the account before the container in the path, as Microsoft's own emulator has it. What is signed
with a shared key is checked for whose key it is said to be, and not for the signature.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

ACCOUNT, CONTAINER = "account", "backups"
PAGE = 2
"""Blobs in one answer, so that whoever lists has to ask again."""


class Blobs(ThreadingHTTPServer):
    """One account with one container, in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}/{ACCOUNT}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Blobs

    def _name(self, path: str) -> str | None:
        """The blob that a path names, None for the container itself or another one."""
        match = re.fullmatch(rf"(?:/{ACCOUNT})?/{CONTAINER}/(.+)", unquote(urlsplit(path).path))
        return match[1] if match else None

    def _allowed(self) -> bool:
        return str(self.headers.get("authorization")).startswith(f"SharedKey {ACCOUNT}:")

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def do_PUT(self) -> None:
        body, name = self._body(), self._name(self.path)
        if not self._allowed() or name is None:
            return self._answer(403 if name else 404)
        self.server.blobs[name] = body
        self._answer(201, ETag='"1"', Last_Modified=formatdate(usegmt=True))

    def do_GET(self) -> None:
        query, name = parse_qs(urlsplit(self.path).query), self._name(self.path)
        if not self._allowed():
            return self._answer(403)
        if query.get("comp") == ["list"]:
            return self._list(query.get("prefix", [""])[0], query.get("marker", [""])[0])
        if name not in self.server.blobs:
            return self._answer(404)
        self._answer(200, self.server.blobs[name], ETag='"1"', Last_Modified=formatdate(usegmt=True))

    do_HEAD = do_GET

    def _list(self, prefix: str, marker: str) -> None:
        names = sorted(one for one in self.server.blobs if one.startswith(prefix) and one >= marker)
        found = "".join(
            f"<Blob><Name>{escape(one)}</Name><Properties><Last-Modified>{formatdate(time.time(), usegmt=True)}"
            f"</Last-Modified><Content-Length>{len(self.server.blobs[one])}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><Etag>1</Etag></Properties></Blob>"
            for one in names[:PAGE]
        )
        following = escape(names[PAGE]) if len(names) > PAGE else ""
        text = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Prefix>{escape(prefix)}</Prefix>'
            f"<Blobs>{found}</Blobs><NextMarker>{following}</NextMarker></EnumerationResults>"
        )
        self._answer(200, text.encode(), Content_Type="application/xml")

    def do_POST(self) -> None:
        """A batch of deletions: a part of the answer for each part of the request."""
        body = self._body().decode()
        if not self._allowed():
            return self._answer(403)
        parts = ""
        for number, path in enumerate(re.findall(r"^DELETE (\S+)", body, re.MULTILINE)):
            name = self._name(path)
            gone = name is not None and self.server.blobs.pop(name, None) is not None
            status = "202 Accepted" if gone else "404 The specified blob does not exist."
            error = "" if gone else "x-ms-error-code: BlobNotFound\r\n"
            parts += (
                f"--answer\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status}\r\n{error}x-ms-version: 2023-11-03\r\n\r\n"
            )
        self._answer(202, f"{parts}--answer--\r\n".encode(), Content_Type="multipart/mixed; boundary=answer")

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    """The stand-in, and its key in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    server = Blobs()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)
