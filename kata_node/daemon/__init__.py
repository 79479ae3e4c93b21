"""The process of a DaemonSet pod: it installs, waits, and reverts."""
