"""containerd's configuration: read, render, edit."""
