"""Results of images, as predict.py records them, for tests."""

from pylon.prediction.journal import Result


def result_of(image: str, score: float = 0.25) -> Result:
    """The result of an image whose class Hernia has no threshold."""
    mass = {"score": score, "present": True, "point": [1, 2], "box": [3, 4, 5, 6]}
    hernia = {"score": 0.1, "present": None, "point": [7, 8], "box": [9, 10, 11, 12]}
    findings = [{"label": "Mass", **mass}, {"label": "Hernia", **hernia}]
    return Result(image, "0 0", height=40, width=30, notes=[], findings=findings)
