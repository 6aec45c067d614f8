"""Progress of long loops: a bar in a terminal, occasional plain lines in a log."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def track(
    iterable: Iterable,
    title: str,
    unit: str,
    total: int | None = None,
    shown: bool = True,
    leave: bool = False,
    with_rate: bool = False,
) -> "tqdm | Lines":
    """Iterate with a progress bar on stderr, or plain lines (`Lines`) if it is not a terminal.

    Args:
        title: what is being done.
        unit: what is counted, singular.
        total: number of items, if the iterable has no length.
        shown: False on all processes but one.
        leave: whether the bar stays when it is complete.
        with_rate: whether plain lines show units per second, as bars do.
    """
    if sys.stderr.isatty() or not shown:
        return tqdm(iterable, desc=title, unit=unit, total=total, leave=leave, disable=not shown)
    return Lines(iterable, title, unit, total, with_rate)


class Lines:
    """Print a line every 30 seconds, however long a step takes, and one at the end."""

    def __init__(
        self,
        iterable: Iterable,
        title: str,
        unit: str,
        total: int | None = None,
        with_rate: bool = False,
    ):
        self.iterable = iterable
        self.title = title
        self.unit = unit
        self.total = total if total is not None else len(iterable)
        self.with_rate = with_rate
        self.done = 0
        self.figures = {}
        self.start = time.monotonic()

    def set_postfix(self, figures: dict[str, str], refresh: bool = True) -> None:
        """Set the figures at the end of each line, as for tqdm's bars."""
        self.figures = figures
        if refresh:
            self.write()

    def __iter__(self) -> Iterator[Any]:
        ended = threading.Event()
        watch = threading.Thread(target=self.write_until, args=(ended,), daemon=True)
        watch.start()
        try:
            for item in self.iterable:
                yield item
                self.done += 1
        finally:
            ended.set()
            watch.join()
        self.write()

    def write_until(self, ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            self.write()

    def write(self) -> None:
        elapsed = time.monotonic() - self.start
        minutes, seconds = divmod(int(elapsed), 60)
        figures = "".join(f", {name} {value}" for name, value in self.figures.items())
        units = self.unit + ("es" if self.unit.endswith(("ch", "s")) else "s")
        if self.with_rate and self.done:
            figures = f", {self.done / elapsed:.1f} {units}/s{figures}"
        line = f"{self.title}: {self.done} of {self.total} {units}, {minutes}:{seconds:02}{figures}"
        print(line, file=sys.stderr, flush=True)


def counted(images: int) -> str:
    """1 image, 2 images."""
    return f"{images} image" + ("" if images == 1 else "s")
