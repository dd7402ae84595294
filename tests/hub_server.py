"""A Hub for tests: enough of its HTTP interface to create repos, upload to them and load from them, all in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(?P<kind>models|spaces)/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>\w+)/(?P<rev>[^/]+))?/?$")
RESOLVE = re.compile(r"/(?P<kind>spaces/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)$")


class Hub(ThreadingHTTPServer):
    """The server, its repos (`id -> {path: bytes}`) and the large objects on their way in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo: str) -> str:
        """A commit id that changes with the content of the repo."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in self.repos[repo].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        self.server.requests.append(f"{self.command} {self.path}")

    def answer(self, status=200, body=b"", headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code):
        self.answer(404, {"error": code}, [("X-Error-Code", code), ("X-Error-Message", code)])

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        body, path = self.body(), urlsplit(unquote(self.path)).path
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'tester'}/{wanted['name'].rpartition('/')[2]}"
            exists = repo in self.server.repos
            self.server.repos.setdefault(repo, {})
            return self.answer(409 if exists else 200, {"url": f"{self.server.endpoint}/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        match = API.match(path)
        if not match or match["id"] not in self.server.repos:
            return self.missing("RepoNotFound")
        if match["verb"] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        repo = self.server.repos[match["id"]]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repo[value["path"]] = self.server.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                repo.pop(value["path"])
        sha = self.server.sha(match["id"])
        address = f"{self.server.endpoint}/{match['id']}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": ""})

    def do_PUT(self):
        data = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.answer()

    def do_GET(self):
        path = urlsplit(unquote(self.path)).path
        if path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "tester", "auth": {"accessToken": {"role": "write"}}})
        match = API.match(path) or RESOLVE.match(path)
        if not match or match["id"] not in self.server.repos:
            return self.missing("RepoNotFound")
        repo, sha = self.server.repos[match["id"]], self.server.sha(match["id"])
        if "file" in match.groupdict():
            if match["file"] not in repo:
                return self.missing("EntryNotFound")
            data = repo[match["file"]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self.answer(200, data, [("ETag", etag), ("X-Repo-Commit", sha), ("Accept-Ranges", "bytes")])
        if match["verb"] == "tree":
            tree = [{"type": "file", "path": p, "size": len(d), "oid": ""} for p, d in sorted(repo.items())]
            return self.answer(200, tree)
        siblings = [{"rfilename": name} for name in sorted(repo)]
        return self.answer(200, {"id": match["id"], "sha": sha, "private": False, "tags": [], "siblings": siblings})

    do_HEAD = do_GET
