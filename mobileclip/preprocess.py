"""Pictures to the tensors that the image towers take: decode, upright RGB, resize, crop, scale.

The numbers equal those of torchvision's Resize, CenterCrop, ToTensor and Normalize on an RGB picture, which the models were
trained with (Vasu et al. 2024, https://arxiv.org/abs/2311.17049), and need only Pillow and numpy.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

from mobileclip.errors import InputError, one_line
from mobileclip.files import reading
from mobileclip.specs import PreprocessSpec

# Pixel formats only: no plugin here starts another program or takes any file for its own. AVIF is last, old Pillow lacks it.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "ICO", "QOI", "JPEG2000", "AVIF")
# Beyond this ratio of the sides only the part that the crop keeps is resized: 20,000 x 1 would become 5,120,000 x 256.
_EXTREME_RATIO = 64
# Pillow holds a resize box in float32, too coarse for millions of pixels: the middle is cut out first.
_WINDOW_PX = 2**15
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Path | bytes | BinaryIO, *, upright: bool = True) -> Image.Image:
    """Decode a picture: the first frame, upright by its EXIF orientation, as 8-bit RGB.

    Args:
        source: A path, the bytes of a file, or an open binary file that can seek. Formats: `FORMATS`.
        upright: False leaves the pixels as they lie in the file.

    Raises:
        InputError: Not a picture, cut off or damaged, or more pixels than Pillow's limit `PIL.Image.MAX_IMAGE_PIXELS`
            (89,478,485 unless changed), which guards against decompression bombs.
        StorageError: The file cannot be read.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "image", upright)
    if not isinstance(source, str | Path):
        return _decode(source, str(getattr(source, "name", "image")), upright)
    path = Path(source)
    with reading(path), path.open("rb") as f:
        return _decode(f, str(path), upright)


def _decode(file: BinaryIO, name: str, upright: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The limit is an error below; damaged metadata is no reason to refuse good pixels.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                limit = Image.MAX_IMAGE_PIXELS
                if limit is not None and image.width * image.height > limit:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                image.load()
                orientation = _orientation(image) if upright else 1
                rgb = to_rgb(image)
        return turn_upright(rgb, orientation)
    except Image.DecompressionBombError as e:
        limit_text = f"{Image.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
        raise InputError(f"{name}: over the limit of {limit_text}: {one_line(e)}; make the picture smaller") from e
    except UnidentifiedImageError as e:
        raise InputError(f"{name}: not a picture; formats: {', '.join(FORMATS)}") from e
    except InputError as e:
        raise InputError(f"{name}: {e}") from e
    except Exception as e:  # Pillow's plugins raise a dozen types on damaged data
        if isinstance(e, OSError) and e.errno is not None:
            raise  # the disk failed, not the picture
        raise InputError(f"{name}: damaged or cut-off picture ({one_line(e)}); get the file again") from e


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """A picture as a viewer shows it, by its EXIF orientation (1 to 8); 1 and unknown ones need nothing."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation 1 to 8; 1 where there is none or the block is unreadable, as viewers do."""
    try:
        value = image.getexif().get(ExifTag.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any Pillow mode to 8-bit RGB.

    - 1, L, P, PA, RGBX, YCbCr, HSV, LAB, CMYK: Pillow's own conversion (LAB is taken to sRGB, CMYK without a colour profile).
    - LA, RGBA: alpha is dropped, the colour below it stays, as in the models' training. La, RGBa: colour divided by alpha first.
    - I;16 and its byte orders: 0..65535 to 0..255, rounded.
    - I, F: the range is not stored in the file. It is the smallest of 0..1 (F only), 0..255, 0..65535, 0..2^31-1 that holds the
      largest finite value; what lies outside is clipped, NaN is 0.

    Raises:
        InputError: No pixels, or a mode that Pillow cannot convert.
    """
    if 0 in image.size:
        raise InputError(f"a picture of {image.width} x {image.height} has no pixels")
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_deep_to_uint8(np.asarray(image), image.mode)).convert("RGB")
    try:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # the same colours, without Pillow's warning
        return image.convert("RGB")
    except ValueError as e:
        raise InputError(f"pictures of mode {image.mode} cannot be converted to RGB ({one_line(e)})") from e


def _deep_to_uint8(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale (H, W) integers or floats deeper than 8 bits to uint8."""
    if mode.startswith("I;16"):
        full_scale = 65535.0
    else:
        finite = values[np.isfinite(values)]
        largest = float(finite.max()) if finite.size else 0.0
        scales = (255.0, 65535.0, 2.0**31 - 1) if mode == "I" else (1.0, 255.0, 65535.0, 2.0**31 - 1)
        full_scale = next((s for s in scales if largest <= s), scales[-1])
    scaled = values.astype(np.float64) * (255.0 / full_scale)
    levels: np.ndarray = np.rint(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0.0, 255.0))
    return levels.astype(np.uint8)


def resize_crop(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """Resize and crop to the model's square, in 8 bits.

    Shortest side to the resolution with an anti-aliased filter, then the centre; or both sides at once for `squash`.

    Returns:
        (resolution, resolution, 3) uint8 RGB.
    """
    image, size, resample = to_rgb(image), spec.resolution, _FILTERS[spec.interpolation]
    if spec.resize == "squash":
        return np.array(image.resize((size, size), resample))
    short, long = sorted(image.size)
    long_resized = int(size * long / short)
    offset = round((long_resized - size) / 2)  # half to even, as torchvision does
    wide = image.width == long
    if long_resized > _EXTREME_RATIO * size:
        return np.array(_resize_middle(image, size, long_resized, offset, resample))
    resized = image.resize((long_resized, size) if wide else (size, long_resized), resample)
    left, top = (offset, 0) if wide else (0, offset)
    return np.array(resized.crop((left, top, left + size, top + size)))


def _resize_middle(image: Image.Image, size: int, long_resized: int, offset: int, resample: Image.Resampling) -> Image.Image:
    """What the crop keeps of a very long picture, without resizing the rest.

    Equal to within one level for bilinear. Pillow chooses from the shape which side to resize first and rounds to 8 bits in
    between; where it chooses otherwise here, the overshoot of bicubic is clipped elsewhere, which costs a few levels on noise.
    """
    short, long = sorted(image.size)
    wide = image.width == long
    start, stop = (edge * long / long_resized for edge in (offset, offset + size))  # source pixels on the long side
    window = max(_WINDOW_PX, 4 * short)
    if long > window:
        first = (long - window) // 2
        start, stop = start - first, stop - first
        image = image.crop((first, 0, first + window, short) if wide else (0, first, short, first + window))
    box = (start, 0.0, stop, float(short)) if wide else (0.0, start, float(short), stop)
    return image.resize((size, size), resample, box=box)


def preprocess(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """One picture as the image tower takes it: resized, cropped, scaled to [0, 1], minus mean, over standard deviation.

    Returns:
        (3, resolution, resolution) float32, RGB.
    """
    pixels = resize_crop(image, spec).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(v, dtype=np.float32).reshape(3, 1, 1) for v in (spec.mean, spec.std))
    return np.ascontiguousarray((pixels - mean) / std)


def preprocess_batch(images: Sequence[Image.Image], spec: PreprocessSpec) -> np.ndarray:
    """Several pictures, of any sizes and modes.

    Returns:
        (B, 3, resolution, resolution) float32.
    """
    batch = np.empty((len(images), 3, spec.resolution, spec.resolution), dtype=np.float32)
    for i, image in enumerate(images):
        batch[i] = preprocess(image, spec)
    return batch
