"""Puts Kata Containers on a Kubernetes node in short stages, and takes it off again."""

__version__ = "0.1.0"
