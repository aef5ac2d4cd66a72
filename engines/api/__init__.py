"""Engines, operations and products over REST, a module for each; `config.urls` has the paths."""
