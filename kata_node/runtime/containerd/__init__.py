"""containerd's configuration: read it, render it, and edit it."""
