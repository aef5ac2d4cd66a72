"""The REST endpoints for engines, operations and products; `config.urls` has the paths."""
