"""A real Kubernetes control plane on loopback, for tests and for people: see control_plane.py."""
