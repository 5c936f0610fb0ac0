"""HTTP servers for tests: a plain one, as `python -m http.server` is, and ones that misbehave."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_about: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder by plain HTTP."""
    with _running(partial(_Quiet, directory=str(folder))) as url:
        yield url


@contextmanager
def hostile(folder: Path, endless: str = "", slow: str = "") -> Iterator[str]:
    """The folder, but the file `endless` never ends, and `slow` drips a byte at a time."""

    class Handler(_Quiet):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if not (endless and endless in name) and not (slow and slow in name):
                super().do_GET()
                return
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * (1 << 20) if endless else b" ")
                    if slow:
                        self.wfile.flush()
                        time.sleep(0.02)
            except OSError:  # the client has had enough
                return

    with _running(partial(Handler, directory=str(folder))) as url:
        yield url


@contextmanager
def _running(handler: partial[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()
