"""README.md of a checkpoint, its model card on the Hugging Face hub; and what may be shared.

The card is made from config.json and training.json, by the template model_card.md. Only what is
chosen here gets into it, and into a training.json that leaves this computer: no path, name of a
folder, or name of a file of yours.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pylon.options import SHARED, options_with

SHARED_FACTS = (
    "finished", "class_names", "mean", "std", "image_size", "split_sha256", "versions", "epoch",
    "val_loss", "thresholds", "calibration", "operating_point", "fitted_on", "validation",
    "weights_sha256", "rounded_from",
)  # fmt: skip
NIHS_LISTS = re.compile(
    r"Data_Entry_2017(_v2020)?\.csv|BBox_List_2017\.csv|(train_val|test)_list\.txt"
    r"|original_split_(train|val|test)\.csv"
)
TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ("chest-x-ray", "weak-localization", "medical", "not-for-clinical-use")
LICENCE = "apache-2.0"
CAVEAT = (
    "**Not for clinical use.** For research only: this is not a medical device, and what it says "
    "is not a diagnosis."
)
CITATION = """```bibtex
@article{preechakul2020pylon,
  title   = {High resolution weakly supervised localization architectures for medical images},
  author  = {Preechakul, Konpat and Sriswasdi, Sira and Kijsirikul, Boonserm and
             Chuangsuwanich, Ekapol},
  journal = {arXiv preprint arXiv:2010.11475},
  year    = {2020}
}
```"""


class Scores(NamedTuple):
    """The scores of a network, for its card."""

    results: list[EvalResult]
    text: str  # Markdown, with headings of level 3
    synthetic: str | None = None  # what the images are if they are not radiographs


def shared_card(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a training.json that may leave this computer.

    Files are named by what they are: a list that is not NIH's is a "table".
    """
    shared = {key: card[key] for key in SHARED_FACTS if key in card}
    options = card.get("options", {})
    shared["options"] = {key: options[key] for key in options_with(SHARED) if key in options}
    if "encoder_weights" in options:
        known = options["encoder_weights"] in ("imagenet", "none")
        shared["options"]["encoder_weights"] = options["encoder_weights"] if known else "other"
    if "init_from" in options:
        starts = options["init_from"] is not None
        shared["options"]["init_from"] = "another checkpoint" if starts else None
    shared["list_sha256"] = {}
    for k, (name, sha256) in enumerate(card.get("list_sha256", {}).items(), 1):
        shared["list_sha256"][name if NIHS_LISTS.fullmatch(name) else f"table {k}"] = sha256
    if "data" in card:
        facts = ("official", "synthetic", "images", "patients")
        data = card["data"]
        shared["data"] = data and {key: data.get(key) for key in facts}
    return shared


def model_card(
    config: dict[str, Any],
    card: dict[str, Any] | None,
    source: str = "PATH/OF/THIS/FOLDER",
    scores: Scores | None = None,
    data_name: str | None = None,
    licence: str = LICENCE,
    notes: Sequence[str] = (),
) -> ModelCard:
    """Write the model card.

    Args:
        config: as in config.json, with the description of the network.
        card: as in training.json; None if it is not known how the network was trained.
        source: what `pylon.Predictor` takes to load it.
        scores: None if it has not been scored.
        data_name: name of the training data; if not given, it is named as far as it is known.
        licence: of the weights, an identifier of the hub.
        notes: sentences for the limits.
    """
    card = {} if card is None else shared_card(card)
    data = card.get("data") or {}
    trained_on = data.get("synthetic")
    scored_on = scores.synthetic if scores else None
    metadata = ModelCardData(
        license=licence,
        library_name="pylon",
        pipeline_tag="image-classification",
        tags=[*TAGS, *(["synthetic-data"] if trained_on or scored_on else [])],
        metrics=sorted({each.metric_type for each in scores.results}) if scores else None,
        model_name=source.rpartition("/")[2] if scores else None,
        eval_results=scores.results if scores else None,
    )
    options = [
        [f"--{key.replace('_', '-')}", "none" if value is None else value]
        for key, value in card.get("options", {}).items()
    ]
    return ModelCard.from_template(  # needs jinja2, on which torch depends
        metadata,
        str(TEMPLATE),
        title=f"{network_of(config)}, {findings_of(config)}",
        caveat=CAVEAT,
        trained_on=trained_on,
        scored_on=scored_on,
        source=source,
        notes=notes,
        config=config,
        outputs=table_of_outputs(config),
        training=card,
        data_name=name_of_data(data, data_name),
        images=data.get("images") or {},
        patients=data.get("patients") or {},
        options=table(["option of train.py", "value"], options),
        scores=scores,
        licence=licence,
        citation=CITATION,
        plain=plain,
    )


def network_of(config: dict[str, Any]) -> str:
    """Name of the network and its encoder."""
    encoder = config["encoder_name"]
    if config["kind"] == "baseline":
        return f"A baseline of PYLON ({config['model']}, {encoder})"
    ablated = config["up_modules"] != 3 or not config["attention"]
    return f"PYLON ({encoder}{', ablated' if ablated else ''})"


def findings_of(config: dict[str, Any]) -> str:
    count = config["classes"]
    return f"{count} finding{'s' if count > 1 else ''} of chest radiographs"


def table_of_outputs(config: dict[str, Any]) -> str:
    """Thresholds and calibration of each finding."""
    thresholds = config.get("thresholds") or {}
    lines = config.get("calibration") or {}
    rows = []
    for name in config.get("class_names") or []:
        slope, intercept = lines.get(name) or (None, None)
        rows.append(
            [name, three_digits(thresholds.get(name)), three_digits(slope), three_digits(intercept)]
        )
    return table(["finding", "threshold", "calibration: slope", "intercept"], rows)


def name_of_data(data: dict[str, Any], given: str | None) -> str:
    """Name of a data set: synthetic or NIH's, if it is known to be; else as given.

    Args:
        data: official, whether it is NIH's; synthetic, what its images are if not radiographs.
    """
    if data.get("synthetic"):
        return "Synthetic images, not radiographs"
    if data.get("official"):
        return "ChestX-ray14 (NIH)"
    return given or "Radiographs of a data set that is not named"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def three_digits(value: float | None) -> str:
    """Three digits after the point; blank for None and NaN."""
    return "" if value is None or value != value else f"{value:.3f}"


def plain(value: Any) -> str:
    """A value as text that Markdown shows as it is, in one line."""
    text = " ".join(str("" if value is None else value).split())
    text = text.encode(errors="backslashreplace").decode()  # names of classes may be any text
    return re.sub(r"([|<>*_`\[\]\\])", r"\\\1", text)
