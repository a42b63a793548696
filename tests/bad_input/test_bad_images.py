"""Images that cannot be read: the rest is done and kept, and the same command ends as if nothing had been."""

import numpy as np
from world import World, same_arrays, told

from featcache import Cache


def test_images_that_cannot_be_read_are_named_and_the_others_are_done(world: World) -> None:
    broken, absent = world.picture(2), world.picture(5)
    kept = {file: file.read_bytes() for file in (broken, absent)}
    broken.write_bytes(kept[broken][:60])
    absent.unlink()
    result = world.extract(world.new)
    told(result, "2 images could not be read and were left out:", "repair them and run the same command again")
    assert f"  {broken}: " in result.stderr
    assert f"  {absent}: no such file" in result.stderr
    assert np.flatnonzero(~Cache(world.new).done()).tolist() == [2, 5]
    for file, content in kept.items():
        file.write_bytes(content)
    assert world.extract(world.new).exit_code == 0
    assert same_arrays(world.new, world.cache)


def test_strict_stops_at_the_first_of_them(world: World) -> None:
    broken = world.picture(4)
    kept = broken.read_bytes()
    broken.write_bytes(b"")
    told(world.extract(world.new, "--strict"), f"{broken}: ")
    assert Cache(world.new).done().tolist() == [True] * 4 + [False] * 4
    broken.write_bytes(kept)
    assert world.extract(world.new).exit_code == 0
    assert same_arrays(world.new, world.cache)
