"""All access to the node: its files, systemd and the CRI socket."""
