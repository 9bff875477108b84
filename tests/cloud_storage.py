"""A small Google Cloud Storage over HTTP, for the libraries that use one: TensorStore, gcsfs, Google's own.

It speaks what they use of the JSON API (cloud.google.com/storage/docs/json_api): buckets, listing with prefix
and delimiter, uploads (media, multipart, resumable), reads with ranges, deletes, moves, copies, generations.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import email
import http.server
import itertools
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

import google_crc32c
import pytest

from research.data.object_store import filesystem

_API = re.compile(
    r"/storage/v1/b/(?P<bucket>[^/]+)(/o(/(?P<name>[^/]+)(/(?P<verb>moveTo|rewriteTo)(?P<to>.*))?)?)?"
)


@dataclasses.dataclass
class Stored:
    """One object."""

    content: bytes
    generation: int
    time: str


class ObjectStore(http.server.ThreadingHTTPServer):
    """The store, serving on a port of this machine while the context lasts.

    Attributes:
      buckets: bucket -> name -> object.
      requests: (method, bucket, name) of every request.
      refuse: (method, bucket, name) -> status to answer with, or None.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *buckets: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, Stored]] = {bucket: {} for bucket in buckets}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refuse: Callable[[str, str, str], int | None] = lambda method, bucket, name: None
        self.guard, self._generations = threading.RLock(), itertools.count(1)

    def __enter__(self) -> ObjectStore:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that have gone: gcsfs asks two ways at once and hangs up on the slower."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the clients' libraries find it."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}

    def put(self, bucket: str, name: str, content: bytes) -> Stored:
        """Stores an object."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        with self.guard:
            made = self.buckets[bucket][name] = Stored(content, next(self._generations), stamp)
        return made

    def names(self, bucket: str) -> list[str]:
        """Returns the names of all objects, sorted."""
        with self.guard:
            return sorted(self.buckets[bucket])


def crc32c(content: bytes) -> str:
    """Returns the checksum as the API writes it."""
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _serve(self) -> None:
        self.body = self._body()
        url = urllib.parse.urlsplit(self.path)
        self.query = {key: values[-1] for key, values in urllib.parse.parse_qs(url.query).items()}
        path = re.sub("^/(upload|download)(?=/)", "", url.path)
        found = _API.fullmatch(path)
        if found is None:
            return self._error(404, f"no such method: {path}")
        self.bucket, name = found["bucket"], found["name"]
        self.name = urllib.parse.unquote(name or self.query.get("name", ""))
        self.server.requests.append((self.command, self.bucket, self.name))
        if status := self.server.refuse(self.command, self.bucket, self.name):
            return self._error(status, "caller does not have storage access")
        if self.bucket not in self.server.buckets:
            return self._error(404, "The specified bucket does not exist.")
        if self.command == "GET" and "/o" not in path:
            return self._json({"kind": "storage#bucket", "id": self.bucket, "name": self.bucket})
        with self.server.guard:
            if found["verb"]:
                return self._copy(found["verb"], urllib.parse.unquote(found["to"].split("/o/")[-1]))
            if url.path.startswith("/upload"):
                return self._upload()
            if name is None:
                return self._list()
            if self.name not in self.server.buckets[self.bucket]:
                return self._error(404, f"No such object: {self.bucket}/{self.name}")
            return self._delete() if self.command == "DELETE" else self._read()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _upload(self) -> None:
        kind = self.query.get("uploadType")
        if kind == "resumable" and "upload_id" not in self.query:
            identity = f"u{len(self.server.uploads)}"
            self.server.uploads[identity] = (self.name or json.loads(self.body)["name"], bytearray())
            address = f"http://127.0.0.1:{self.server.server_port}{self.path.split('?')[0]}"
            query = f"uploadType=resumable&upload_id={identity}"
            return self._answer(200, b"{}", {"Location": f"{address}?{query}"})
        if kind == "resumable":
            self.name, received = self.server.uploads[self.query["upload_id"]]
            received += self.body
            if self.headers.get("Content-Range", "").endswith("/*"):  # more is to come
                return self._answer(308, b"", {"Range": f"bytes=0-{len(received) - 1}"})
            content = bytes(received)
        elif kind == "multipart":
            header = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
            described, media = self._parts(header)
            self.name, content = json.loads(described)["name"], media
        else:
            content = self.body
        if "ifGenerationMatch" in self.query:
            there = self.server.buckets[self.bucket].get(self.name)
            if (there.generation if there else 0) != int(self.query["ifGenerationMatch"]):
                return self._error(412, "At least one of the pre-conditions you specified did not hold.")
        self.server.put(self.bucket, self.name, content)
        return self._json(self._described(self.name))

    def _parts(self, header: bytes) -> list[bytes]:
        boundary = email.message_from_bytes(header).get_boundary()
        assert boundary is not None
        pieces = self.body.split(b"--" + boundary.encode())[1:-1]
        return [
            re.split(rb"\r?\n\r?\n", piece, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
            for piece in pieces
        ]

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        names, prefixes = [], set()
        for name in self.server.names(self.bucket):
            if not name.startswith(prefix) or name < self.query.get("startOffset", ""):
                continue
            if "endOffset" in self.query and name >= self.query["endOffset"]:
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                names.append(name)
        names = names[: int(self.query.get("maxResults", len(names)))]
        items = [self._described(name) for name in names]
        self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _read(self) -> None:
        stored = self.server.buckets[self.bucket][self.name]
        if self.query.get("alt") != "media":
            return self._json(self._described(self.name))
        content, headers = stored.content, {"x-goog-generation": str(stored.generation)}
        headers["x-goog-hash"] = f"crc32c={crc32c(content)}"
        if span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            size = len(content)
            first = int(span[1]) if span[1] else size - int(span[2])
            last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
            if first >= size:
                return self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            return self._answer(206, content[first : last + 1], headers)
        return self._answer(200, content, headers)

    def _delete(self) -> None:
        del self.server.buckets[self.bucket][self.name]
        self._answer(204, b"", {})

    def _copy(self, verb: str, name: str) -> None:
        if self.name not in self.server.buckets[self.bucket]:
            return self._error(404, f"No such object: {self.bucket}/{self.name}")
        self.server.put(self.bucket, name, self.server.buckets[self.bucket][self.name].content)
        if verb == "moveTo":
            del self.server.buckets[self.bucket][self.name]
            return self._json(self._described(name))
        return self._json({"done": True, "resource": self._described(name)})

    def _described(self, name: str) -> dict[str, str]:
        stored = self.server.buckets[self.bucket][name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "size": str(len(stored.content)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "etag": f"e{stored.generation}",
            "crc32c": crc32c(stored.content),
            "timeCreated": stored.time,
            "updated": stored.time,
        }

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _error(self, status: int, message: str) -> None:
        body = json.dumps({"error": {"code": status, "message": message}}).encode()
        self._answer(status, body, {"Content-Type": "application/json; charset=UTF-8"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def in_use(bucket: str) -> Iterator[ObjectStore]:
    """Starts a store with one bucket, and makes it the one that this process's libraries use."""
    with ObjectStore(bucket) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        filesystem.cache_clear()
        filesystem().clear_instance_cache()
        yield store
    filesystem.cache_clear()
