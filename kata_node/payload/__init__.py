"""The Kata files: what a payload holds, what a shim needs of it, and where it goes on the node."""
