"""A web server in this process, which plays the faults that the first folder of a URL names."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

LOGIN = b"\n<!DOCTYPE html><title>Sign in</title>"


class Web:
    """What tests do with the server.

    Attributes:
        content: what each file holds.
        pages: other contents, by path.
        requests: the method and target of each request, in order.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
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
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' * bool(context)}://127.0.0.1:{self._server.server_port}"
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


def self_signed(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody trusts, in ``folder``/certificate.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2020, 1, 1), datetime(2099, 1, 1))
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    (folder / "certificate.pem").write_bytes(signed.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


@contextmanager
def serve_web(context: ssl.SSLContext | None = None) -> Iterator[Web]:
    server = Web(context)
    try:
        yield server
    finally:
        server.stop()
