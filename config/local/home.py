"""The folder of a local run (`ORCH_HOME`): its place, its contents, and its generated secrets.

env              secrets of the home (0600)
admin-password   password of the first staff user (0600)
postgres         PostgreSQL's data and socket; a link if PostgreSQL's user cannot reach the home
run              sockets of Valkey and the supervisor
backend          backend of the engines, while engines exist
engines, log     files of the engines, output of the processes
"""

import base64
import hashlib
import os
import secrets
import socket
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

BASE_DIR = Path(__file__).resolve().parents[2]
SHARED = Path("/var/lib/roundhouse")
USERNAME = "admin"  # name of the first staff user
LONGEST_SOCKET = 107  # bytes of `sun_path`, its terminating zero excluded


class Refused(Exception):
    """Refuses to continue, for a reason on the local machine; `str()` is a single line for the person at the terminal."""


def locate() -> Path:
    """Absolute path of `ORCH_HOME`; a relative path starts at the folder of manage.py, not at the working directory."""
    return Path(os.path.abspath(BASE_DIR / Path(os.environ.get("ORCH_HOME") or ".local").expanduser()))


def deployment(home: Path) -> str:
    """The deployment's name on a Docker daemon, which several homes may share."""
    return f"local-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"


def lay_out(home: Path) -> None:
    """Make the folders of `home`. Safe to repeat and to race. Raises Refused if `home` is not writable or not printable."""
    if not str(home).isprintable():  # PostgreSQL's tools refuse a line break, and no terminal shows what is not text
        raise Refused(f"ORCH_HOME={str(home)!r} has characters that cannot be printed; choose another folder")
    try:
        # Under root, PostgreSQL runs as a user of its own, who has to pass through; everything inside is 0700 or 0600.
        make_folder(home, 0o711 if os.geteuid() == 0 else 0o700)
        for name in ("run", "engines", "log", "valkey"):
            make_folder(home / name, 0o700)
        if not os.access(home, os.W_OK):
            raise PermissionError(13, "Permission denied", str(home))
    except OSError as error:
        raise Refused(f"cannot write to {home}: {error.strerror}; choose another folder with ORCH_HOME=...") from error


def make_folder(path: Path, mode: int) -> None:
    """Create `path` (and parents) with exactly `mode`; leave an existing folder unchanged. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(mode)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))


def is_open_to_all(path: Path) -> bool:
    """Whether an unprivileged user may pass through `path` and all its parents."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def socket_folder(folder: Path, name: str, uid: int) -> Path:
    """`folder`, or a short replacement owned by `uid` if the path of the socket `name` is too long or needs quoting."""
    if len(os.fsencode(folder / name)) <= LONGEST_SOCKET and quote(str(folder)) == str(folder):
        return folder
    # Not TMPDIR: all processes of the home must compute an identical path, whatever their environment.
    short = Path(f"/tmp/roundhouse-{uid}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}")  # noqa: S108
    with suppress(FileExistsError):
        short.mkdir(mode=0o700)
        if uid != os.geteuid():
            os.chown(short, uid, -1)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise Refused(f"{short} is not a private folder (mode 0700) of user id {uid}; remove it, or choose a shorter ORCH_HOME")
    return short


def runtime_folder(home: Path) -> Path:
    """Folder (0700) of the sockets of Valkey and the supervisor; while binding, the supervisor appends its pid to the name."""
    return socket_folder(home / "run", "supervisor.sock.4194304", os.geteuid())


def accepts(path: Path) -> bool:
    """Whether a process listens on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(path))
        except OSError:
            return False
    return True


def read_secrets(home: Path) -> dict[str, str]:
    """The secrets of `home`, generated on first use: names and values as in the `env` file. Raises Refused."""
    path = home / "env"
    if not path.exists():
        _write_once(path, "".join(f"{name}={value}\n" for name, value in _generate().items()))
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}") from error
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _generate() -> dict[str, str]:
    return {
        "ORCH_SECRET_KEY": secrets.token_urlsafe(50),
        "ORCH_MASTER_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),  # a Fernet key
        "ORCH_ADMIN_KEY": secrets.token_urlsafe(32),
        "POSTGRES_SUPERUSER_PASSWORD": secrets.token_urlsafe(24),
        "POSTGRES_OWNER_PASSWORD": secrets.token_urlsafe(24),
        "POSTGRES_APP_PASSWORD": secrets.token_urlsafe(24),
    }


def _write_once(path: Path, text: str) -> None:
    """Write a private file, unless a concurrent process was first; a reader never sees an incomplete file."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w") as file:
            file.write(text)
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        Path(draft).unlink()
