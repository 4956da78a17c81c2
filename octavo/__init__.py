"""Octavo: an LLM inference and serving engine that one person can read."""

__version__ = "0.1.0"
