"""The temporary folder, whose troubles are its own and no store's."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perennial.errors import StoreError

#: no room, a file beyond its limit, a quota, a disk that takes no writes
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS}
_NUMBER = re.compile(r"\[Errno (\d+)\]")


@contextmanager
def scratch_folder(kind: type[StoreError], what: str) -> Iterator[Path]:
    """A folder that is gone after the block; `what` is to be done in it, for the error.

    Raises:
        StoreError: of `kind`: no such folder can be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="perennial-")
    except OSError as error:
        raise kind(unusable(what, error)) from error
    with folder as path:
        yield Path(path)


def unusable(what: str, error: OSError) -> str:
    """The sentence for a temporary folder that cannot be used."""
    return (
        f"the temporary folder {os.environ.get('TMPDIR') or 'of this machine'} cannot be used ({what}): {error}. Make "
        "room there, or name another one in TMPDIR."
    )


def without_room(error: BaseException) -> BaseException | None:
    """The error among an error and its causes that says that a disk of this machine is full; None where none does."""
    cause: BaseException | None = error
    while cause is not None:
        # MLflow keeps of an error while it downloads its text only
        told = _NUMBER.search(str(cause))
        number = cause.errno if isinstance(cause, OSError) else int(told[1]) if told else None
        if number in _NO_ROOM:
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
