"""Imported by the server that tests' processes are forks of: it has their libraries then, and none of our settings."""

from config.local import preload

preload.load()
