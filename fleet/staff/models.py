"""What the database keeps of staff beside Django's users."""

from typing import Self

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
