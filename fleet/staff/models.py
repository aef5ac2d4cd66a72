"""The tables of staff, beside Django's users and groups."""

from typing import ClassVar, Self

from django.contrib.auth.models import User
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

# -- second factors ----------------------------------------------------------------------------------------------------


class SecondFactorQuerySet(models.QuerySet["SecondFactor"]):
    """Queries for second factors."""

    def confirmed(self) -> Self:
        """Select the second factors that log-ins ask for."""
        return self.exclude(confirmed_at=None)


class SecondFactor(models.Model):
    """The second factor of a user: an authenticator app, and recovery codes. Written by `fleet.staff.second_factor`."""

    user = models.OneToOneField(User, models.CASCADE, primary_key=True, related_name="second_factor")
    secret_ciphertext = models.TextField(help_text="The secret that the app shares with us, encrypted under a master key.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    confirmed_at = models.DateTimeField(null=True, help_text="Null while the factor is being set up.")
    last_step = models.BigIntegerField(default=0, help_text="Number of the last time step whose code was accepted.")
    recovery_hashes = ArrayField(models.TextField(), default=list, help_text="SHA-256 of each recovery code not used yet.")

    objects = SecondFactorQuerySet.as_manager()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"second factor of {self.user.get_username()}"


# -- single sign-on ----------------------------------------------------------------------------------------------------


class Identity(models.Model):
    """Who a user is at the provider of single sign-on, by issuer and subject.

    A name or an address of e-mail at the provider proves nothing: people choose them, and they pass to other people.
    """

    user = models.OneToOneField(User, on_delete=models.PROTECT, related_name="identity")
    issuer = models.CharField(max_length=500)
    subject = models.CharField(max_length=255)

    class Meta:
        default_permissions = ()
        constraints: ClassVar = [models.UniqueConstraint(fields=["issuer", "subject"], name="staff_identity_of_one_user")]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"
