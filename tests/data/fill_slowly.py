"""Fill a cache slowly, writing the index after every batch.

This leaves time to kill the process halfway.
"""

import sys
import time
from functools import partial
from pathlib import Path

from pylon.data import cache
from pylon.data.sources import read_chestxray14


def read_slowly(path, read=cache.read_image):
    time.sleep(0.02)
    return read(path)


data = Path(sys.argv[1])
cache.read_image = read_slowly
cache.SECONDS_BETWEEN_COMMITS = 0
say = partial(print, flush=True)
cache.open_cache(read_chestxray14(data).images, data / "cache", 128, 2, say)
