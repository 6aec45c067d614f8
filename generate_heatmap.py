"""Draw the heatmaps of the boxed test images.

    python generate_heatmap.py                           # seed 0 of save/pylon/
    python generate_heatmap.py --checkpoint model.pkl    # the authors' weights, or any folder that load_pylon opens

Reads  one checkpoint and DATA, with BBox_List_2017.csv.
Writes figs/picked/PAGE.jpg, the images of the paper's page, and figs/all/PAGE.jpg: a row a boxed class, ten a page.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pylon.cache import open_cache
from pylon.chestxray14 import class_names, read_boxes, read_images, select_boxed
from pylon.cli import run
from pylon.dataset import eval_loader
from pylon.device import make_accelerator
from pylon.evaluation import EvaluationOptions, leave_out_unfinished, require_numbers
from pylon.explain import Method, heatmaps_of
from pylon.files import is_number, write_atomically
from pylon.heatmap import Row, draw_page
from pylon.images import read_image
from pylon.progress import track
from pylon.transforms import eval_transform, normalize

PICKED = (
    "00000032_037", "00000150_002", "00000211_041", "00000468_017", "00001075_024", "00008547_001",
    "00004547_003", "00008522_032", "00002106_000", "00004911_018", "00002350_001", "00003440_000",
    "00002533_002", "00006736_000", "00002856_009", "00002980_000", "00008386_000", "00008008_027",
)  # fmt: skip
ROWS_A_PAGE = 10


@dataclass
class Options(EvaluationOptions):
    """Draw the heatmaps of the boxed test images."""

    seed: int | None = None
    """Seed whose checkpoint is drawn; the lowest under save/NAME if none is named."""
    out: Path = Path("figs")
    """Folder of the pages: OUT/picked and OUT/all; with another --method than map, OUT/METHOD/picked and so on."""
    method: Method = "map"
    """Whose heatmaps: map, the network's own; or what a method of the grad-cam library finds in its deepest feature."""


def main(options: Options) -> None:
    name, checkpoints = options.choose_checkpoints(() if options.seed is None else (options.seed,))
    options.require_float32(options.method)
    out = options.out if options.method == "map" else options.out / options.method
    accelerator = make_accelerator(options.device, options.precision)
    asked = options.seed is not None
    checkpoints = leave_out_unfinished(name, checkpoints, asked, accelerator.print, option="--seed", enough=1)
    path = next(iter(checkpoints.values()))
    images = read_images(options.data)
    boxes = read_boxes(options.data, images)
    boxed = select_boxed(images, boxes, options.data).set_index("image_id", drop=False)
    model, card = options.load(images, path, accelerator)
    cache = open_cache(boxed, options.data, options.cache_size, options.num_workers, accelerator.print)
    transform = eval_transform(card["image_size"])
    class_of = {name: c for c, name in enumerate(class_names(images))}
    boxes = boxes.sort_values("pathology", key=lambda names: names.map(class_of), kind="stable")

    def draw_pages(folder: Path, image_ids: list[str]) -> None:
        """Write the pages of some images, in their order, a row a box."""
        rows = pd.concat([boxes[boxes["image_id"] == image_id] for image_id in image_ids])
        pin = accelerator.device.type == "cuda"
        loader = eval_loader(boxed.loc[rows["image_id"]], transform, ROWS_A_PAGE, options.num_workers, cache, pin)
        progress = track(loader, str(folder), "page", shown=accelerator.is_main_process, leave=True)
        for page, batch in enumerate(progress):
            if page % accelerator.num_processes != accelerator.process_index:
                continue
            boxes_of_page = rows.iloc[page * ROWS_A_PAGE : (page + 1) * ROWS_A_PAGE]
            b, c = list(range(len(boxes_of_page))), boxes_of_page["pathology"].map(class_of).tolist()
            network_input = normalize(batch["image"].to(accelerator.device), card["mean"], card["std"])
            with accelerator.autocast():
                heatmaps, probabilities = heatmaps_of(model, network_input, b, c, options.method)
            require_numbers(probabilities.cpu().numpy(), path)
            panels = [
                Row(
                    image_id=box.image_id,
                    image=read_image(boxed.at[box.image_id, "path"]),
                    heatmap=heatmap,
                    title=f"{box.pathology}: {probability:.3f}",
                    bbox_xywh=(box.x, box.y, box.w, box.h),
                )
                for box, heatmap, probability in zip(
                    boxes_of_page.itertuples(), heatmaps.cpu().numpy(), probabilities.tolist(), strict=True
                )
            ]
            write_atomically(folder / f"{page + 1}.jpg", draw_page(panels))
        remove_pages_from(folder, len(loader) + 1)

    accelerator.print(f"heatmaps of {path} for {len(boxes)} boxes on {len(boxed)} images of {options.data}")
    picked = [f"{name}.png" for name in PICKED if f"{name}.png" in boxed.index]
    if len(picked) < len(PICKED):
        lacking = " ".join(name for name in PICKED if f"{name}.png" not in boxed.index)
        accelerator.print(f"skipped {len(PICKED) - len(picked)} picked images that {options.data} lacks: {lacking}")
    if picked:
        draw_pages(out / "picked", picked)
    else:
        remove_pages_from(out / "picked", 1)
    draw_pages(out / "all", list(boxed.index))
    accelerator.end_training()


def remove_pages_from(folder: Path, first: int) -> None:
    """Remove the pages, from number `first` on, that an earlier run on more images left."""
    for page in folder.glob("*.jpg"):
        if is_number(page.stem) and int(page.stem) >= first:
            page.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main, Options)
