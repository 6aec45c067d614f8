"""Files that fail while they are written, for tests."""

from collections.abc import Callable
from functools import partial
from typing import BinaryIO


class FaultyFile:
    """An open file, but for `write`, which calls a function with the file and the data."""

    def __init__(self, file: BinaryIO, write: Callable[[BinaryIO, bytes], None]):
        self.file = file
        self.write = partial(write, file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
