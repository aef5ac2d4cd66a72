"""Somebody logs in with the provider of the tests, step by step or at once, and what is seen of it."""

from urllib.parse import parse_qs, urlsplit

import requests

from audit.models import AuditRow

START, CALLBACK = "/admin/provider/", "/admin/provider/callback/"


def begin(client, path=START, **options):
    """The address of the provider to which the client is led."""
    answer = client.get(path, **options)
    assert answer.status_code == 302, answer.text
    return answer["Location"]


def come_back(client, address):
    """Our answer, once the person has logged in at the provider."""
    answer = requests.get(address, allow_redirects=False, timeout=5)
    back = urlsplit(answer.headers["Location"])
    assert back.path == CALLBACK
    return client.get(f"{back.path}?{back.query}")


def go(client, path=START):
    """From our link to the provider and back: our last answer."""
    return come_back(client, begin(client, path))


def told(answer, status):
    """The sentence of a page about a failure."""
    assert answer.status_code == status, answer
    assert 'href="/admin/login/"' in answer.text
    assert "no-store" in answer["Cache-Control"]
    return answer.text


def is_logged_in(client):
    return client.get("/admin/").status_code == 200


def names(user):
    return sorted(user.groups.values_list("name", flat=True))


def lines(caplog, event):
    """The reasons in the log lines of an event."""
    found = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [line["reason"] for line in found if line["event"] == event]


def rows(action):
    return list(AuditRow.objects.filter(action=action).order_by("id"))


def answer_of(client, provider, path=START):
    """The parameters of the provider's answer."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(begin(client, path)).query).items()}
    return {name: values[0] for name, values in parse_qs(urlsplit(provider.authorize(query)).query).items()}
