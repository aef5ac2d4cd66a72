"""Applications for comparison with `admit`, on packages of their own (`make bench-venv`)."""
