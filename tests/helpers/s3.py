"""An S3 server in this process, which plays faults when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import boto3
import fsspec
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET, SECRET = "videos", "wJalrXUtnFEMI-a-secret-key-of-tests"


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class S3:
    """What tests do with the server.

    Attributes:
        faults: by key, what happens to the next requests for this object, one each: ``500``, ``denied``, ``gone``,
            ``truncated``, ``corrupt``, ``slow`` (nothing comes until the server stops) or ``replaced`` (by other
            content, after its HEAD); the last of a list ending in ``...`` happens for ever.
        gets: the keys of the objects that were downloaded, in order.
        requests: how many requests of any kind have come.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[Any]] = {}
        self.gets: list[str] = []
        self.requests = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Silent)
        self._stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @cached_property
    def client(self) -> Any:
        return boto3.client("s3", endpoint_url=self.url)

    def put(self, key: str, content: bytes) -> str:
        """Writes an object; returns its URL."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def reset(self) -> None:
        """Forgets all objects, faults and requests."""
        self.faults.clear()
        for one in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.client.delete_object(Bucket=BUCKET, Key=one["Key"])
        self.gets.clear()
        self.requests = 0

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        key = environ["PATH_INFO"].encode("latin-1").decode().removeprefix(f"/{BUCKET}/")
        content = environ["REQUEST_METHOD"] == "GET" and not key.startswith("/")
        pending, fault = self.faults.get(key, []), ""
        if pending and (content or pending[0] in ("denied", "gone")):
            fault = pending[0] if pending[1:] == [...] else pending.pop(0)
        if content:
            self.gets.append(key)
        if fault in ("500", "denied", "gone"):
            status = {"500": "500 Internal Server Error", "denied": "403 Forbidden", "gone": "404 Not Found"}[fault]
            start_response(status, [("Content-Length", "0")])
            return []
        if fault == "replaced":
            self.put(key, b"another content of this object")
        answer: list[Any] = []
        body = b"".join(self._app(environ, lambda status, headers, *_: answer.extend([status, headers])))
        start_response(*answer)
        if fault == "corrupt":
            return [bytes([body[0] ^ 1]), body[1:]]
        if fault in ("truncated", "slow"):
            return self._part(body, wait=fault == "slow")
        return [body]

    def _part(self, body: bytes, wait: bool) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        if wait:
            self._stopped.wait()


@contextmanager
def serve_s3() -> Iterator[S3]:
    """A server with one bucket, to which the environment of this process and of its children points."""
    with pytest.MonkeyPatch.context() as patch:
        server = S3()
        values = {"ACCESS_KEY_ID": "AKIATESTS", "SECRET_ACCESS_KEY": SECRET, "DEFAULT_REGION": "us-east-1"}
        for name, value in {**values, "ENDPOINT_URL": server.url}.items():
            patch.setenv(f"AWS_{name}", value)
        server.client.create_bucket(Bucket=BUCKET)
        try:
            yield server
        finally:
            server.stop()
            fsspec.get_filesystem_class("s3").clear_instance_cache()
