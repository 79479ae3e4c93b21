"""The one door to the node: its files, systemd and the CRI socket."""
