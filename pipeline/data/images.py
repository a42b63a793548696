"""Image files -> RGB images, or one clear error."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from PIL import Image, ImageOps

from ..errors import PipelineError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class UnreadableImageError(PipelineError):
    """An image file is missing, truncated, of no known format, or not of the size its annotation says."""


def several_unreadable(errors: Sequence[UnreadableImageError], hint: str) -> UnreadableImageError:
    """One error that lists them, for the end of a run that went on without them."""
    listing = "\n".join(f"  {error.message}" for error in errors)
    return UnreadableImageError(f"{len(errors)} images could not be read and were left out:\n{listing}", hint)


def find_images(pattern: str) -> list[Path]:
    """The image files of a folder, of a glob pattern, or the one file itself, by name; raises PipelineError if none."""
    path = Path(pattern)
    names = path.iterdir() if path.is_dir() else [path] if path.exists() else map(Path, glob(pattern, recursive=True))
    files = sorted(name for name in names if name.suffix.lower() in SUFFIXES and name.is_file())
    if not files:
        raise PipelineError(
            f"no image at {pattern}", f"a folder, a quoted glob pattern or a file of {', '.join(SUFFIXES)}"
        )
    return files


def open_image(path: Path, expected_hw: tuple[int, int] | None = None, *, upright: bool = False) -> Image.Image:
    """The image as RGB; raises UnreadableImageError.

    As the file stores it, which is the frame COCO annotates; `upright` turns it as its EXIF data ask, as viewers do.
    """
    try:
        with Image.open(path) as image:
            rgb = (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UnreadableImageError(f"{path}: {reason}") from None
    if expected_hw is not None and (rgb.height, rgb.width) != expected_hw:
        found, expected = (f"{height} x {width}" for height, width in ((rgb.height, rgb.width), expected_hw))
        raise UnreadableImageError(f"{path}: {found} pixels, its annotation says {expected}")
    return rgb
