"""A stand-in for the Hugging Face hub: as much of its HTTP interface as downloads and small uploads use."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """Repositories by name: each a list of commits, each a mapping of file names to bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.downloaded: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision, and its files."""
        commits = {_oid(name, number): files for number, files in enumerate(self.repositories.get(name, []))}
        if revision == "main" and commits:
            return list(commits.items())[-1]
        return (revision, commits[revision]) if revision in commits else None


def _oid(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, code: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, X_Error_Code=code, X_Error_Message=f"{code}: not here")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            return self._answer(200, {"name": "me", "type": "user"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            name, revision = found[1], found[3] or "main"
            if not self.server.repositories.get(name):
                return self._missing("RepoNotFound")
            if (commit := self.server.at(name, revision)) is None:
                return self._missing("RevisionNotFound")
            siblings = [{"rfilename": file} for file in commit[1]]
            return self._answer(200, {"id": name, "sha": commit[0], "siblings": siblings, "private": False, "tags": []})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self.server.at(found[1], found[2])
            if commit is None or found[3] not in commit[1]:
                return self._missing("EntryNotFound")
            data = commit[1][found[3]]
            if self.command == "GET":
                self.server.downloaded.append(found[3])
            return self._answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit[0])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            commit = self.server.at(found[1], found[2])
            if commit is None:
                return self._missing("RevisionNotFound")
            files = [{"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                     for file, data in commit[1].items()]  # fmt: skip
            return self._answer(200, files)
        return self._missing("EntryNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            self.server.repositories.setdefault(name, [{"README.md": b""}])
            return self._answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self._answer(200, {"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main.*", self.path):
            files = {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commits = self.server.repositories[found[1]]
            commits.append(commits[-1] | files)
            oid = _oid(found[1], len(commits) - 1)
            return self._answer(200, {"commitUrl": f"{self.server.url}/{found[1]}/commit/{oid}", "commitOid": oid})
        return self._answer(200, {})


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub that answers on loopback."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
