"""A web server on loopback that delivers files as its mood is: well, late, damaged, without end, or not at all.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import http.server
import ssl
import threading
import time

from edgefl.wire.files import BLOCK_SIZE
from toycertificates import certificate


class Handler(http.server.BaseHTTPRequestHandler):
    """A web server that does what its `mood` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer."""
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range", "")))
        data = site.files.get(self.path.lstrip("/"))
        getattr(self, f"_{site.mood}", self._plain)(data)

    def log_message(self, *_):
        """Silence."""

    def _plain(self, data):
        if data is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "")
        if asked:
            start, last = map(int, asked.removeprefix("bytes=").split("-"))
            self._answer(206, data[start : last + 1], {"Content-Range": f"bytes {start}-{last}/{len(data)}"})
        else:
            self._answer(200, data)

    def _answer(self, code, body, headers=None, length=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _without_ranges(self, data):
        self._answer(200, data)

    def _another_part(self, data):
        self._answer(206, data[:100], {"Content-Range": f"bytes 0-99/{len(data)}"})

    def _damaged(self, data):
        self._answer(200, data[: 5 * BLOCK_SIZE] + b"?" + data[5 * BLOCK_SIZE + 1 :])

    def _truncated(self, data):
        self._answer(200, data[: 5 * BLOCK_SIZE + 10], length=len(data))
        self.close_connection = True

    def _too_long(self, data):
        self._answer(200, data + b"more")

    def _endless(self, data):
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)
        for _ in range(100_000):
            self.wfile.write(bytes(BLOCK_SIZE))
            self.server.site.wasted += BLOCK_SIZE

    def _trickling(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data[:1000]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def _downgrading(self, _):
        self._answer(302, b"", {"Location": f"http://127.0.0.1:{self.server.server_port}{self.path}"})

    def _moved(self, _):
        if self.path.startswith("/new/"):
            self._plain(self.server.site.files[self.path.rpartition("/")[2]])
        else:
            self._answer(302, b"", {"Location": f"{self.server.site.address}/new{self.path}"})


class Site:
    """A web server on loopback with a certificate of its own authority."""

    def __init__(self, directory, files):
        """Serve these files, by name."""
        self.files, self.mood, self.requests, self.wasted = dict(files), "plain", [], 0
        own, key = certificate(directory, "site")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.site = self
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.context = ssl.create_default_context(cafile=own)
        self.address = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        """Stop."""
        self.server.shutdown()
        self.server.server_close()
