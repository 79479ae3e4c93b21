"""The process of a DaemonSet pod. It installs Kata, waits, and reverts if Kata is no longer wanted."""
