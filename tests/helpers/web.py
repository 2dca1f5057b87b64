"""A web server in this process, which plays the faults that the first folder of a URL names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LOGIN = b"\n<!DOCTYPE html><title>Sign in</title>"


class Web:
    """What tests do with the server.

    Attributes:
        content: what each file holds.
        pages: other contents, by path.
        requests: the method and target of each request, in order.
    """

    def __init__(self) -> None:
        self.content = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 400
        self.pages: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                web._answer(self)

            def do_GET(self) -> None:
                web._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.command, request.path))
        path, head = urlsplit(request.path).path, request.command == "HEAD"
        fault, first = path.split("/")[1], self.requests.count((request.command, request.path)) == 1
        status, body, headers = 200, self.pages.get(path, self.content), dict[str, str]()
        if path.rstrip("/") != path or path in self.pages:
            headers["Content-Type"] = "text/html"
        elif fault == "login":
            body = LOGIN
        elif fault == "message":
            body = b'{"error": "sign in"}'
        elif fault == "busy" and first:
            status, body, headers = 429, b"", {"Retry-After": "2"}
        elif fault == "loop":
            status, body, headers = 302, b"", {"Location": request.path}
        length = len(body) + (fault == "stall")
        if fault == "nosize" and head:
            length = 0
        elif fault == "cut":
            body = body[: length // 2]
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(b"" if head else body)
        if fault == "stall" and not head:
            self._stopped.wait()


@contextmanager
def serve_web() -> Iterator[Web]:
    server = Web()
    try:
        yield server
    finally:
        server.stop()
