"""The OpenID Connect provider of staff: where it is, with which keys it signs, and what it says of somebody.

The authorization code flow with PKCE (RFC 7636), by OpenID Connect Core 1.0, section 3.1, and Discovery 1.0. Authlib knows the
protocol and judges the claims. This module says what is believed: tokens of our issuer, for our client, signed by a key of the
issuer with a public-key algorithm. All calls have limits in time, bytes and number: the provider may be away, or slow.
"""

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from requests.adapters import HTTPAdapter

from common import times
from common.settings import settings
from fleet.staff.visits import Visit

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Algorithms with a public key. HS256 and others with a common secret would take the public key for the secret."""

CONNECT_S, READ_S, CALL_S = 2.0, 3.0, 5.0  # to connect; between two pieces of an answer; for all pieces
MAX_BYTES = 512 * 1024  # of an answer
AT_A_TIME = 4  # calls of a process: its other threads are for other requests
KEPT_S = 600.0  # the provider's metadata and keys
AWAY_S = 5.0  # after a failure to read them, nobody tries again
WAIT_S = 1.0  # for another thread that reads them
LEEWAY_S = 60  # between our clock and the provider's
MAX_SUBJECT = 255  # characters

Claims = dict[str, Any]
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class Away(Exception):
    """The provider does not answer, or answers what no provider may answer. The text is for the log."""


class Unproven(Exception):
    """The provider does not prove who somebody is. The text is a word for the log."""


def address(visit: Visit, redirect_uri: str) -> str:
    """The provider's page for the visit. Whoever confirms who they are must log in there anew. Raises Away."""
    found = metadata()
    anew = {"prompt": "login", "max_age": "0"} if visit.confirms else {}
    url, _ = _session(found).create_authorization_url(
        found["authorization_endpoint"],
        state=visit.state,
        nonce=visit.nonce,
        code_verifier=visit.verifier,
        redirect_uri=redirect_uri,
        **anew,
    )
    return str(url)


def claims_of(code: str, visit: Visit, redirect_uri: str) -> Claims:
    """The claims of the ID token that the provider gives for `code`, all checked. Raises Away, Unproven."""
    found = metadata()
    given = _exchange(found, code, visit, redirect_uri)
    if not isinstance(given.get("id_token"), str):
        raise Away("no ID token")
    try:
        return _checked(_verified(given["id_token"], found), given, visit)
    except JoseError as error:
        raise Unproven(error.error or "invalid_token") from error


def is_fresh(claims: Claims, since: float) -> bool:
    """Whether the provider says that the user proved who they are after `since` (seconds since 1970), not only once before."""
    at = claims.get("auth_time")
    return isinstance(at, int | float) and not isinstance(at, bool) and at >= since - LEEWAY_S


def names_issuer(given: str | None) -> bool:
    """Whether an answer with the parameter `iss` is from our provider (RFC 9207). Raises Away."""
    if given is None:
        return not metadata().get("authorization_response_iss_parameter_supported")
    return given == settings.ENV.oidc_issuer


# -- tokens ------------------------------------------------------------------------------------------------------------


def _exchange(found: Claims, code: str, visit: Visit, redirect_uri: str) -> Claims:
    """The tokens for the code. Only who has the verifier of the visit, and our secret, gets them."""
    with _calling("token_endpoint", found) as session:
        try:
            given: Claims = session.fetch_token(
                found["token_endpoint"],
                code=code,
                grant_type="authorization_code",
                code_verifier=visit.verifier,
                redirect_uri=redirect_uri,
                allow_redirects=False,
            )
        except OAuthError as error:
            raise Unproven(word(error.error)) from error
        return given


def _verified(id_token: str, found: Claims) -> jwt.Token:
    """The token, once its signature is right. Keys are read again for a key id that is new. Raises JoseError, Away."""
    named = found.get("id_token_signing_alg_values_supported") or ["RS256"]
    allowed = [name for name in ALGORITHMS if name in named]
    if not allowed:
        raise Away("no algorithm with a public key")
    registry = JWSRegistry(algorithms=allowed, strict_check_header=False)
    try:
        return jwt.decode(id_token, _keys(found), registry=registry)
    except InvalidKeyIdError:
        return jwt.decode(id_token, _keys(found, since=time.monotonic()), registry=registry)
    except (ValueError, TypeError) as error:  # of the library of ciphers, for a key or a signature without sense
        raise Unproven("invalid_token") from error


def _checked(token: jwt.Token, given: Claims, visit: Visit) -> Claims:
    """The claims, once they are for us, for this visit and for now. Raises JoseError."""
    client_id, access_token = settings.ENV.oidc_client_id, given.get("access_token")
    options = {
        "iss": {"essential": True, "value": settings.ENV.oidc_issuer},
        "aud": {"essential": True, "value": client_id},
        "sub": {"essential": True},
    }
    expected = {"nonce": visit.nonce, "client_id": client_id}
    if isinstance(access_token, str):
        expected["access_token"] = access_token
    claims = CodeIDToken(token.claims, token.header, options, expected)
    claims.validate(now=int(times.database_now().timestamp()), leeway=LEEWAY_S)
    if not claims["sub"].isprintable() or len(claims["sub"]) > MAX_SUBJECT:
        raise InvalidClaimError("sub")
    return dict(claims)


def word(text: object) -> str:
    """The text if it is an error code such as `access_denied`; otherwise a stranger's text, which no log should repeat."""
    return text if isinstance(text, str) and re.fullmatch("[a-z_]{1,50}", text) else "error"


# -- what the provider says of itself ------------------------------------------------------------------------------------


def metadata() -> Claims:
    """The provider's metadata. Raises Away, also for the metadata of another issuer."""
    issuer = settings.ENV.oidc_issuer
    found = _document(issuer.rstrip("/") + "/.well-known/openid-configuration")
    if found.get("issuer") != issuer:
        raise Away("metadata of another issuer")
    for name in _ENDPOINTS:
        if urlsplit(str(found.get(name, ""))).scheme not in ("https", urlsplit(issuer).scheme):
            raise Away(f"no {name}")
    return found


def _keys(found: Claims, *, since: float | None = None) -> KeySet:
    try:
        return KeySet.import_key_set(_document(found["jwks_uri"], since=since))  # type: ignore[arg-type]
    except (JoseError, KeyError, ValueError, TypeError) as error:
        raise Away("no keys") from error


_read: dict[str, tuple[float, Claims | None]] = {}  # by URL: the time of the answer (monotonic clock); None for no answer
_reading = threading.Lock()


def _document(url: str, *, since: float | None = None) -> Claims:
    """The JSON object at `url`, read after `since` (monotonic clock), by default at most KEPT_S ago. Raises Away."""
    earliest = time.monotonic() - KEPT_S if since is None else since
    if found := _remembered(url, earliest):
        return found
    if not _reading.acquire(timeout=WAIT_S):
        raise Away("another thread waits for the provider")
    try:
        return _remembered(url, earliest) or _load(url)
    finally:
        _reading.release()


def _remembered(url: str, earliest: float) -> Claims | None:
    at, found = _read.get(url, (-math.inf, None))
    if found is None and at > time.monotonic() - AWAY_S:
        raise Away("was away just now")
    return found if at >= earliest else None


def _load(url: str) -> Claims:
    try:
        found = _get(url)
    except Away:
        _read[url] = time.monotonic(), None
        raise
    _read[url] = time.monotonic(), found
    return found


def _get(url: str) -> Claims:
    with _calling(urlsplit(url).path) as session:
        answer = session.get(url, withhold_token=True, allow_redirects=False)
        answer.raise_for_status()
        found = answer.json()
        if answer.status_code != 200 or not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found


# -- calls -------------------------------------------------------------------------------------------------------------

_slots = threading.BoundedSemaphore(AT_A_TIME)


@contextmanager
def _calling(what: str, found: Claims | None = None) -> Iterator[Any]:
    """A session for a call within all limits. Raises Away for a call that goes wrong."""
    if not _slots.acquire(blocking=False):
        raise Away(f"{AT_A_TIME} calls under way")
    try:
        with _session(found or {}) as session:
            yield session
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError, RecursionError) as error:
        raise Away(f"{what}: {type(error).__name__}") from error
    finally:
        _slots.release()


def _session(found: Claims) -> Any:
    """Authlib's client. It sends our secret in a header, unless the provider takes it in the body only."""
    methods = found.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    session = OAuth2Session(
        settings.ENV.oidc_client_id,
        settings.ENV.oidc_client_secret,
        token_endpoint_auth_method="client_secret_basic" if "client_secret_basic" in methods else "client_secret_post",
        code_challenge_method="S256",
        scope=settings.ENV.oidc_scopes,
    )
    session.headers["Accept-Encoding"] = "identity"  # a small answer must not unfold into a large one
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Bounded())
    return session


class _TooLarge(ValueError):
    """An answer has more than MAX_BYTES bytes."""


class _Bounded(HTTPAdapter):
    """Reads each answer to its end at once, for at most CALL_S seconds, and at most MAX_BYTES bytes."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        ends = time.monotonic() + CALL_S
        answer = super().send(request, **{**options, "stream": True, "timeout": (CONNECT_S, READ_S)})
        body = b""
        while piece := answer.raw.read1(65536):
            body += piece
            if len(body) > MAX_BYTES or time.monotonic() > ends:
                answer.close()
                raise _TooLarge if len(body) > MAX_BYTES else requests.Timeout
        answer._content = body
        return answer
