"""``python -m rave_tools`` is the ``rave_tools`` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
