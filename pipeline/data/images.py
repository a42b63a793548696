"""Image files -> RGB images, or one clear error."""

from pathlib import Path

from PIL import Image

from ..errors import PipelineError


class UnreadableImageError(PipelineError):
    """An image file is missing, truncated, of no known format, or not of the size its annotation says."""


def open_image(path: Path, expected_hw: tuple[int, int] | None = None) -> Image.Image:
    """The image as RGB in the frame COCO annotates (EXIF rotation not applied); raises UnreadableImageError."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UnreadableImageError(f"{path}: {reason}") from None
    if expected_hw is not None and (rgb.height, rgb.width) != expected_hw:
        found, expected = (f"{height} x {width}" for height, width in ((rgb.height, rgb.width), expected_hw))
        raise UnreadableImageError(f"{path}: {found} pixels, its annotation says {expected}")
    return rgb
