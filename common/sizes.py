"""Sizes that several floors share."""

MAX_BODY = 1024 * 1024  # bytes of a request's body
