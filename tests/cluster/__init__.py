"""A real Kubernetes control plane on loopback for the tests and scripts/testcluster; see control_plane.py."""
