"""Sessions of staff (Django's `SESSION_ENGINE`), in Django's table, with digests in place of keys, and with two ends.

- The table has a digest of each session's key: whoever reads the table cannot use what it has.
- A session of somebody who has logged in ends LONGEST after the log-in, and IDLE after the last activity. Before the log-in is
  complete, such as between the password and the second factor, a session ends after UNFINISHED. All by the database's clock.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.models import Session
from django.db.models.functions import Now

from common import times

LONGEST = timedelta(hours=12)
IDLE = timedelta(minutes=30)
UNFINISHED = timedelta(minutes=10)
GRAIN = timedelta(seconds=30)  # of an activity, so that a burst of requests writes a single time
BEGAN = "began"  # key of a session's data: the time of the log-in


class SessionStore(db.SessionStore):
    """A session. `begin` makes it the session of somebody who has logged in."""

    def begin(self) -> None:
        """Note that the log-in is complete: from now on LONGEST and IDLE hold. The caller saves the session."""
        self[BEGAN] = times.database_now().isoformat()

    def prolong(self) -> None:
        """Note an activity: the session ends IDLE from now, or LONGEST after its log-in. No effect before `begin`."""
        if BEGAN in self and self.session_key:
            row = Session.objects.filter(
                session_key=_digest(self.session_key), expire_date__gt=Now()
            )  # and not one that has ended
            row.filter(expire_date__lt=Now() + IDLE - GRAIN).update(
                expire_date=min(times.database_now() + IDLE, datetime.fromisoformat(self[BEGAN]) + LONGEST)
            )

    def save(self, must_create: bool = False) -> None:
        """As Django's. A change of the data alone does not prolong the session. Raises CreateError, UpdateError."""
        if must_create or self.session_key is None:
            Session.objects.filter(expire_date__lt=Now()).delete()
            return super().save(must_create)
        data = self.encode(self._session)  # type: ignore[attr-defined]  # missing in the types
        if not Session.objects.filter(session_key=_digest(self.session_key)).update(session_data=data):
            raise UpdateError
        return None

    def create_model_instance(self, data: dict[str, Any]) -> Session:
        key = _digest(self._get_or_create_session_key())  # type: ignore[attr-defined]
        return Session(session_key=key, session_data=self.encode(data), expire_date=times.database_now() + UNFINISHED)

    def _get_session_from_db(self) -> Session | None:
        found = Session.objects.filter(session_key=_digest(self.session_key or ""), expire_date__gt=Now()).first()
        if found is None:
            self._session_key = None
        return found

    def exists(self, session_key: str) -> bool:
        return Session.objects.filter(session_key=_digest(session_key)).exists()

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            Session.objects.filter(session_key=_digest(key)).delete()


def end_all(user_id: int) -> None:
    """End all sessions of the user. Reads all sessions, of which there are as many as staff at work."""
    store = SessionStore()
    theirs = [row.pk for row in Session.objects.all() if store.decode(row.session_data).get(SESSION_KEY) == str(user_id)]
    Session.objects.filter(pk__in=theirs).delete()


def _digest(key: str) -> str:
    """160 bits of SHA-256, as many hex digits as Django's column holds. Keys are random, so no slow hash is needed."""
    return hashlib.sha256(key.encode()).hexdigest()[:40]
