"""How Django finds staff: as by default, and with the second factor in the same query, because every page asks for it."""

from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User


class StaffBackend(ModelBackend):
    def get_user(self, user_id: int) -> User | None:
        found = User.objects.select_related("second_factor").filter(pk=user_id).first()
        return found if found and self.user_can_authenticate(found) else None
