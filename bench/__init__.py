"""Benchmarks that anyone can run: `manage.py bench NAME`. Alternatives are measured in turn in one run; trust the ratios."""
