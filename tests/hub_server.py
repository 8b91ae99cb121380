"""A hub of models on loopback, which knows as much of Hugging Face's interface as uploads and downloads need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Handler(BaseHTTPRequestHandler):
    """Repositories are in ``self.server.repos``: contents by name of the repository and of the file."""

    def do_GET(self) -> None:
        repos, path = self.server.repos, self.path.split("?")[0]
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in repos:
                return self._refuse("RepoNotFound", 404)
            files = repos[name]
            if "/tree/" in path:
                rows = [{"type": "file", "path": p, "size": len(d), "oid": _id(d)} for p, d in files.items()]
                return self._answer(rows)
            siblings = [{"rfilename": p, "size": len(d), "blobId": _id(d)} for p, d in files.items()]
            return self._answer({"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings})
        name, _, rest = path.lstrip("/").partition("/resolve/")
        data = repos[name][rest.partition("/")[2]]
        return self._answer(data, {"ETag": f'"{_id(data)}"', "X-Repo-Commit": COMMIT})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        path, repos = self.path, self.server.repos
        if path == "/api/repos/create":
            if self.server.locked:
                return self._refuse("", 403)
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            repos.setdefault(name, {})
            return self._answer({"url": f"{self.server.address}/{name}", "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            said = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._answer({"files": said})
        for line in body.splitlines():
            change = json.loads(line)
            if change["key"] == "file":
                repos[name][change["value"]["path"]] = base64.b64decode(change["value"]["content"])
        return self._answer({"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, said, headers=None, code=200) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(code)
        for key, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, kind: str, code: int) -> None:
        self._answer({"error": "refused"}, {"X-Error-Code": kind} if kind else {}, code)

    def log_message(self, *args) -> None:
        pass


def _id(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[ThreadingHTTPServer]:
    """Context with a running server: ``address``, ``repos`` and ``locked``, whether it refuses to make repositories."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repos, server.locked = {}, False
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
