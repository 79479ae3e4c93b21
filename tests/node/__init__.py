"""Real Debian nodes with their own systemd and containerd, for the tests and for scripts/testnode.

"The machine" is the computer that runs the tests; "the node" is a container on it.
"""
