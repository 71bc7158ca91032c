"""Capstan: a GPU platform for Kubernetes. `docs/architecture.md` shows the rooms and who may import whom."""

__version__ = "0.1.0"
