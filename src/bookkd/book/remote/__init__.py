"""Books that lie on a server: addresses, transfers that are bounded and checked, a cache shared by processes.

What the format says of files holds for objects; `_files.py` alone tells the two apart. Clients are imported where a store is
opened (extra `remote`).
"""

from __future__ import annotations

from bookkd.book.remote.address import Root, local_folder, root_of
from bookkd.book.remote.path import RemotePath

__all__ = ["RemotePath", "Root", "local_folder", "root_of"]
