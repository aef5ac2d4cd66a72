"""Images of a daemon: the daemon's description of the image for an instance, checked against the name that was asked for."""

from collections.abc import Mapping
from typing import Any

from common import image_references
from common.image_references import Reference
from engines.backends.base import ImageMismatch, ImageMissing, parse_image
from engines.backends.docker.daemon import Daemon, NotFound


def resolve(daemon: Daemon, image: str, kept: str) -> Mapping[str, Any]:
    """The daemon's description of the image for an instance: `kept` if present, else `image`.

    Raises ImageMissing, ImageMismatch.
    """
    wanted = parse_image(image)
    found = (kept and _look_at(daemon, parse_image(kept))) or _look_at(daemon, wanted)
    if not found:
        raise ImageMissing(f"no image {image} on this host")
    return found


def _look_at(daemon: Daemon, wanted: Reference) -> Mapping[str, Any] | None:
    """The daemon's description of the image; None for a missing image. Raises ImageMismatch.

    The description must have the name that was asked for: the daemon and its client have rules of their own for names.
    """
    try:
        found: Mapping[str, Any] = daemon.ask(lambda api: api.inspect_image(wanted.full()))  # type: ignore[no-untyped-call]
    except NotFound:
        return None
    names = [*(found.get("RepoTags") or ()), *(found.get("RepoDigests") or ())]
    if image_references.has_names(wanted, names) if wanted.repository else found["Id"] == wanted.digest:
        return found
    raise ImageMismatch(
        f"asked for {wanted.full()}, the daemon answered with {found['Id']} named {', '.join(names) or 'nothing'}"
    )
