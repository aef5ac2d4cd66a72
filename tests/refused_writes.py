"""Writes that PostgreSQL refuses, with any SQLSTATE."""

from contextlib import contextmanager


@contextmanager
def refusing(superuser, table, sqlstate, *, on="INSERT", when="true"):
    """Each write to the table of that kind fails with the SQLSTATE, for rows NEW and OLD that meet the condition `when`."""
    superuser.execute(
        f"""
        CREATE FUNCTION refuse_write() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'refused by a test' USING ERRCODE = '{sqlstate}'; END $$;
        CREATE TRIGGER refuse_write BEFORE {on} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse_write()
        """
    )
    try:
        yield
    finally:
        superuser.execute("DROP FUNCTION refuse_write CASCADE")
