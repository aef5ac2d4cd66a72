"""Engines as processes of the local machine."""
