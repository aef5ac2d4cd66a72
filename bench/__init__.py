"""Benchmarks, run by `manage.py bench NAME`. Alternatives are measured alternately in a single run: trust the ratios."""
