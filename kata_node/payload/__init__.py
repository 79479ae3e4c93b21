"""The Kata files: the content of a payload, the files that a shim needs, and their paths on the node."""
