"""Query parameters of a request, read strictly."""

from rest_framework.exceptions import ValidationError
from rest_framework.request import Request


def read_whole(request: Request, name: str, *, default: int, least: int, most: int) -> int:
    """The parameter as a whole number. Raises ValidationError unless it is 1 to 9 digits, and from `least` to `most`."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not least <= int(text) <= most:
        raise ValidationError({name: [f"Must be a whole number from {least} to {most}."]})
    return int(text)
