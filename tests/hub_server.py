"""A Hub for tests: enough of its HTTP interface to create repos, upload to them and load from them, all in memory.

To be imported before huggingface_hub, which reads its environment once: then this Hub is the only one there is, for
the process of the tests and for those that it starts.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/(?P<kind>models/|spaces/)(?P<id>[^/]+/[^/]+)(?:/(?P<verb>\w+)/(?P<rev>[^/]+))?/?$")
RESOLVE = re.compile(r"/(?P<kind>spaces/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)$")
LARGE = (".safetensors", ".png", ".jpg")


def object_id(path: str, data: bytes) -> str:
    """What the Hub names a file by: SHA-256 of a large one, git's own hash of another."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server, its repos (`id -> branch -> {path: bytes}`) and the large objects on their way in.

    Ids of Spaces begin with `spaces/`. Whoever has a token is `tester`, and may write to `tester/...` only. A `silent`
    server takes requests and never answers. Files of `private` repos are for those who have a token, of `gated` ones
    for nobody.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.empty()
        self._serve()

    def empty(self) -> None:
        """Forget everything."""
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.commits: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.silent = self.is_away = False

    def _serve(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Within, nobody is at its address."""
        self.shutdown()
        self.server_close()
        self.is_away = True  # to those whose connection is still open, too
        yield
        self.is_away = False
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self._serve()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, files: dict[str, bytes]) -> str:
        """A commit id that changes with the content."""
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch or commit."""
        return next((f for name, f in self.repos[repo].items() if revision in (name, self.sha(f))), None)


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

    def refuse(self, status, code, message=""):
        self.answer(status, {"error": message or code}, [("X-Error-Code", code), ("X-Error-Message", message or code)])

    def parse_request(self):
        self.close_connection = self.server.is_away
        return not self.server.is_away and super().parse_request()

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        body, path = self.body(), urlsplit(unquote(self.path)).path
        if self.headers.get("Authorization", "") == "Bearer hf_expired":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'tester'}/{wanted['name'].rpartition('/')[2]}"
            if not repo.startswith("tester/"):
                return self.refuse(403, "", f"You don't have the rights to create a model under {repo}")
            key = ("spaces/" if wanted.get("type") == "space" else "") + repo
            exists = key in self.server.repos
            self.server.repos.setdefault(key, {"main": {}})
            if (wanted.get("private") or wanted.get("visibility") == "private") and not exists:
                self.server.private.add(key)
            return self.answer(409 if exists else 200, {"url": f"{self.server.endpoint}/{key}", "name": repo})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        match = API.match(path)
        key = match and match["kind"].replace("models/", "") + match["id"]
        if key not in self.server.repos:
            return self.refuse(404, "RepoNotFound")
        branches = self.server.repos[key]
        if match["verb"] == "branch":
            exists = match["rev"] in branches
            branches.setdefault(match["rev"], dict(branches["main"]))
            return self.answer(409 if exists else 201, {})
        if match["rev"] not in branches:
            return self.refuse(404, "RevisionNotFound")
        files, requested = branches[match["rev"]], {}
        if match["verb"] == "commit" and "create_pr=1" in self.path:
            number = sum(name.startswith("refs/pr/") for name in branches) + 1
            files = branches[f"refs/pr/{number}"] = dict(files)
            requested = {"pullRequestUrl": f"{self.server.endpoint}/{key}/discussions/{number}"}
        if match["verb"] == "preupload":
            known = {name: object_id(name, data) for name, data in files.items()}
            answers = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": known.get(file["path"]),
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": answers})
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
        self.server.commits.append(key)
        sha = self.server.sha(files)
        address = f"{self.server.endpoint}/{key}/commit/{sha}"
        answer = {"success": True, "commitOid": sha, "commitUrl": address, "hookOutput": ""}
        return self.answer(200, answer | requested)

    def do_PUT(self):
        data = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.answer()

    def do_GET(self):
        if self.server.silent:
            self.log_message()
            time.sleep(600)
        path = urlsplit(unquote(self.path)).path
        if path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "tester", "auth": {"accessToken": {"role": "write"}}})
        match = API.match(path) or RESOLVE.match(path)
        key = match and (match["kind"] or "").replace("models/", "") + match["id"]
        if key in self.server.private and "Authorization" not in self.headers:
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        if key in self.server.gated:
            return self.refuse(403, "GatedRepo", f"Access to model {key} is restricted")
        if self.headers.get("Authorization") == "Bearer hf_expired":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if key not in self.server.repos:
            return self.refuse(404, "RepoNotFound")
        files = self.server.files(key, match["rev"] or "main")
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        sha = self.server.sha(files)
        if "file" in match.groupdict():
            if match["file"] not in files:
                return self.refuse(404, "EntryNotFound")
            data = files[match["file"]]
            etag = f'"{object_id(match["file"], data)}"'
            return self.answer(200, data, [("ETag", etag), ("X-Repo-Commit", sha), ("Accept-Ranges", "bytes")])
        if match["verb"] == "tree":
            tree = [
                {"type": "file", "path": p, "size": len(d), "oid": object_id(p, d)} for p, d in sorted(files.items())
            ]
            return self.answer(200, tree)
        siblings = [{"rfilename": name} for name in sorted(files)]
        private = key in self.server.private
        return self.answer(200, {"id": match["id"], "sha": sha, "private": private, "tags": [], "siblings": siblings})

    do_HEAD = do_GET


HUB = Hub()
HOME = Path(tempfile.mkdtemp(prefix="home"))
"""Where Hugging Face's libraries keep what they downloaded."""


def forget_downloads() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


atexit.register(forget_downloads)
os.environ |= {"HF_ENDPOINT": HUB.endpoint, "HF_HOME": str(HOME), "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"HF_HUB_OFFLINE": "0"}
