"""A stand-in for the Hugging Face hub on this machine: it takes commits, and gives what it has."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class Hub:
    """``files``: by repository and name; ``private``: of those that were made; ``refuses``: a
    sentence with which it answers 403."""

    def __init__(self):
        self.files, self.private, self.refuses = {}, {}, ""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        if isinstance(content, dict):
            content = json.dumps(content).encode()
            headers["Content_Type"] = "application/json"
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path, hub = urlsplit(self.path).path, self.hub
        if hub.refuses:
            return self.answer(403, {"error": hub.refuses}, X_Error_Message=hub.refuses)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "who are you?"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"{hub.address}/{name}"})
        if path == "/api/validate-yaml":  # of the card's head
            return self.answer(200, {"errors": [], "warnings": []})
        _, _, _, owner, name, action, *_ = path.split("/")
        if action == "preupload":
            told = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": told})
        assert action == "commit", path
        kept = hub.files.setdefault(f"{owner}/{name}", {})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{hub.address}/{owner}/{name}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.hub.private:
                return self.answer(404, {"error": "no such repository"})
            siblings = [{"rfilename": file} for file in self.hub.files.get(name, {})]
            return self.answer(200, {"id": name, "sha": COMMIT, "siblings": siblings})
        if len(parts) > 4 and parts[2] == "resolve":
            content = self.hub.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            if content is None:
                return self.answer(404, {"error": "none"}, X_Error_Code="EntryNotFound")
            tag = hashlib.sha1(content).hexdigest()
            return self.answer(200, content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
        return self.answer(200)

    do_HEAD = do_GET
