"""A hub in a thread: the part of the Hugging Face hub's interface that downloads use."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextlib.contextmanager
def served(repositories):
    """Serves {"owner/name": {revision: folder}}; yields (address, paths of the files sent)."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def log_message(self, *arguments):
            pass

        def _answer(self, body):
            words = unquote(urlsplit(self.path).path).strip("/").split("/")
            listing = words[0] == "api"
            words = words[2:] if listing else words
            if len(words) < 4:  # something else that the client asks on its way
                return self._send(404, b"{}", body, {})
            owner, name, verb, revision, *rest = words
            branches = repositories.get(f"{owner}/{name}")
            if branches is None:
                return self._send(401, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            commits = {commit_of(branch): branch for branch in branches}
            branch = commits.get(revision, revision)
            if branch not in branches:
                return self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
            folder, commit = Path(branches[branch]), commit_of(branch)
            if listing and verb == "revision":
                found = {"id": f"{owner}/{name}", "sha": commit, "siblings": []}
                return self._send(200, json.dumps(found).encode(), body, {})
            if listing and verb == "tree":
                files = [
                    {"type": "file", "path": str(path.relative_to(folder)),
                     "size": path.stat().st_size, "oid": etag_of(path)}
                    for path in sorted(folder.rglob("*")) if path.is_file()
                ]  # fmt: skip
                return self._send(200, json.dumps(files).encode(), body, {})
            path = folder.joinpath(*rest)
            if not path.is_file():
                return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            if body:
                sent.append("/".join(rest))
            self._send(
                200, path.read_bytes(), body, {"ETag": etag_of(path), "X-Repo-Commit": commit}
            )

        def _send(self, status, content, body, headers):
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(branch):
    """The commit that a branch stands at."""
    return hashlib.sha1(branch.encode()).hexdigest()


def etag_of(path):
    """What names the content of a file."""
    return hashlib.sha1(path.read_bytes()).hexdigest()
