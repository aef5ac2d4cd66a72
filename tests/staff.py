"""Members of staff, each with the permissions that a test gives them."""

from django.contrib.auth.models import Permission, User
from django.test import Client

VIEWS = ("engines.view_engine", "engines.view_operation", "policy.view_product", "audit.view_auditrow")


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
    return client
