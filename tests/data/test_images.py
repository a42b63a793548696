from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.images import UnreadableImageError, find_images, open_image, several_unreadable
from pipeline.errors import PipelineError


def test_truncated_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    for name, reason in (("short.jpg", "truncated"), ("text.jpg", "cannot identify"), ("none.jpg", "no such file")):
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            open_image(tmp_path / name)
        assert name in caught.value.message


def test_upright_turns_as_the_exif_data_ask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (30, 20)
    assert open_image(tmp_path / "turned.jpg", upright=True).size == (20, 30)


def test_images_of_a_folder_a_pattern_or_a_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in find_images(str(tmp_path))] == ["a.JPG", "b.png"]
    assert [file.name for file in find_images(str(tmp_path / "*.png"))] == ["b.png"]
    assert [file.name for file in find_images(str(tmp_path / "b.png"))] == ["b.png"]
    for nothing in ("*.gif", "none", "notes.txt"):
        with pytest.raises(PipelineError, match="no image at"):
            find_images(str(tmp_path / nothing))


def test_a_list_of_errors_counts_and_names_them() -> None:
    error = several_unreadable(
        [UnreadableImageError("a.jpg: broken"), UnreadableImageError("b.jpg: gone")], "repair them"
    )
    assert error.message == "2 images could not be read and were left out:\n  a.jpg: broken\n  b.jpg: gone"
    assert error.hint == "repair them"
