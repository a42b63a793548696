"""Official checkpoints: every listed key of each file has its place, and every way not to fit is told."""

import argparse
import ast
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example
from hypothesis import given as drawn
from hypothesis import strategies as st
from native_toys import perturbed, toy_config
from safetensors.torch import save_file
from test_official import config_of
from torch import Tensor, nn

from pipeline.detectors import checkpoints
from pipeline.detectors.checkpoints import OFFICIAL, Family, load_weights, our_name, read_state, recognise
from pipeline.detectors.dino import Dino
from pipeline.detectors.hdetr import HDetr
from pipeline.detectors.native import build_network
from pipeline.errors import PipelineError

LISTS = {
    "hdetr-r50": "hdetr_r50",
    "hdetr-swin-l": "hdetr_swin_l",
    "hdetr-swin-l-900": "hdetr_swin_l",
    "dino-r50": "dino_r50_4scale",
    "dino-swin-l": "dino_swin_l_4scale",
    "dino-focalnet-l": "dino_focalnet_l_fl4_5scale",
}
"""Detector -> list of the keys of its official file."""
ENTRIES = {"hdetr_r50": 631, "hdetr_swin_l": 721, "dino_r50_4scale": 626, "dino_swin_l_4scale": 716}
ENTRIES["dino_focalnet_l_fl4_5scale"] = 869


def official_state(shared: Path, name: str) -> dict[str, Tensor]:
    """Every weight of an official file by name, shape and dtype, each with a number of its own in all its cells.

    Cells share memory, so that the largest fits. Copies of a shared head have one number.
    """
    path = shared / "facts" / "keys" / f"{LISTS[name]}.txt"
    if not path.is_file():
        pytest.skip(f"no key list: {path} is absent")
    numbers: dict[str, int] = {}
    state: dict[str, Tensor] = {}
    for line in path.read_text().splitlines():
        key, rest = line.split(" ", 1)
        shape, dtype = rest.rsplit(" ", 1)
        shape = ast.literal_eval(shape)
        if name.endswith("-900") and key == "query_embed.weight":
            shape = (2400, 256)
        weight = key.removeprefix("transformer.decoder.") if "_embed." in key else key
        if name.startswith("dino"):
            weight = re.sub(r"^(class|bbox)_embed\.\d+", r"\1_embed", weight)
        number = numbers.setdefault(weight, len(numbers))
        state[key] = torch.tensor(float(number)).to(getattr(torch, dtype.removeprefix("torch."))).expand(shape)
    assert len(state) == ENTRIES[LISTS[name]]
    return state


def meta_network(name: str) -> HDetr | Dino:
    with torch.device("meta"):
        return build_network(config_of(name))


def family_of(name: str) -> Family:
    return "hdetr" if name.startswith("hdetr") else "dino"


@pytest.mark.parametrize("name", LISTS)
def test_every_official_key_is_used_once_and_fills_every_weight(shared: Path, name: str) -> None:
    state, network = official_state(shared, name), meta_network(name)
    ours = network.state_dict()
    users: dict[str, set[float]] = {}
    for key, tensor in state.items():
        target = our_name(key, family_of(name), 6)
        if target is None:
            assert key == "label_enc.weight"
            continue
        wanted = ours[target].shape
        if target == "query_embed.weight":
            assert tensor.shape == (wanted[0] + 1500, 256)
        else:
            assert tensor.shape == wanted
        assert tensor.dtype == ours[target].dtype
        users.setdefault(target, set()).add(float(tensor.flatten()[0]))
    assert set(users) == set(ours)
    assert {len(numbers) for numbers in users.values()} == {1}  # only copies of one weight meet


@pytest.mark.parametrize("name", LISTS)
def test_each_official_file_is_recognised(shared: Path, name: str) -> None:
    looks = recognise(official_state(shared, name))
    assert looks is not None
    assert OFFICIAL[looks] == name


@pytest.mark.parametrize("name", LISTS)
def test_official_files_load(shared: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, network = official_state(shared, name), meta_network(name)
    file = tmp_path / "official.pth"
    torch.save({"model": state, "epoch": 36, "args": argparse.Namespace(lr=2e-4, backbone="swin_large")}, file)
    if name not in ("hdetr-r50", "dino-r50"):  # cells of a large file go on sharing memory
        monkeypatch.setattr(checkpoints, "_own", lambda tensor, dtype: tensor)
    sha256 = load_weights(network, family_of(name), file, detector=name)
    assert re.fullmatch("[0-9a-f]{64}", sha256)
    for key, value in network.state_dict().items():
        assert not value.is_meta, key
    for key, value in state.items():
        target = our_name(key, family_of(name), 6)
        if target is not None:
            assert network.state_dict()[target].flatten()[0] == value.flatten()[0]


# --- what can be wrong, on small networks


def official_names(network: nn.Module, kind: Family) -> dict[str, Tensor]:
    """The weights of one of our networks as an official file has them."""
    starts = [
        ("backbone.", "backbone.0.body."),
        ("encoder.input_proj.", "input_proj."),
        ("encoder.", "transformer.encoder."),
        ("layers.", "transformer.decoder.layers."),
        ("proposals.enc_output", "transformer.enc_output"),
        ("pos_trans", "transformer.pos_trans"),
        ("norm.", "transformer.decoder.norm."),
        ("ref_point_head.", "transformer.decoder.ref_point_head."),
        ("tgt_embed.", "transformer.tgt_embed."),
    ]
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        head = re.fullmatch(r"(proposals\.)?(class|bbox)_embed\.(.+)", key)
        if head and kind == "hdetr":
            name = f"{head[2]}_embed.{'3.' if head[1] else ''}{head[3]}"
            state[name] = state[f"transformer.decoder.{name}"] = value
        elif head and head[1]:
            state[f"transformer.enc_out_{head[2]}_embed.{head[3]}"] = value
        elif head:
            for layer in range(3):
                name = f"{head[2]}_embed.{layer}.{head[3]}"
                state[name] = state[f"transformer.decoder.{name}"] = value.clone()
        elif key == "encoder.level_embed":
            state["transformer.level_embed"] = value
        elif key == "query_embed.weight":
            state[key] = torch.cat([value, torch.randn(1500, value.shape[1])])
        else:
            start, official = next((pair for pair in starts if key.startswith(pair[0])), ("", ""))
            state[official + key.removeprefix(start)] = value
    if kind == "dino":
        state["label_enc.weight"] = torch.zeros(6, 64)
    return state


@pytest.fixture(params=["hdetr", "dino"])
def kind(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def original(kind: Family) -> HDetr | Dino:
    return perturbed(build_network(toy_config(kind)))


@pytest.fixture
def state(original: HDetr | Dino, kind: Family) -> dict[str, Tensor]:
    return official_names(original, kind)


def load(folder: Path, content: Any, kind: Family) -> HDetr | Dino:
    with torch.device("meta"):
        network = build_network(toy_config(kind))
    torch.save(content, folder / "file.pth")
    load_weights(network, kind, folder / "file.pth", detector="toy")
    return network.eval()


@torch.no_grad()
def test_the_network_computes_what_it_did(
    tmp_path: Path, original: HDetr | Dino, state: dict[str, Tensor], kind: Family
) -> None:
    network, images = load(tmp_path, {"model": state}, kind), torch.randn(1, 3, 96, 130)
    assert torch.equal(network(images).boxes[-1], original(images).boxes[-1])
    assert torch.equal(network(images).logits[-1], original(images).logits[-1])


def test_wrappings_of_a_file_do_not_matter(tmp_path: Path, state: dict[str, Tensor], kind: Family) -> None:
    plain = load(tmp_path, {"model": state}, kind).state_dict()
    counted = {**state, "transformer.total_params": torch.zeros(1), "total_ops": torch.zeros(1)}
    files = [
        state,
        {"model": OrderedDict((f"module.{key}", value) for key, value in state.items())},
        {
            "model": counted,
            "optimizer": {"state": {}},
            "lr_scheduler": None,
            "epoch": 1,
            "args": argparse.Namespace(a=1),
        },
        {"model": {key: value.half() if value.is_floating_point() else value for key, value in state.items()}},
    ]
    for content in files:
        loaded = load(tmp_path, content, kind).state_dict()
        assert loaded.keys() == plain.keys()
        for key, value in loaded.items():
            assert value.dtype == plain[key].dtype
            torch.testing.assert_close(value, plain[key], atol=1e-2, rtol=1e-2)


def test_only_the_one_to_one_queries_are_taken(tmp_path: Path) -> None:
    network = perturbed(build_network(toy_config("hdetr")))
    official = official_names(network, "hdetr")
    loaded = load(tmp_path, {"model": official}, "hdetr").state_dict()["query_embed.weight"]
    assert torch.equal(loaded, official["query_embed.weight"][:12])
    official["query_embed.weight"] = official["query_embed.weight"][:12]  # trained without the hybrid branch
    assert torch.equal(load(tmp_path, {"model": official}, "hdetr").state_dict()["query_embed.weight"], loaded)
    official["query_embed.weight"] = torch.randn(1520, 64)
    with pytest.raises(PipelineError, match=r"query_embed.weight: \(1520, 64\), expected \(12, 64\)"):
        load(tmp_path, {"model": official}, "hdetr")


def test_keys_that_do_not_fit_are_named(tmp_path: Path, state: dict[str, Tensor], kind: Family) -> None:
    some = "transformer.encoder.layers.0.norm1.weight"
    with pytest.raises(PipelineError, match=r"'toy': 1 missing \(encoder.layers.0.norm1.weight\)") as caught:
        load(tmp_path, {key: value for key, value in state.items() if key != some}, kind)
    assert ("H-DETR" if kind == "hdetr" else "DINO") in caught.value.hint
    assert caught.value.hint.endswith("4 levels, 12 queries, 5 classes, which no shipped detector is")
    with pytest.raises(PipelineError, match=r"1 unknown \(transformer.mystery\)"):
        load(tmp_path, {**state, "transformer.mystery": torch.zeros(1)}, kind)
    extra = "transformer.encoder.layers.4.norm1.weight"
    with pytest.raises(PipelineError, match=r"1 left over \(encoder.layers.4.norm1.weight\)"):
        load(tmp_path, {**state, extra: torch.zeros(64)}, kind)
    with pytest.raises(
        PipelineError, match=r"1 of another shape \(encoder.layers.0.norm1.weight: \(65,\), expected \(64,\)"
    ):
        load(tmp_path, {**state, some: torch.zeros(65)}, kind)
    fewer = {key: value for key, value in state.items() if "backbone" not in key}
    with pytest.raises(PipelineError, match=r"missing \(backbone\..* and \d+ more\)"):
        load(tmp_path, fewer, kind)


def test_copies_of_a_head_that_differ_are_named(tmp_path: Path, state: dict[str, Tensor], kind: Family) -> None:
    copy = "transformer.decoder.class_embed.1.bias"
    changed = {**state, copy: state[copy] + 1}
    with pytest.raises(PipelineError, match="1 unlike what should be the same weight") as caught:
        load(tmp_path, changed, kind)
    assert copy in caught.value.message


def test_a_file_of_another_official_detector_is_told_by_name(shared: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    names = {"hdetr-r50": "dino-r50", "dino-r50": "dino-swin-l", "dino-swin-l": "dino-focalnet-l"}
    names |= {"hdetr-swin-l": "hdetr-swin-l-900", "hdetr-swin-l-900": "hdetr-swin-l", "dino-focalnet-l": "hdetr-r50"}
    for wanted, given in names.items():
        torch.save({"model": official_state(shared, given)}, file)
        with pytest.raises(PipelineError, match=f"is not a checkpoint of '{wanted}'") as caught:
            load_weights(meta_network(wanted), family_of(wanted), file, detector=wanted)
        assert caught.value.hint.endswith(f": --detector {given}")


def test_kin_of_the_official_files_are_told_apart(tmp_path: Path, kind: Family) -> None:
    with pytest.raises(PipelineError) as caught:
        load(tmp_path, {"neck.convs.0.conv.weight": torch.zeros(1), "transformer.level_embeds": torch.zeros(1)}, kind)
    assert "detrex" in caught.value.hint
    with pytest.raises(PipelineError) as caught:
        load(tmp_path, {"model.level_embed": torch.zeros(1)}, kind)
    assert "hf:" in caught.value.hint
    with pytest.raises(PipelineError) as caught:
        load(tmp_path, {"transformer.pos_trans.weight": torch.zeros(1)}, kind)
    assert "without mixed selection" in caught.value.hint
    with pytest.raises(PipelineError) as caught:
        load(tmp_path, {"features.0.weight": torch.zeros(1)}, kind)
    assert "'toy'" in caught.value.hint


def test_a_damaged_official_file_is_not_blamed_on_the_detector(shared: Path, tmp_path: Path) -> None:
    state = official_state(shared, "hdetr-r50")
    del state["transformer.pos_trans.bias"]
    torch.save({"model": state}, tmp_path / "file.pth")
    with pytest.raises(PipelineError, match=r"1 missing \(pos_trans.bias\)") as caught:
        load_weights(meta_network("hdetr-r50"), "hdetr", tmp_path / "file.pth", detector="hdetr-r50")
    assert caught.value.hint.endswith("the file may be damaged")


def test_safetensors_of_our_own_names_and_of_official_ones(
    tmp_path: Path, original: HDetr | Dino, state: dict[str, Tensor], kind: Family
) -> None:
    file = tmp_path / "file.safetensors"
    for content in (original.state_dict(), {key: value.clone() for key, value in state.items()}):
        save_file(content, file)
        with torch.device("meta"):
            network = build_network(toy_config(kind))
        load_weights(network, kind, file, detector="toy")
        assert torch.equal(network.state_dict()["encoder.level_embed"], original.state_dict()["encoder.level_embed"])
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PipelineError, match="not a whole safetensors file"):
        load_weights(original, kind, file, detector="toy")


class Trap:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of the file ran')",)


def test_files_that_are_no_checkpoints_are_refused_and_run_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Trap()}, file)
    with pytest.raises(PipelineError, match="without running code from it") as caught:
        read_state(file)
    assert "torch.save" in caught.value.hint
    torch.save({"model": {"a": torch.zeros(1)}}, file)
    whole = file.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(PipelineError, match=r"is not a checkpoint that can be read|is no weights file"):
            read_state(file)
    for content in ({}, {"model": {}}, [1, 2]):
        torch.save(content, file)
        with pytest.raises(PipelineError, match="holds no weights"):
            read_state(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(PipelineError, match="'epoch' is no tensor"):
        read_state(file)
    torch.save({7: torch.zeros(1)}, file)
    with pytest.raises(PipelineError, match="7 names no weight"):
        read_state(file)
    with pytest.raises(PipelineError, match="no weights file"):
        read_state(tmp_path / "none.pth")


@example(content=b"hi, this is a text", ending=".pth")
@drawn(
    content=st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(lambda more: b"\x80\x02" + more)),
    ending=st.sampled_from([".pth", ".safetensors"]),
)
def test_any_bytes_that_are_no_weights_end_in_words(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    """What the reader stumbles over is a KeyError here, an IndexError there: never an error of ours to explain."""
    file = tmp_path_factory.mktemp("garbage") / f"file{ending}"
    file.write_bytes(content)
    with pytest.raises(PipelineError):
        read_state(file)
