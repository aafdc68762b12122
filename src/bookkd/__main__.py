"""`python -m bookkd`, where the program is not on the path (Lightning starts further ranks this way)."""

from __future__ import annotations

import sys

from bookkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
