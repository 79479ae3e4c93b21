"""Installs Kata Containers on a Kubernetes node in stages, and removes it again."""

__version__ = "0.1.0"
