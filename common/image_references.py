"""References to container images, and patterns of references in which a `*` stands for any characters.

A reference is `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, or a digest alone, which is the id of an image. The grammar is that of the OCI
distribution specification, as Docker reads it: https://github.com/distribution/reference/blob/main/regexp.go. Docker also takes
the first digits of an image's id for a name. References here exclude such names: a name must never mean an id by accident.

    parse("registry.example.com:5000/acme/agent:1.4") == Reference("registry.example.com:5000/acme/agent", "1.4")
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

LONGEST = 255  # characters
FORM = "[host[:port]/]path[:tag][@digest]"
_ALGORITHMS = {"sha256": 64, "sha384": 96, "sha512": 128}  # hex digits of a digest
_DIGEST = "|".join(f"{name}:[0-9a-f]{{{digits}}}" for name, digits in _ALGORITHMS.items())
_HUB = ("docker.io", "index.docker.io")  # hosts that Docker leaves out of a name
# Docker looks for an id when no image has the name. A name shorter than four digits is too likely to be a word, such as `ada`.
_HEX = re.compile("[0-9a-f]{4,}")


def _grammar(star: str) -> str:
    """The grammar as a regular expression with three groups: repository, tag, digest. `star` is `*` for a pattern, else empty."""
    part = f"[a-z0-9{star}]+(?:(?:[._]|__|-+)[a-z0-9{star}]+)*"
    label = f"[a-zA-Z0-9{star}](?:[a-zA-Z0-9{star}-]*[a-zA-Z0-9{star}])?"
    # Only a host may have capitals or a port. An IPv6 address stands in brackets. A host without dot and port reads like a path.
    host = rf"(?:{label}(?:\.{label})+(?::[0-9]+)?|{label}:[0-9]+|\[[0-9a-fA-F:]+\](?::[0-9]+)?)"
    tag = f"[a-zA-Z0-9_{star}][a-zA-Z0-9_.{star}-]{{0,127}}"
    # A digest alone comes first, because it also reads like the tag of a repository `sha256`.
    return f"^(?:{_DIGEST}|((?:{host}/)?{part}(?:/{part})*)(?::({tag}))?(?:@({_DIGEST}))?)$"


_REFERENCE, _PATTERN = re.compile(_grammar("")), re.compile(_grammar("*"))
CHARACTERS, CHARACTERS_AND_STARS = r"^[A-Za-z0-9._:/@\[\]-]+$", r"^[A-Za-z0-9._:/@*\[\]-]+$"
"""The characters of references and of patterns, for JSON schemas: tools that make examples of the grammar need minutes for it."""


@dataclass(frozen=True)
class Reference:
    """The parts of a reference or pattern: `repository` with its host, empty for a digest alone; empty parts are missing."""

    repository: str
    tag: str = ""
    digest: str = ""

    def full(self) -> str:
        """The whole reference. Docker's usual tag is written out, because Docker takes only a name without a tag for an id."""
        tag = self.tag or ("" if self.digest else "latest")
        if not self.repository:
            return self.digest
        return f"{self.repository}{tag and f':{tag}'}{self.digest and f'@{self.digest}'}"


def parse(text: str) -> Reference:
    """Return the parts of a reference. Raises ValueError, with a sentence for the person who wrote `text`."""
    found = _split(_REFERENCE, text)
    if found is None:
        raise ValueError(f"must be the name of an image: {FORM}, in lower case, at most {LONGEST} characters")
    if _is_id(found):
        raise ValueError("must be the name of an image, not a part of its id; write the tag after a name of hex digits")
    return found


def parse_pattern(text: str) -> Reference:
    """Return the parts of a pattern, or of a reference. Raises ValueError like `parse`."""
    found = _split(_PATTERN, text) if "*" in text else parse(text)
    if found is None or found.repository in _ALGORITHMS:
        raise ValueError(f"must be the name of an image, with or without stars: {FORM}, at most {LONGEST} characters")
    return found


def has_names(wanted: Reference, names: Iterable[str]) -> bool:
    """Whether an image with these names has the tag and the digest of the reference.

    `names` are texts such as `acme/agent:1` or `acme/agent@sha256:...`. Of equal names, some may have Docker's own host, others
    not. A digest alone is no name: compare the id of the image instead.
    """
    known = {(_familiar(name.repository), name.tag, name.digest) for name in _references(names)}
    repository = _familiar(wanted.repository)
    has_tag = (repository, wanted.tag or "latest", "") in known
    has_digest = (repository, "", wanted.digest) in known
    if not wanted.digest:
        return has_tag
    return has_digest and (has_tag or not wanted.tag)


def _split(grammar: re.Pattern[str], text: str) -> Reference | None:
    found = grammar.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        return None
    repository, tag, digest = (part or "" for part in found.groups())
    return Reference(repository, tag, digest if repository else text)


def _is_id(reference: Reference) -> bool:
    """Whether Docker may take the reference for the first digits of an image's id."""
    if reference.repository in _ALGORITHMS:
        return True
    return not (reference.tag or reference.digest) and _HEX.fullmatch(reference.repository) is not None


def _references(names: Iterable[str]) -> Iterable[Reference]:
    """The names in the grammar; a daemon may list others, such as `<none>:<none>`."""
    return (found for name in names if (found := _split(_REFERENCE, name)) is not None)


def _familiar(repository: str) -> str:
    """The repository without Docker's own host and the path `library`, which both may be left out."""
    host, _, path = repository.partition("/")
    shown = path if path and host in _HUB else repository
    return shown.removeprefix("library/") if shown.count("/") == 1 else shown
