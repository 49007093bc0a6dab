"""A web server that gives parts of files, and counts what it gave, to whichever process asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    """Its address, and the bytes of every file that it gave."""

    url: str = ""
    given: dict[str, int] = field(default_factory=dict)
    broken: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def bytes_of_shards(self) -> int:
        return sum(size for name, size in self.given.items() if name.endswith(".tar"))


class _Handler(SimpleHTTPRequestHandler):
    """Python's server with ranges, which it lacks."""

    protocol_version = "HTTP/1.1"

    def __init__(self, server: Server, *arguments: object, directory: str) -> None:
        self.counter = server
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.is_dir():
            return super().do_GET()
        if self.counter.broken:
            return self.send_error(503)
        if not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2] or len(content) - 1)) if found else (0, len(content) - 1)
        part = content[first : last + 1]
        with self.counter.lock:
            self.counter.given[file.name] = self.counter.given.get(file.name, 0) + len(part)
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A process that ends leaves its connections."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder on this machine."""
    found = Server()
    with _Quiet(("127.0.0.1", 0), partial(_Handler, found, directory=str(folder))) as server:
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
