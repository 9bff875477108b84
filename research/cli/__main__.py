"""``python -m research.cli`` is the command ``headway``."""

import sys

from research.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
