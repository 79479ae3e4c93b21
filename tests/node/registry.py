"""An image registry on loopback that returns the image of one archive for every name.

The node's Python runs it in the node.
"""

import http.server
import json
import sys
import tarfile

PORT = 5000


def contents(archive: str) -> dict[str, tuple[str, bytes]]:
    """Return last part of the request path -> media type and content; key ``""`` is the manifest."""
    with tarfile.open(archive) as tar:
        files = {entry.name: tar.extractfile(entry) for entry in tar if entry.isfile()}
        content = {name: file.read() for name, file in files.items() if file is not None}
    manifest = json.loads(content["index.json"])["manifests"][0]
    found = {
        f"sha256:{name.rpartition('/')[2]}": ("application/octet-stream", data)
        for name, data in content.items()
        if name.startswith("blobs/")
    }
    found[""] = found[manifest["digest"]] = (manifest["mediaType"], found[manifest["digest"]][1])
    return found


class Registry(http.server.BaseHTTPRequestHandler):
    """The requests of the OCI distribution API that pull one image."""

    found = contents(sys.argv[1])

    def do_GET(self) -> None:
        """Send a manifest or a blob. Every other path, for example ``/v2/``, gets the manifest."""
        asked = self.path.rpartition("/")[2]
        kind, data = self.found.get(asked) or self.found[""]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815 - as the base class calls it


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Registry).serve_forever()
