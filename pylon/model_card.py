"""README.md of a checkpoint, its model card on the Hugging Face hub; and what may be shared.

The card is made from config.json and training.json. Only what is chosen here gets into it, and into
a training.json that leaves this computer: no path, name of a folder, or name of a file of yours.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

# options of train.py that are shared as they are: numbers, switches and choices
SHARED_OPTIONS = (
    "model", "encoder_name", "up_layers", "up_modules", "attention", "pool", "image_size",
    "normalize", "seed", "epochs", "batch_size", "lr", "min_lr", "patience", "lr_factor",
    "train_share", "negatives", "rotate", "blur", "adjust_for", "optimizer", "schedule",
    "encoder_lr", "freeze", "average_weights", "prevalence_bias",
    "precision", "device", "augment", "cache_size", "compile", "deterministic", "skip_unreadable",
)  # fmt: skip
SHARED_FACTS = (
    "finished", "class_names", "mean", "std", "image_size", "split_sha256", "versions", "epoch",
    "val_loss", "thresholds", "calibration", "weights_sha256", "rounded_from",
)  # fmt: skip
NIHS_LISTS = re.compile(
    r"Data_Entry_2017(_v2020)?\.csv|BBox_List_2017\.csv|(train_val|test)_list\.txt"
    r"|original_split_(train|val|test)\.csv"
)
TAGS = ("chest-x-ray", "weak-localization", "medical", "not-for-clinical-use")
LICENCE = "apache-2.0"
CAVEAT = (
    "**Not for clinical use.** For research only: this is not a medical device, and what it says "
    "is not a diagnosis."
)
LIMITS = (
    "It calls findings present in healthy chests, too, and misses some that are there.",
    "It was trained on labels of whole images. A heatmap shows what the score depends on; whether "
    "it shows where the finding is has to be measured, on images with boxes.",
    "Scores hold for radiographs like those that were scored. On those of other hospitals, "
    "scanners, ages or views they can be much lower; thresholds and calibration, too, belong to "
    "the validation split that they were chosen on.",
    "Labels taken from reports by a program are often wrong, and the scores inherit that.",
)
USE = """```python
import pylon  # the code of this reproduction, package pylon-localization

predictor = pylon.Predictor("{source}")
prediction = predictor("radiograph.png")  # also DICOM, an array, a list
print(prediction.findings[0])  # the most probable one: score, threshold, box
prediction.overlay(prediction.findings[0]["label"])  # (H, W, 3) uint8, its heatmap
```"""
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
    shared["options"] = {key: options[key] for key in SHARED_OPTIONS if key in options}
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
    synthetic = ""
    if trained_on:
        synthetic = f"**Synthetic data.** {plain(trained_on)} Nothing here says anything about "
        synthetic += "radiographs."
    elif scored_on:
        synthetic = f"**Scored on synthetic images.** {plain(scored_on)} The scores say nothing "
        synthetic += "about radiographs."
    title = f"{network_of(config)}, {findings_of(config)}"
    metadata = ModelCardData(
        license=licence,
        library_name="pylon",
        pipeline_tag="image-classification",
        tags=[*TAGS, *(["synthetic-data"] if synthetic else [])],
        metrics=sorted({each.metric_type for each in scores.results}) if scores else None,
        model_name=source.rpartition("/")[2] if scores else None,
        eval_results=scores.results if scores else None,
    )
    parts = [
        f"# {title}",
        CAVEAT,
        synthetic,
        "From a frontal chest radiograph it gives, for each finding, a probability and a heatmap "
        "of where it is. It was trained on labels of whole images, without any boxes.",
        USE.replace("{source}", source),
        "## Intended use",
        "Research on weakly supervised localization: reproducing and comparing scores, and "
        "starting networks of your own. Not meant for decisions about patients, triage or "
        "screening, nor for radiographs of children or lateral views unless it was trained on "
        "those.",
        "## Limits",
        bullets([*notes, *LIMITS]),
        "## Inputs and outputs",
        inputs_and_outputs(config),
        "## Training",
        training(card, data, data_name),
        "## Scores",
        scores.text
        if scores
        else "Not scored yet. share.py adds the scores that eval_auc.py and eval_loc.py compute.",
        "## Licence and citation",
        f"Weights: {licence}, as chosen by those who share them. Code: Apache License 2.0. The "
        "rights in the training images are those of their owners.",
        CITATION,
    ]
    text = "\n\n".join(part for part in parts if part)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def network_of(config: dict[str, Any]) -> str:
    """Name of the network and its encoder."""
    encoder = config.get("encoder_name", "resnet50")
    if config.get("kind") == "baseline":
        return f"A baseline of PYLON ({config['model']}, {encoder})"
    ablated = config.get("up_modules", 3) != 3 or not config.get("attention", True)
    return f"PYLON ({encoder}{', ablated' if ablated else ''})"


def findings_of(config: dict[str, Any]) -> str:
    names = config.get("class_names") or []
    count = len(names) or config.get("classes", 14)
    return f"{count} finding{'s' if count > 1 else ''} of chest radiographs"


def inputs_and_outputs(config: dict[str, Any]) -> str:
    """What the network takes; thresholds and calibration of each finding."""
    size = config.get("image_size")
    takes = "It takes one grey channel"
    if size is not None:
        takes += f" of {size} x {size} pixels"
    if config.get("mean") is not None:
        takes += (
            f", intensities in [0, 1] normalised with mean {config['mean']:.4f} and standard "
            f"deviation {config['std']:.4f}"
        )
    thresholds = config.get("thresholds") or {}
    lines = config.get("calibration") or {}
    rows = []
    for name in config.get("class_names") or []:
        slope, intercept = lines.get(name) or (None, None)
        rows.append([name, number(thresholds.get(name)), number(slope), number(intercept)])
    return (
        f"{takes}. The code does this for you.\n\n"
        + table(["finding", "threshold", "calibration: slope", "intercept"], rows)
        + "\n\nA finding is called present from its threshold on (Youden's index on the "
        "validation split). A calibrated probability is the sigmoid of slope x logit + intercept "
        "(Platt scaling on the validation split). Blank: there is none."
    )


def training(card: dict[str, Any], data: dict[str, Any], data_name: str | None) -> str:
    """Data, split, options, versions."""
    if not card.get("options"):
        return "How it was trained is not recorded."
    facts = [f"Data: {plain(name_of_data(data, data_name))}"]
    for split, label in (("train", "to train on"), ("val", "to validate on")):
        images = (data.get("images") or {}).get(split)
        patients = (data.get("patients") or {}).get(split)
        if images is not None:
            facts.append(f"{images:,} images of {patients:,} patients {label}")
    facts.append(f"SHA-256 of the split (images, labels): `{card.get('split_sha256')}`")
    for name, value in card["list_sha256"].items():
        facts.append(f"SHA-256 of {plain(name)}: `{value}`")
    if "val_loss" in card:
        facts.append(
            f"Epoch {card['epoch']}, with the lowest validation loss, {card['val_loss']:.4f}"
        )
    if "weights_sha256" in card:
        facts.append(f"SHA-256 of the weights: `{card['weights_sha256']}`")
    options = [
        [f"--{key.replace('_', '-')}", "none" if value is None else value]
        for key, value in card["options"].items()
    ]
    versions = ", ".join(f"{name} {each}" for name, each in card.get("versions", {}).items())
    return "\n\n".join([
        bullets(facts),
        table(["option of train.py", "value"], options),
        f"Versions: {versions}.",
    ])  # fmt: skip


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


def bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def number(value: float | None) -> str:
    """Three digits after the point; blank for None and NaN."""
    return "" if value is None or value != value else f"{value:.3f}"


def plain(value: Any) -> str:
    """A value as text that Markdown shows as it is, in one line."""
    text = " ".join(str("" if value is None else value).split())
    text = text.encode(errors="backslashreplace").decode()  # names of classes may be any text
    return re.sub(r"([|<>*_`\[\]\\])", r"\\\1", text)
