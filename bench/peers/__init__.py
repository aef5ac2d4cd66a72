"""What `admit` is compared with: applications on packages of their own (`make bench-venv`)."""
