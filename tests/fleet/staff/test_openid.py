"""What is believed of the provider, and what happens while it is in trouble."""

import base64
import contextlib
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.test import Client
from joserfc import jwt
from joserfc.jwk import OctKey

from audit.models import AuditRow
from fleet.staff import openid
from tests.fleet.staff.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIDProvider, ec_key, rsa_key
from tests.fleet.staff.single_sign_on import (
    CALLBACK,
    START,
    answer_of,
    go,
    is_logged_in,
    lines,
    rows,
    told,
)


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "of-another-log-in"},
        {"nonce": None},
        {"aud": "another-client"},
        {"aud": ["another-client", "a-third"]},
        {"aud": ["another-client"], "azp": CLIENT_ID},
        {"aud": [CLIENT_ID, "another-client"]},
        {"aud": None},
        {"iss": "http://127.0.0.1/another"},
        {"iss": None},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"exp": "later"},
        {"iat": None},
        {"iat": 4_000_000_000},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "nul\x00"},
        {"sub": "x" * 256},
        {"at_hash": "of-another-token"},
    ],
    ids=str,
)
def test_id_token_with_a_wrong_claim_is_refused(provider, client, claims):
    provider.claims = claims
    assert "has not proved who you are" in told(go(client), 403)
    assert not is_logged_in(client)
    assert not User.objects.exists()
    assert [row.metadata for row in rows("staff_login_failed")] == [{"rule": "provider_refused"}]


def forged(claims):
    """A token that names the right key, signed by another."""
    other = ec_key("first")
    return jwt.encode({"alg": "ES256", "kid": "first"}, claims, other)


def unsigned(claims):
    return f"{encoded({'alg': 'none', 'kid': 'first'})}.{encoded(claims)}."


def encoded(part):
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def signed_with_the_public_key(claims):
    """HS256 with the published key as the secret, as a client would compute it that takes any algorithm of the token."""
    signed = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{encoded(claims)}"
    digest = hmac.digest(rsa_key().as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def signed_with_the_client_secret(claims):
    return jwt.encode({"alg": "HS256", "kid": "first"}, claims, OctKey.import_key(CLIENT_SECRET))


def cut(claims):
    return "no.token"


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("sign", [forged, unsigned, signed_with_the_public_key, signed_with_the_client_secret, cut])
def test_id_token_with_a_wrong_signature_is_refused(provider, client, sign):
    provider.sign = sign
    assert "has not proved who you are" in told(go(client), 403)
    assert not User.objects.exists()


def test_changed_claims_under_a_right_signature_are_refused(provider, client):
    def change(claims):
        head, _, signature = provider.sign_well(claims).split(".")
        return f"{head}.{encoded({**claims, 'sub': 'root'})}.{signature}"

    provider.sign = change
    told(go(client), 403)


def test_new_key_of_the_provider_is_fetched_when_a_token_names_it(provider, client):
    go(client)
    asked = provider.asked.count("keys")
    go(Client())
    assert provider.asked.count("keys") == asked == 1  # kept
    provider.key = ec_key("second")
    fresh = Client()
    assert go(fresh).status_code == 302
    assert is_logged_in(fresh)
    assert provider.asked.count("keys") == 2
    assert provider.asked.count("openid-configuration") == 1


def test_token_of_a_key_that_the_provider_does_not_have_is_refused(provider, client):
    stranger = ec_key("unknown")
    provider.sign = lambda claims: provider.sign_well(claims, key=stranger)
    told(go(client), 403)


# -- a provider in trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["access_denied", "login_required", "<script>", "x" * 99])
def test_error_of_the_provider_is_told_and_recorded(provider, client, code, caplog):
    provider.declines = code
    text = told(go(client), 403)
    assert "has not proved who you are" in text
    assert code not in text
    assert [row.metadata for row in rows("staff_login_failed")] == [{"rule": "provider_refused"}]
    assert lines(caplog, "staff_denied") == [f"provider: {code}" if code.endswith("d") else "provider: error"]


def test_answer_of_another_issuer_is_refused(provider, client):
    answer = answer_of(client, provider)
    told(client.get(CALLBACK, {**answer, "iss": "https://another.example.com"}), 403)
    provider.extra_metadata = {"authorization_response_iss_parameter_supported": True}
    openid._read.clear()
    answer = answer_of(client, provider)
    told(client.get(CALLBACK, answer), 403)
    answer = answer_of(client, provider)
    assert client.get(CALLBACK, {**answer, "iss": provider.issuer}).status_code == 302


def test_provider_that_is_away_is_told_and_not_asked_again_at_once(provider, client, caplog):
    provider.close()
    for _ in range(2):
        assert "does not answer" in told(client.get(START), 502)
    away = ["/realm/.well-known/openid-configuration: ConnectionError", "was away just now"]
    assert lines(caplog, "provider_away") == away
    assert not rows("staff_login_failed")


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("openid-configuration", 404, b"{}"),
        ("openid-configuration", 302, b"{}"),
        ("openid-configuration", 200, b"[]"),
        ("openid-configuration", 200, b"<html>"),
        ("openid-configuration", 200, b'{"issuer": "https://another.example.com"}'),
        ("openid-configuration", 200, b" " * (openid.MAX_BYTES + 1)),
        ("keys", 500, b"{}"),
        ("keys", 200, b'{"keys": 7}'),
        ("keys", 200, b'{"keys": []}'),
        ("token", 503, b"{}"),
        ("token", 200, b"[]"),
        ("token", 200, b"{}"),
        ("token", 200, b'{"id_token": 7}'),
        ("token", 302, b""),
    ],
)
def test_senseless_answer_of_the_provider_is_502(provider, client, name, status, body):
    provider.wrong = {name: (status, body)}
    answer = client.get(START) if name == "openid-configuration" else go(client)
    assert "does not answer, or not as it should" in told(answer, 502)


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("authorization_endpoint", None),
        ("token_endpoint", 7),
        ("jwks_uri", "file:///etc/passwd"),
        ("jwks_uri", "//127.0.0.1/keys"),
    ],
)
def test_endpoint_that_is_no_address_is_502(provider, client, name, endpoint):
    provider.extra_metadata = {name: endpoint}
    told(client.get(START), 502)


def test_metadata_with_secret_algorithms_alone_is_502(provider, client):
    provider.extra_metadata = {"id_token_signing_alg_values_supported": ["HS256", "none"]}
    told(go(client), 502)


def test_slow_provider_does_not_hold_us_up(provider):
    """Neither a provider that says nothing, nor one that says a byte now and then. Both at once, to save time."""
    silent, dripping = provider, OpenIDProvider()
    silent.slow_s, dripping.drip_s = openid.READ_S + 1, 0.2
    began = time.monotonic()
    with ThreadPoolExecutor() as threads, contextlib.closing(dripping):
        calls = [threads.submit(openid._get, f"{each.issuer}/keys") for each in (silent, dripping)]
        assert [str(call.exception()) for call in calls] == ["/realm/keys: ReadTimeout", "/realm/keys: Timeout"]
        assert time.monotonic() - began < openid.CALL_S + 1


def test_calls_at_a_time_are_few(provider, client):
    for _ in range(openid.AT_A_TIME):
        assert openid._slots.acquire(blocking=False)
    try:
        told(client.get(START), 502)
    finally:
        openid._slots.release(openid.AT_A_TIME)


def test_provider_that_takes_the_secret_in_the_body_gets_it_there(provider, client):
    provider.extra_metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    go(client)
    assert is_logged_in(client)


def test_wrong_client_secret_is_told_and_named_in_the_log(provider, client, settings, caplog):
    settings.ENV = settings.ENV.model_copy(update={"oidc_client_secret": "mistyped"})
    told(go(client), 403)
    assert lines(caplog, "staff_denied") == ["provider: invalid_client"]


def test_no_secret_is_logged_recorded_or_shown(provider, client, caplog):
    caplog.set_level("DEBUG")
    go(client)
    provider.sign = forged
    shown = go(Client()).text
    provider.sign, provider.claims = provider.sign_well, {"nonce": "wrong"}
    shown += go(Client()).text
    said = shown + "".join(
        str(record.__dict__) for record in caplog.records if record.name.split(".")[0] not in ("urllib3", "faker")
    )
    said += "".join(str(row.__dict__) for row in AuditRow.objects.all())
    assert len(provider.tokens) == 12
    for secret in (*provider.tokens, CLIENT_SECRET):
        assert secret not in said
