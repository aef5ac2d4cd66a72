"""The web server: its threads and its WSGI application."""
