"""Fill a cache image by image, each in the index at once, so that there is time to kill the process that does it."""

import sys
import time
from functools import partial
from pathlib import Path

from pylon import cache
from pylon.chestxray14 import read_images


def read_slowly(path, read=cache.read_image):
    time.sleep(0.02)
    return read(path)


data = Path(sys.argv[1])
cache.read_image = read_slowly
cache.SECONDS_BETWEEN_COMMITS = 0
cache.open_cache(read_images(data), data, 128, 2, partial(print, flush=True))
