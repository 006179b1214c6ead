"""A loopback server that fails on command: of the files in a folder over http, or before a server of S3.

Faults come from a queue, one per request, then from `always`; None is an answer as it should be.
"""

import contextlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

import pytest

# A status such as "503", or:
RESET = "reset"  # the connection is cut before an answer
CUT = "cut"  # half of the content comes, under the length of the whole
SHORT = "short"  # half of the content comes, as if it were all (of GET)
STALL = "stall"  # nothing comes
HANG = "hang"  # half of the content comes, and then nothing
DEAF = "deaf"  # the range asked for is ignored (of files in a folder only)
FAULTS = ("500", "503", "429", RESET, CUT, SHORT, STALL, HANG)


Draw = Callable[[str, str], str | None]  # from method and path to a fault


class Request(NamedTuple):
    """What was asked, when."""

    method: str
    path: str
    range: str | None
    fault: str | None
    time: float


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


class FaultyServer:
    """Serves until it is closed. `requests` holds what was asked so far."""

    def __init__(self, answer: Callable[[str, str, dict[str, str], bytes], Answer], stall: float = 3.0) -> None:
        self.answer, self.stall = answer, stall
        self.faults: deque[str | None] = deque()
        self.always: str | Draw | None = None
        self.choose: Callable[[str, str], bool] = lambda method, path: True  # which requests faults are for
        self.requests: list[Request] = []
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def fail(self, *faults: str | None, always: str | Draw | None = None) -> None:
        """Forget the requests so far; fail the next ones so. `always` may be drawn for each request."""
        with self._lock:
            self.faults, self.always = deque(faults), always
            self.requests = []

    def next_fault(self, method: str, path: str, wanted: str | None) -> str | None:
        with self._lock:
            fault = None
            if self.choose(method, path):
                always = self.always(method, path) if callable(self.always) else self.always
                fault = self.faults.popleft() if self.faults else always
            self.requests.append(Request(method, path, wanted, fault, time.monotonic()))
            return fault

    def wait(self) -> None:
        """As long as a stall lasts."""
        self._closed.wait(self.stall)

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyServer

    def handle_any(self) -> None:
        owner = self.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = owner.next_fault(self.command, self.path, self.headers.get("Range"))
        if fault == STALL:
            owner.wait()
            return self._cut()
        if fault == RESET:
            return self._cut()
        if fault and fault.isdigit():
            return self._send(Answer(int(fault), {}, b"try again"), b"try again")
        headers = {name: value for name, value in self.headers.items() if fault != DEAF or name != "Range"}
        answer = owner.answer(self.command, self.path, headers, body)
        half = answer.content[: len(answer.content) // 2]
        if fault == SHORT and self.command != "HEAD":  # a lie about the size as well could not be told from the truth
            return self._send(answer._replace(content=half), half)
        if fault not in (CUT, HANG) or not answer.content:
            return self._send(answer, answer.content)
        self._send(answer, half)
        if fault == HANG:
            owner.wait()
        self._cut(reset=False)

    def _send(self, answer: Answer, content: bytes) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _cut(self, reset: bool = True) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


def serve_folder(folder: Path, stall: float = 3.0) -> FaultyServer:
    """The files of a folder, with ranges and listings."""

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        target = folder / unquote(urlsplit(path).path).lstrip("/")
        if target.is_dir():
            links = "".join(f'<a href="{quote(p.name)}{"/" * p.is_dir()}">{p.name}</a>\n' for p in target.iterdir())
            return Answer(200, {"Content-Type": "text/html"}, f'<a href="?C=N;O=D">sort</a>\n{links}'.encode())
        if not target.is_file():
            return Answer(404, {}, b"not here")
        content, etag = target.read_bytes(), f'"{target.stat().st_mtime_ns}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        if not wanted:
            return Answer(200, {"ETag": etag}, content)
        start, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return Answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"beyond the end")
        place = f"bytes {start}-{last}/{len(content)}"
        return Answer(206, {"ETag": etag, "Content-Range": place}, content[start : last + 1])

    return FaultyServer(answer, stall)


def before(address: str, stall: float = 3.0) -> FaultyServer:
    """A proxy that hands every request on to the server at `host:port`."""

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request(method, path, body or None, {k: v for k, v in headers.items() if k.lower() != "connection"})
        reply = connection.getresponse()
        content = reply.read()
        dropped = ("connection", "transfer-encoding", "date", "server")
        kept = {name: value for name, value in reply.getheaders() if name.lower() not in dropped}
        if method != "HEAD":
            kept.pop("Content-Length", None)
        connection.close()
        return Answer(reply.status, kept, content)

    return FaultyServer(answer, stall)


@contextlib.contextmanager
def bucket(contents: dict[str, bytes], stall: float = 3.0) -> Iterator[FaultyServer]:
    """A proxy before an S3 whose bucket `bucket` holds contents by key; what this process asks of S3 goes there."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    behind = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    behind.start()
    address = "{}:{}".format(*behind.get_host_and_port())
    server = before(address, stall)
    with pytest.MonkeyPatch.context() as patch:
        settings = {"ACCESS_KEY_ID": "none", "SECRET_ACCESS_KEY": "none", "DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"ENDPOINT_URL": server.url}).items():
            patch.setenv(f"AWS_{name}", value)
        reset = http.client.HTTPConnection(address, timeout=30)
        reset.request("POST", "/moto-api/reset")  # or what another server of this process held would be there
        assert reset.getresponse().status == 200
        reset.close()
        client = boto3.client("s3", endpoint_url=f"http://{address}")
        client.create_bucket(Bucket="bucket")
        for key, content in contents.items():
            client.put_object(Bucket="bucket", Key=key, Body=content)
        yield server
    server.close()
    behind.stop()
