"""The web server: its threads, and the application that it serves."""
