"""A local server with the part of the Hugging Face Hub's interface that downloads a data set: list, ask, fetch."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """`with Hub({"data/train-0.parquet": ...}) as hub:` serves these files as every data set at hub.url.

    The first answers named in `broken` (path -> how often) end in the middle, as a lost connection does.
    """

    def __init__(self, files: Mapping[str, bytes], broken: Mapping[str, int] | None = None):
        self.files, self.broken = dict(files), dict(broken or {})
        self.fetched: list[str] = []
        """Every file asked for, as often as it was."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                path = self.path.partition("?")[0]
                if "/tree/" in path:
                    listed = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in hub.files.items()
                    ]
                    return self.answer(200, json.dumps(listed).encode(), body, kind="application/json")
                name = path.partition("/resolve/main/")[2] or path.partition("/resolve/" + "0" * 40 + "/")[2]
                if name not in hub.files:
                    return self.answer(404, b"", body)
                data, start = hub.files[name], 0
                if wanted := self.headers.get("Range"):
                    start = int(wanted.removeprefix("bytes=").split("-")[0])
                if body:
                    hub.fetched.append(name)
                self.answer(206 if wanted else 200, data[start:], body, name, hashlib.sha256(data).hexdigest())

            def answer(self, status: int, data: bytes, body: bool, name: str = "", etag: str = "",
                       kind: str = "application/octet-stream") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Repo-Commit", "0" * 40)
                if etag:
                    self.send_header("ETag", f'"{etag}"')
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if body and hub.broken.get(name, 0):
                    hub.broken[name] -= 1
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                elif body:
                    self.wfile.write(data)

        return Handler
