"""Entries of the progress of predict.py, for tests."""

from pylon.prediction.journal import Entry


def entry(image: str, score: float = 0.25) -> Entry:
    findings = [[score, True, 1, 2, 3, 4, 5, 6], [0.1, None, 7, 8, 9, 10, 11, 12]]
    return Entry(image, 0, 0, 40, 30, 8, False, None, False, [], findings)
