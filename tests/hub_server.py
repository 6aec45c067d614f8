"""A local stand-in for the Hugging Face hub: it takes pushes, and refuses them as told."""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    """What the hub has under one name."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: int = 0


class Hub(ThreadingHTTPServer):
    """Keeps repositories by name, large files by hash, and what was asked.

    `refusals` gives the status of the answers to paths that end in a text.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.refusals: dict[str, int] = {}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []  # method, path, headers, body


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        hub.asked.append((self.command, path, dict(self.headers), body))
        for ending, status in hub.refusals.items():
            if path.endswith(ending):
                self.send(status, {"error": "refused"})
                return
        parts = path.strip("/").split("/")
        repo = "/".join(parts[2:4])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            private = asked.get("private") is True or asked.get("visibility") == "private"
            hub.repositories[name] = Repository({".gitattributes": b""}, private)
            self.send(200, {"url": f"{hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{hub.url}/large/{each['oid']}"}}
            self.send(200, {"transfer": "basic", "objects": objects})
        elif parts[0] == "large":
            hub.large[parts[1]] = body
            self.send(200, {})
        elif repo not in hub.repositories:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif "preupload" in parts:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            self.send(200, {"files": files})
        elif "commit" in parts:
            self.commit(hub.repositories[repo], body)
            oid = f"{hub.repositories[repo].commits:040}"
            self.send(200, {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid})
        else:
            self.send(200, about(repo, hub.repositories[repo]))

    do_GET = do_POST = do_PUT = answer

    def commit(self, repository: Repository, body: bytes) -> None:
        """Store the files of a commit."""
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                content = base64.b64decode(part["value"]["content"])
                repository.files[part["value"]["path"]] = content
            elif part["key"] == "lfsFile":
                repository.files[part["value"]["path"]] = self.server.large[part["value"]["oid"]]
        repository.commits += 1

    def send(self, status: int, content: dict, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def about(name: str, repository: Repository) -> dict:
    """What the hub says of a repository."""
    return {
        "id": name,
        "modelId": name,
        "sha": f"{repository.commits:040}",
        "private": repository.private,
        "tags": [],
        "downloads": 0,
        "siblings": [{"rfilename": file} for file in repository.files],
    }


@contextmanager
def running():
    """A hub that runs until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
