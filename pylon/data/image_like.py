"""An image as a user gives it: a path, an array, the contents of a file -> grey pixels, 8 bits."""

import io
import os
import sys
from collections.abc import Iterable
from typing import BinaryIO

import cv2
import numpy as np
import torch
from PIL import Image

from pylon.data.images import decode, header_of, read_pixels, require_one_page
from pylon.data.pixels import Pixels, Window, pixels_of, require_fit
from pylon.system.errors import UserError

# or a data set of pydicom, which need not be installed
ImageLike = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | torch.Tensor | Image.Image
Images = Iterable[ImageLike]  # a list, a tuple or a generator
NAME = "the image"  # in messages, of those without a path
LAYOUTS = "(H, W), (1, H, W) or (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); of a tensor, (3, H, W)"


def pixels_of_any(image: ImageLike, window: Window | None) -> Pixels:
    """The pixels of an image (see `Predictor.__call__`); `window` as for `read_pixels`.

    Raises:
        UserError: it cannot be read.
        ValueError: it is something else, or may mean several things.
    """
    if isinstance(image, str | os.PathLike):
        return read_pixels(os.fspath(image), window)
    if hasattr(image, "read"):
        image = image.read()
    elif is_dataset(image):
        buffer = io.BytesIO()
        image.save_as(buffer, enforce_file_format=True)  # or pydicom's ValueError
        image = buffer.getvalue()
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(NAME, bytes(image), window)
    colour = False
    if isinstance(image, Image.Image):
        require_fit(NAME, image.height, image.width)
        header = header_of(image)
        require_one_page(NAME, header)
        colour = header.colour
        try:
            image = grey_of(image)
        except OSError as error:  # a file that is truncated
            raise UserError(f"the image cannot be read ({error}); copy it again") from error
    if isinstance(image, torch.Tensor):
        is_rgb = image.ndim == 3 and image.shape[0] == 3
        image = (image.movedim(0, -1) if is_rgb else image).detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(
            "an image must be a path, the contents of a file, an open binary file, an array, a "
            f"tensor, a PIL image or a pydicom data set, or several in a list, got {type(image)}"
        )
    values = levels_of(image)
    if image.ndim == 3 and 1 in (image.shape[0], image.shape[2]):
        values = values.squeeze(0 if image.shape[0] == 1 else 2)
    elif image.ndim == 3 and image.shape[2] in (3, 4):
        colour = True
        values = cv2.cvtColor(np.ascontiguousarray(values[..., :3]), cv2.COLOR_RGB2GRAY)
    if values.ndim != 2:
        raise ValueError(
            f"an array must be one image, {LAYOUTS}; got {image.shape}: give several in a list"
        )
    require_fit(NAME, *values.shape)
    return pixels_of(np.ascontiguousarray(values), colour, window)


def levels_of(image: np.ndarray) -> np.ndarray:
    """An array of any shape as uint8 or uint16; a ValueError if its range is not clear."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        return image.astype(np.uint16)  # of either byte order
    advice = "give uint8, uint16, or floats from 0 (black) to 1 (white)"
    if image.dtype.kind != "f":
        raise ValueError(f"an array of {image.dtype} may be of 8 bits or of more: {advice}")
    low, high = (image.min(), image.max()) if image.size else (0, 0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"an array of floats has values from {low:g} to {high:g}: {advice}")
    return np.round(image * 255).astype(np.uint8)


def is_dataset(image: object) -> bool:
    """Whether it is a data set of pydicom, which is slow to import, and optional."""
    pydicom = sys.modules.get("pydicom")
    return pydicom is not None and isinstance(image, pydicom.Dataset)


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
