"""An image as a user gives it: a path, an array or a PIL image -> its pixels, 8 bits, grey."""

import os
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from pylon.data.images import header_of, read_pixels, require_one_page
from pylon.data.pixels import Pixels, Window, pixels_of, require_fit
from pylon.system.errors import UserError

# paths, arrays (H, W) uint8 or uint16, PIL images
ImageLike = str | os.PathLike[str] | np.ndarray | Image.Image
Images = Sequence[ImageLike]  # a list or tuple


def pixels_of_any(image: ImageLike, window: Window | None) -> Pixels:
    """The pixels of an image; `window` as for `read_pixels`.

    Raises:
        UserError: it cannot be read.
        ValueError: it is something else.
    """
    if isinstance(image, str | os.PathLike):
        return read_pixels(os.fspath(image), window)
    colour = False
    if isinstance(image, Image.Image):
        require_fit("the image", image.height, image.width)
        header = header_of(image)
        require_one_page("the image", header)
        colour = header.colour
        try:
            image = grey_of(image)
        except OSError as error:  # a file that is truncated
            raise UserError(f"the image cannot be read ({error}); copy it again") from error
    if isinstance(image, np.ndarray) and image.dtype == ">u2":
        image = image.astype(np.uint16)
    is_grey = isinstance(image, np.ndarray) and image.ndim == 2
    if not is_grey or image.dtype not in (np.uint8, np.uint16):
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise ValueError(
            "an image must be a path, an array (H, W) uint8 or uint16, or a PIL image, or several "
            f"in a list, got {what}; convert colours to grey, other numbers to 8 or 16 bits"
        )
    require_fit("the image", *image.shape)
    return pixels_of(np.ascontiguousarray(image), colour, window)


def grey_of(image: Image.Image) -> np.ndarray:
    """The pixels of a PIL image, grey, (H, W); not uint8 or uint16 if it has other values."""
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    if image.mode.startswith("I;16"):
        values = np.array(image).astype(np.uint16)
        return 65535 - values if header_of(image).min_is_white else values
    if image.mode == "I":  # 16 bits in older versions of Pillow
        values = np.array(image)
        fits = values.min() >= 0 and values.max() < 65536
        return values.astype(np.uint16) if fits else values
    if image.mode == "F":
        return np.array(image)
    return cv2.cvtColor(np.array(image.convert("RGB")), cv2.COLOR_RGB2GRAY)
