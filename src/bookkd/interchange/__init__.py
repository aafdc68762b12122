"""Books of what others stored: FKD, TinyViT, DistillKit, Megatron-LM and JSON lines from vLLM. No torch; nothing read is run.

A reader is a `Source` in a file of its own, a line in `FORMATS`, a section in the guide and a test that builds its bytes from the
published layout.
"""

from __future__ import annotations

from bookkd.interchange._source import sample_key, sequence_key
from bookkd.interchange.convert import FORMATS, Imported, import_book

__all__ = ["FORMATS", "Imported", "import_book", "sample_key", "sequence_key"]
