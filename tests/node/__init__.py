"""Real Debian nodes, with their own systemd and containerd, for tests and for people to try things on."""
