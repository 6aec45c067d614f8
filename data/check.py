"""Look through a folder with NIH's files: is all of it there, whole and consistent?

    python data/check.py --data data    # 112,120 images take some 18 minutes on 2 cores

Reads  every list and, decoding them, all images that the lists name.
Prints a table, then "ready" (exit code 0), or what there is to do (exit code 2).
"""

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))  # beside which the package is

from pylon.chestxray14 import (
    WHERE,
    find_files,
    list_hashes,
    read_boxes,
    read_images,
    select_boxed,
    shared_patients,
    some,
    split_hash,
)
from pylon.cli import UserError, require_at_least, run
from pylon.images import fault_of, image_size, look_at, read_image

NIH_COUNTS = {
    "images in the lists": 112_120, "to train and validate on": 86_524, "to test on": 25_596, "patients": 30_805,
    "boxes": 984, "images with boxes": 880,
}  # fmt: skip
NIH_SHA256 = {  # by `list_hashes`, of the files that NIH distributes
    "BBox_List_2017.csv": "ea8069e6ab76ecba3eb366be1888b5ca50ff9367bfbb579c81f32685d7d17a3f",
    "Data_Entry_2017_v2020.csv": "e580686b38ab82b5ac340138e478bd0c0dd7b61106776db18dd144af6af7ab4b",
    "test_list.txt": "4ae872aeda1545e95f440f2e5dffea7d4facf74ad04c202040b2ac437769ec55",
    "train_val_list.txt": "e2abb51704b88ad23771230435ad210fd03c22abccf44e3b24400e4963a06d36",
}


@dataclass
class Options:
    """Look through a folder with NIH's files: is all of it there, whole and consistent?"""

    data: Path = Path("data")
    """Folder with NIH's files."""
    num_workers: int = min(os.cpu_count() or 1, 8)
    """Processes that read images."""


def main(options: Options) -> None:
    require_at_least(options, num_workers=0)
    data, todo, notes = options.data, [], []
    images = read_images(data, todo.append)
    found = images[images["path"].notna()]
    if len(found) < len(images):
        missing = images["image_id"][images["path"].isna()]
        todo.append(f"{some(missing)} missing from {data / 'images'}; unpack all of NIH's archives there ({WHERE})")

    # the image files
    answers = look_at(found["path"], look, options.num_workers, "decoding")
    files = pd.DataFrame(answers, columns=["fault", "size", "channels"], index=found["image_id"])
    todo += files["fault"][files["fault"] != ""].tolist()
    readable = files[files["fault"] == ""]
    usual = readable["size"].mode().iloc[0] if len(readable) else ""
    odd = readable[readable["size"] != usual]
    if len(odd):
        notes.append(f"{some(odd.index)} not {usual} as most are")
    coloured = readable[readable["channels"] != 1]
    if len(coloured):
        notes.append(f"{some(coloured.index)} not grey, but read as grey")
    twice = [name for name, count in Counter(name for name, _ in find_files(data)).items() if count > 1]
    todo += [f"{name} is in more than one folder of {data}; keep one of them" for name in sorted(twice)]

    # boxes, against the images and their labels
    boxes = boxed = pd.DataFrame({"image_id": []})
    try:
        listed = read_boxes(data, images.assign(split="test"), todo.append)
        boxes = listed[listed["image_id"].isin(images["image_id"][images["split"] == "test"])]
        boxed = boxes.drop_duplicates("image_id")
        measurable = boxes[boxes["image_id"].isin(readable.index)]
        if len(measurable):
            select_boxed(found, measurable, data, todo.append)
        labels = images.set_index("image_id")
        for box in listed.itertuples():
            if not labels.at[box.image_id, box.pathology]:
                todo.append(f"{box.image_id} has a box of {box.pathology} but not that label; correct one of them")
        unused = sorted(set(listed["image_id"]) - set(boxes["image_id"]))
        if unused:
            notes.append(f"{some(unused)} in BBox_List_2017.csv but not in the test list: no box of these is used")
    except UserError as error:
        todo.append(str(error))

    # patients
    shared = {split: shared_patients(images, split)[0] for split in ("val", "test")}
    if shared["test"]:
        todo.append(f"{shared['test']} patients are both in the test list and in training; take them out of one")
    if shared["val"]:
        notes.append(f"{shared['val']} patients are both in validation and in training: the split of the authors")

    is_test = images["split"] == "test"
    counts = {
        "images in the lists": len(images), "to train and validate on": int((~is_test).sum()),
        "to test on": int(is_test.sum()), "patients": images["patient_id"].nunique(),
        "boxes": len(boxes), "images with boxes": len(boxed),
        "images missing": len(images) - len(found), "images unreadable": len(files) - len(readable),
        f"images other than {usual or 'most'}": len(odd), "images not grey": len(coloured),
        "files of one name": len(twice), "test patients in training": shared["test"],
        "validation patients in training": shared["val"],
    }  # fmt: skip
    print(f"| {data!s:33} | {'here':>7} | {'NIH':>7} |\n| {'-' * 33} | {'-' * 7} | {'-' * 7} |")
    for what, count in counts.items():
        print(f"| {what:33} | {count:7,} | {format(NIH_COUNTS[what], ',') if what in NIH_COUNTS else '':>7} |")
    print()
    for name, digest in list_hashes(data).items():
        print(f"{digest}  {name}{'  (as NIH has it)' if digest == NIH_SHA256.get(name) else ''}")
    print(f"{split_hash(images)}  labels and split of the images\n")
    for note in notes:
        print(f"note: {note}")
    for number, sentence in enumerate(todo, start=1):
        print(f"{number:4}. {sentence}")
    if todo:
        raise UserError(f"{data} is not ready; do what is listed above ({len(todo)}), then run this again")
    print("ready")


def look(path: str) -> tuple[str, str, int]:
    """What is wrong with an image file; if nothing is, its size and channels."""
    fault = fault_of(path, read_image) or fault_of(path, image_size)
    if fault:
        return fault, "", 0
    with Image.open(path) as image:
        return "", f"{image.width} x {image.height}", len(image.getbands())


if __name__ == "__main__":
    run(main, Options)
