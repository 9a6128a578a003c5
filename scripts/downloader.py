"""``python downloader.py``: the short name of download_musicnet.py beside it."""

import sys

from download_musicnet import main

if __name__ == "__main__":
    sys.exit(main())
