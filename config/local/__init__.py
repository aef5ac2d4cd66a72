"""Local runs, above all `make run`: embedded servers, their home folder, and a supervisor."""
