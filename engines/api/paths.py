"""Parts of paths, as the endpoints take them."""

from urllib.parse import unquote


class UserId:
    """Path converter: one segment of the raw path, decoded."""

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        try:
            return unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error

    def to_url(self, value: str) -> str:
        return value
