"""Members of staff, each with the permissions that a test gives them."""

from datetime import timedelta

from django.contrib.auth.models import Permission, User
from django.test import Client

from common import times
from fleet.staff.confirmation import CONFIRMED
from fleet.staff.hashers import TakingTurns

VIEWS = ("engines.view_engine", "engines.view_operation", "policy.view_product", "audit.view_auditrow")


class QuickHasher(TakingTurns):
    """The hasher of the tests: a hundredth of the iterations, as a hash takes a third of a second. Nothing else differs."""

    iterations = TakingTurns.iterations // 100


def hire(username, *permissions, superuser=False, password=None):
    """A member of staff who may look at everything, and do what `permissions` name (`app.codename`)."""
    make = User.objects.create_superuser if superuser else User.objects.create_user
    user = make(username, password=password, **({} if superuser else {"is_staff": True}))
    for name in (*VIEWS, *permissions):
        app, codename = name.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def log_in(username, *permissions, superuser=False, **options):
    """A client of a new member of staff, logged in to the admin."""
    client = Client(**options)
    client.force_login(hire(username, *permissions, superuser=superuser))
    return prove(client)


def prove(client, ago=timedelta()):
    """The client, whose user gave the password at that time before now."""
    session = client.session
    session[CONFIRMED] = (times.database_now() - ago).isoformat()
    session.save()
    return client
