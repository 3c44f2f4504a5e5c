"""A web server of a folder for tests, which fails in the ways that web servers do."""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHARD_BYTES = 1000


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, also in parts; `asked` are the paths that GET was asked for.

    The next `breaks` answers with a `.tar` end after `broken_bytes` of `whole_bytes`. Of the answers that are no
    folder's page, every `busy_every`th is code 503, and so are all after the first `lasts`; with `down` all answers
    are. Without `parts` it sends whole files only, without `lists` no pages of folders. `sent` are the bytes of each
    part that it sent.
    """

    asked: list[str]
    sent: list[int]
    answers = breaks = busy_every = 0
    broken_bytes, whole_bytes = 500, 1000
    down, parts, lists, lasts = False, True, True, 10**9

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if not self.refused():
            super().do_HEAD()

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.refused():
            return
        path = Path(self.translate_path(self.path))
        if type(self).breaks > 0 and path.suffix == ".tar":
            type(self).breaks -= 1
            self.break_off()
        elif self.parts and "Range" in self.headers and path.is_file():
            self.send_part(path.read_bytes())
        else:
            super().do_GET()

    def list_directory(self, path: str) -> io.BytesIO | None:
        if self.lists:
            return super().list_directory(path)
        self.send_error(HTTPStatus.FORBIDDEN)
        return None

    def refused(self) -> bool:
        type(self).answers += not self.path.endswith("/")
        busy = self.busy_every and not self.path.endswith("/") and self.answers % self.busy_every == 0
        refuses = bool(self.down or busy or self.answers > self.lasts)
        if refuses:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        return refuses

    def break_off(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(self.whole_bytes))
        self.end_headers()
        self.wfile.write(b"x" * self.broken_bytes)
        self.close_connection = True

    def send_part(self, data: bytes) -> None:
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        part = data[int(first) : int(last) + 1]
        type(self).sent.append(len(part))
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *request: object) -> None:
        """Who asked may hang up before everything is sent."""


class WebServer:
    """A folder behind a `url`; attributes of `handler` say how it fails."""

    def __init__(self, folder: Path) -> None:
        self.handler = type("OneHandler", (Handler,), {"asked": [], "sent": []})
        self.server = QuietServer(("127.0.0.1", 0), partial(self.handler, directory=str(folder)))
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server.server_port}"

    def downloads(self) -> list[str]:
        return [path for path in self.handler.asked if path.endswith(".tar")]


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    found = WebServer(folder)
    threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()


def four_shards(folder: Path) -> Path:
    """A folder with four shards of 1,000 bytes."""
    folder.mkdir()
    for number in range(4):
        (folder / f"shard-{number:06d}.tar").write_bytes(bytes([number]) * SHARD_BYTES)
    return folder


def shards(server: WebServer) -> list[str]:
    """Where a server has four shards."""
    return [f"{server.url}/shard-{number:06d}.tar" for number in range(4)]
