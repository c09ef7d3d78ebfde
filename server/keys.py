# SPDX-License-Identifier: Apache-2.0
"""API keys: named, kept as hashes in a file, compared in constant time."""

import hashlib
import hmac
import logging
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aerie.server.errors import BadOption
from aerie.server.front_settings import AccessSettings

KEY_PREFIX = "aerie-"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
LINE = re.compile(r"([A-Za-z0-9_.-]{1,64})\s*:\s*([0-9a-fA-F]{64})")
LOOK_SECONDS = 1.0
log = logging.getLogger(__name__)


class KeyFileError(ValueError):
    """The file of keys cannot be used. Names the line, never what is on it."""


def make_key(name: str) -> tuple[str, str]:
    """A new key of 256 random bits, and its line for the file.

    Raises:
        BadOption: the name has other characters than letters, digits, `_`, `.` and `-`, or too many.
    """
    if not NAME.fullmatch(name):
        raise BadOption("NAME", f"{name!r} is no name for a key", "use up to 64 letters, digits, `_`, `.` and `-`")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def read_keys(path: Path) -> dict[str, bytes]:
    """SHA-256 of each key by its name, from lines `NAME:SHA256`; `#` begins a comment.

    Raises:
        KeyFileError: it cannot be read, is open to writing by everybody, holds no key or a line of another form.
    """
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise KeyFileError(f"everybody may write {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read {path} ({type(error).__name__})") from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = LINE.fullmatch(text)
        if found is None or found[1] in keys:
            fault = "is not NAME:SHA256" if found is None else "names a key a second time"
            raise KeyFileError(f"line {number} of {path} {fault}")
        keys[found[1]] = bytes.fromhex(found[2])
    if not keys:
        raise KeyFileError(f"{path} holds no key")
    return keys


def open_keys(settings: AccessSettings) -> "KeyRing | None":
    """The keys of the settings' file; `None` when everybody gets in.

    Raises:
        BadOption: the file cannot be used.
    """
    if settings.api_key_file is None:
        return None
    try:
        return KeyRing(Path(settings.api_key_file).expanduser())
    except KeyFileError as error:
        raise BadOption("--api-key-file", str(error), "make a key with `aerie key NAME`") from None


class KeyRing:
    """The keys of a file, read again when the file changes; a file that cannot be used leaves them as they were."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            KeyFileError: it cannot be used.
        """
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._seen = self._state()
        self._keys: Mapping[str, bytes] = read_keys(path)

    def name(self, presented: str) -> str | None:
        """The name of a key, or `None`. Takes as long for every text of one length: all keys are compared."""
        self._reload()
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        matched = None
        for name, known in self._keys.items():
            if hmac.compare_digest(digest, known):
                matched = name
        return matched

    def _reload(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("read %d API keys: %s", len(self._keys), ", ".join(self._keys))

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        # A file refused for its mode or its owner changes in these alone.
        return found.st_mtime_ns, found.st_ctime_ns, found.st_mode, found.st_size, found.st_ino


class Salts:
    """What separates prefix caches: a salt for each key's name, which nobody can guess."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, name: str, chosen: str) -> str:
        """The salt of a key, and of what its client chose besides; 64 hexadecimal digits."""
        return hmac.new(self._secret, f"{name}\0{chosen}".encode(), hashlib.sha256).hexdigest()
