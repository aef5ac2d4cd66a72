"""The pool after a restart of PostgreSQL."""

import threading

from django.db import connection

from tests import waiting


def test_pool_with_many_broken_connections_recovers_at_once(db, superuser):
    gate = threading.Barrier(10)

    def use() -> None:
        connection.cursor().execute("SELECT 1")
        gate.wait()
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.close()
    assert connection.pool.get_stats()["pool_available"] >= 10
    superuser.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'roundhouse_app'")
    began = waiting.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    assert waiting.now() - began < 3
