"""The proof of an answer, as our code and the page for builders of images make it."""

import hashlib
import re

import pytest
from django.conf import settings

from engines import proof

NONCE = "0123456789abcdef0123456789abcdef"
KEY_HASH = hashlib.sha256(b"sk-sept-test").hexdigest()
# printf 0123456789abcdef0123456789abcdef | openssl dgst -sha256 -hmac $(printf sk-sept-test | sha256sum | cut -c1-64)
SHOWN = "7a4bceb73415108ae497173e36a2e66406639e1b4634750e51f4b45df22c40b7"


def test_prove_is_what_openssl_says():
    assert proof.prove(KEY_HASH, NONCE) == SHOWN


@pytest.mark.parametrize(
    ("shown", "is_right"),
    [(SHOWN.encode(), True), (SHOWN.upper().encode(), False), (SHOWN[:-1].encode(), False), (b"", False), (b"\xff" * 64, False)],
)
def test_is_shown_takes_the_whole_proof_only(shown, is_right):
    assert proof.is_shown(shown, KEY_HASH, NONCE) is is_right


def test_make_nonce_repeats_none():
    assert len({proof.make_nonce() for _ in range(1000)}) == 1000


def test_page_for_builders_shows_code_that_proves(monkeypatch):
    page = (settings.BASE_DIR / "docs" / "engines.md").read_text()
    code = re.search(r"```python\n(.*?def prove.*?)```", page, re.DOTALL)[1]
    monkeypatch.setenv("ENGINE_KEY_HASH", KEY_HASH)
    names = {}
    exec(code, names)
    assert names["prove"](NONCE) == SHOWN
    assert proof.NONCE in page
    assert proof.PROOF in page
