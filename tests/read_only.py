"""The run's database as after a failover: it can be read and not written."""

from contextlib import contextmanager

from django.db import connection

from config.local import postgres
from tests import conftest


@contextmanager
def read_only():
    """New sessions can only read, and there are no others. Yields a call that makes new sessions write again before the end."""
    with conftest.as_superuser() as superuser:
        superuser.execute("SET default_transaction_read_only = off")
        superuser.execute(f"ALTER DATABASE {postgres.DATABASE} SET default_transaction_read_only = on")

        def make_writable():
            superuser.execute(f"ALTER DATABASE {postgres.DATABASE} RESET default_transaction_read_only")

        try:
            superuser.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [postgres.APP])
            yield make_writable
        finally:
            make_writable()
            connection.close()
