"""Files that fsspec reaches over a network: one request for a range, repeated while its failure may pass."""

import asyncio
import errno
import html
import logging
import os
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from data.failures import SourceError, passing, public, reason, refuse

T = TypeVar("T")

NO_RANGES = "the server ignores ranges and sends more than asked"
JITTER = random.SystemRandom()  # leaves the seeded generators alone, and differs between forked processes
GRACE = 5.0  # seconds after which a request that does not end with its time is left alone

logger = logging.getLogger(__name__)


class SourceConfig(BaseModel):
    """How shards are fetched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    attempts: int = Field(8, ge=1, description="attempts of one remote read before the run stops")
    wait: float = Field(0.5, gt=0, description="seconds before the second attempt; doubled before each further one")
    longest_wait: float = Field(30.0, gt=0, description="seconds between two attempts at most")
    timeout: float = Field(60.0, gt=0, description="seconds one attempt may take")
    cache: Path | None = Field(None, description="folder on a local disk that keeps remote ranges, or null")
    cache_bytes: ByteSize = Field(ByteSize(10**11), gt=0, description="size of the cache at most, such as 100GB")


class Remote:
    """Files that fsspec reaches, each request repeated while its failure may pass."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self._filesystems: dict[tuple[int, str], Any] = {}
        self._closed = threading.Event()
        self._underway: set[Future[Any]] = set()

    def close(self) -> None:
        """End what is underway in other threads; it, and whatever is asked for later, ends in a SourceError."""
        self._closed.set()
        for request in list(self._underway):
            request.cancel()

    def read(self, url: str, start: int, end: int | None) -> bytes:
        """Bytes [start, end), or what there is of them."""
        if start == end:
            return b""
        part = f", bytes {start} to {'its end' if end is None else end}" if start or end is not None else ""
        place = public(url) + part
        return self._attempt(url, lambda: self._fetch(url, start, end), place)

    def about(self, url: str) -> dict[str, Any]:
        """What fsspec tells of a file: its size and more."""
        return self._attempt(url, lambda: self._info(url))

    def version(self, url: str) -> str:
        """What tells a file from another that takes its place."""
        about = self.about(url)
        return " ".join(str(about.get(name)) for name in ("ETag", "Last-Modified", "LastModified", "mtime", "size"))

    def names(self, url: str) -> list[str]:
        """Of the files in a folder; over http, of those that its page links to."""
        entries = self._attempt(url, lambda: self._call(url, "ls", url.rstrip("/") + "/", detail=True))
        folder = self._filesystem(url)._strip_protocol(url).rstrip("/") + "/"
        names = [e["name"].removeprefix(folder) for e in entries if e["type"] == "file" and e["name"] != folder]
        if is_http(url):
            names = [unquote(html.unescape(name)).removeprefix("./") for name in names if not set(name) & set("?#")]
        return sorted(name for name in names if name and "/" not in name)

    def _fetch(self, url: str, start: int, end: int | None) -> bytes:
        """One attempt."""
        limits = {"start": start, "end": end} if start or end is not None else {}
        try:
            content = self._call(url, "cat_file", url, **limits)
        except OSError as error:
            if error.errno == errno.ERANGE or "(InvalidRange)" in str(error.__cause__):
                return b""  # begins where the file has ended
            raise
        if end is not None and len(content) != end - start:
            if len(content) > end - start:
                raise OSError(errno.EINVAL, NO_RANGES)
            size = self._info(url)["size"]
            if size is not None and len(content) < min(end, size) - start:
                raise OSError(errno.EIO, f"{len(content)} of {min(end, size) - start} bytes came")
        return content

    def _info(self, url: str) -> dict[str, Any]:
        try:
            return self._call(url, "info", url)
        except FileNotFoundError as error:  # fsspec turns every failure over http into this one
            if is_http(url) and isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise

    def _attempt(self, url: str, action: Callable[[], T], place: str = "") -> T:
        """What the action returns in the end, or a SourceError. Errors in the program itself pass through."""
        place, wait = place or public(url), min(self.config.wait, self.config.longest_wait)
        try:
            _ = urlsplit(url).port if is_http(url) else None
        except ValueError:  # its text may be a part of a password
            raise SourceError(f"{url.partition(':')[0]}: an address with a malformed host or port; mend it") from None
        self._filesystem(url)  # made before the clock of an attempt runs
        for attempt in range(1, self.config.attempts + 1):
            try:
                if self._closed.is_set():
                    raise CancelledError
                return action()
            except CancelledError:
                raise SourceError(f"{place}: not read, as the source was closed") from None
            except Exception as error:
                if not passing(error):
                    refuse(place, error)
                late = isinstance(error, TimeoutError) and not error.args
                why = f"no whole answer in {self.config.timeout:g} s" if late else reason(error)
            if attempt < self.config.attempts:
                logger.warning(f"{place}: {why}; attempt {attempt} of {self.config.attempts}")
                self._closed.wait(wait * JITTER.uniform(0.5, 1))
                wait = min(wait * 2, self.config.longest_wait)
        mend = "check network and server, or raise `attempts`"
        raise SourceError(f"{place}: failed {self.config.attempts} times, at last with: {why}; {mend}")

    def _call(self, url: str, method: str, *arguments: object, **options: object) -> Any:
        """Ask the file system of a URL, no longer than one attempt may take."""
        filesystem, limit = self._filesystem(url), self.config.timeout
        if not filesystem.async_impl:
            return getattr(filesystem, method)(*arguments, **options)
        action = asyncio.wait_for(getattr(filesystem, f"_{method}")(*arguments, **options), limit)
        request = asyncio.run_coroutine_threadsafe(action, filesystem.loop)
        self._underway.add(request)
        try:
            if self._closed.is_set():
                raise CancelledError
            return request.result(limit + GRACE)
        finally:
            self._underway.discard(request)
            request.cancel()  # if it is left before its end

    def _filesystem(self, url: str) -> Any:
        scheme = url.partition(":")[0].lower()
        key = (os.getpid(), scheme)  # its connections do not survive a fork
        if key not in self._filesystems:
            self._filesystems.setdefault(key, _connect(url, scheme, self.config.timeout))
        return self._filesystems[key]


def _connect(url: str, scheme: str, timeout: float) -> Any:
    """The file system of a scheme, which attempts everything once."""
    options: dict[str, Any] = {}
    if not url.lower().startswith(f"{scheme}://"):
        raise SourceError(f"{public(url)}: not read from; give a folder, or an address of http, https or s3")
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise SourceError(f"{public(url)}: unknown scheme; give a folder, http, https or s3") from error
    except ImportError as error:
        mend = "pip install amvl[s3]" if scheme == "s3" else "install what fsspec needs for it"
        raise SourceError(f"{public(url)}: {error}; {mend}") from error
    if scheme in ("http", "https"):
        import aiohttp

        client = {"timeout": aiohttp.ClientTimeout(None), "raise_for_status": _check_answer, "trust_env": True}
        client["headers"] = {"Accept-Encoding": "identity"}  # ranges are of the file itself
        options["client_kwargs"] = client
    if scheme == "s3":
        once = {"retries": {"total_max_attempts": 1}, "connect_timeout": timeout, "read_timeout": timeout}
        options = {"config_kwargs": once, "use_listings_cache": False}
    filesystem = kind(skip_instance_cache=True, **options)
    if scheme == "s3":
        filesystem.retries = 1
    return filesystem


async def _check_answer(response: Any) -> None:
    """Raise what an answer over http means, before its content is read."""
    status, size = response.status, response.content_length
    if status == 200 and (asked := re.match(r"bytes=(\d+)-(\d*)$", response.request_info.headers.get("Range", ""))):
        if asked[1] == "0" and asked[2] and size is not None and size <= int(asked[2]) + 1:
            return  # all there is, which was asked for
        response.close()
        raise OSError(errno.EINVAL, NO_RANGES)
    if status < 400:
        return
    response.close()
    text = f"{status} {response.reason}"
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, text)
    if status == 416:
        raise OSError(errno.ERANGE, text)
    if status in (401, 403, 407):
        raise PermissionError(errno.EACCES, text)
    raise OSError(errno.EIO if status in (408, 425, 429) or (status >= 500 and status != 501) else errno.EINVAL, text)


def is_http(url: str) -> bool:
    return url.lower().startswith(("http:", "https:"))
