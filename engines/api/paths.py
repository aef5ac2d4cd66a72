"""Converters for the paths in `config.urls`."""

from urllib.parse import unquote


class UserId:
    """A user id in a path: a segment of the raw path, percent-decoded."""

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        try:
            return unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error

    def to_url(self, value: str) -> str:
        return value
