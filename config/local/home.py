"""The folder of a local run (`ORCH_HOME`): where it is, what is in it, and the secrets generated for it.

env              secrets of this home (0600)
admin-password   of the first staff user (0600)
postgres         PostgreSQL's data and socket; a link when its user could not reach it here
run              sockets of Valkey and the supervisor
backend          where the engines live, while there are any
engines, log     what the engines keep, what the processes print
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
USERNAME = "admin"  # of the first staff user
LONGEST_SOCKET = 107  # bytes of `sun_path`, its terminating zero excluded


class Refused(Exception):
    """Something on this machine is in the way; `str()` is one line for the person at the terminal."""


def locate() -> Path:
    """Absolute path of `ORCH_HOME`; a relative one counts from the folder of manage.py, whatever the working directory."""
    return Path(os.path.abspath(BASE_DIR / Path(os.environ.get("ORCH_HOME") or ".local").expanduser()))


def deployment(home: Path) -> str:
    """Name of what this home has on a Docker daemon, which others may share."""
    return f"local-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"


def lay_out(home: Path) -> None:
    """Make the folders of `home`. Safe to repeat and to race. Raises Refused where it cannot write."""
    try:
        # As root, PostgreSQL's own user has to pass through; everything inside is 0700 or 0600.
        make_folder(home, 0o711 if os.geteuid() == 0 else 0o700)
        for name in ("run", "engines", "log", "valkey"):
            make_folder(home / name, 0o700)
        if not os.access(home, os.W_OK):
            raise PermissionError(13, "Permission denied", str(home))
    except OSError as error:
        raise Refused(f"cannot write to {home}: {error.strerror}; choose another folder with ORCH_HOME=...") from error


def make_folder(path: Path, mode: int) -> None:
    """Create `path` (and parents) with exactly `mode`; one that exists is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(mode)
    if not path.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path))


def is_open_to_all(path: Path) -> bool:
    """Whether a user without any rights of its own may pass through `path` and all its parents."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def socket_folder(folder: Path, name: str, uid: int) -> Path:
    """`folder`, or a short stand-in owned by `uid` where the path of a socket called `name` has too long a path or an odd one."""
    if len(os.fsencode(folder / name)) <= LONGEST_SOCKET and quote(str(folder)) == str(folder):
        return folder
    # Not TMPDIR: every process of this home has to arrive at the same path.
    short = Path(f"/tmp/roundhouse-{uid}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}")  # noqa: S108
    with suppress(FileExistsError):
        short.mkdir(mode=0o700)
        if uid != os.geteuid():
            os.chown(short, uid, -1)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise Refused(f"{short} is not a private folder of ours; remove it, or choose a shorter ORCH_HOME")
    return short


def runtime_folder(home: Path) -> Path:
    """Folder (0700) of the sockets of Valkey and the supervisor; the supervisor adds its pid to the name while it binds."""
    return socket_folder(home / "run", "supervisor.sock.4194304", os.geteuid())


def accepts(path: Path) -> bool:
    """Whether something listens on the Unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(path))
        except OSError:
            return False
    return True


def read_secrets(home: Path) -> dict[str, str]:
    """The secrets of `home`, generated once: names and values as in its `env` file."""
    path = home / "env"
    if not path.exists():
        _write_once(path, "".join(f"{name}={value}\n" for name, value in _generate().items()))
    try:
        lines = path.read_text().splitlines()
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
    """Write a whole private file, unless another process was first: a reader never sees half of it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(handle, "w") as file:
            file.write(text)
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        Path(draft).unlink()
