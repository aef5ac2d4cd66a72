"""Everything that `make run` alone needs: embedded servers, the folder they live in, and a supervisor."""
