"""Admits without flags, for tests of what is counted and refused on the way."""

from engines import admission


def count(product, user_id):
    """Admit, and return what is left of the rate limit; None where the product has none."""
    left = []
    admission.admit(product, user_id, auto_provision=False, auto_wake=False, on_counted=left.append)
    return left[0] if left else None
