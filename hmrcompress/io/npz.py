"""What goes wrong when a foreign .npz file is read."""

from __future__ import annotations

import zipfile
import zlib

UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""Everything that numpy and zipfile raise on torn or hostile archives. NotImplementedError is zipfile's word for a
compression, an encryption or a version of the format that it does not know; a flipped bit is enough to ask for one."""
