"""Fixtures of the tests of staff."""

import pytest
from django.contrib.auth.models import Group

from fleet.staff import openid
from tests.fleet.staff.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIDProvider

MAPPING = "platform=operators,security=auditors,guests=nobody-made-this"


@pytest.fixture
def provider(db, settings):
    """The provider in the settings, with a person in `platform`, which gives our group `operators`."""
    openid._read.clear()  # an earlier provider may have had the port
    made = OpenIDProvider(sub="sub-of-nina", preferred_username="nina", email="nina@example.com", groups=["platform"])
    settings.ENV = settings.ENV.model_copy(
        update={
            "oidc_issuer": made.issuer,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            "oidc_name": "Example Login",
            "oidc_groups": MAPPING,
        }
    )
    for name in ("operators", "auditors", "local"):
        Group.objects.create(name=name)
    yield made
    made.close()
