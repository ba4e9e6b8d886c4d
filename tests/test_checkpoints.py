"""Originals from the user's own files: what is read, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unlearnlab.checkpoints import Checkpoint, Trained, load_originals, read_weights
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.spec import InputError, build, key
from unlearnlab.stack import Stack

NET = SmallCnn(widths=(4, 4, 6), norm="batch")((1, 8, 8), 10)


def trained(seed: int) -> dict[str, torch.Tensor]:
    stack = Stack.init(NET, (seed,))
    module = stack.member(0)
    module(torch.rand(5, 1, 8, 8))
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "net."])
def test_weights_come_back_whatever_they_are_wrapped_in(tmp_path, name, wrap, prefix):
    state = trained(3)
    held = {f"{prefix}{key}": tensor for key, tensor in state.items()} | {f"{prefix}normalize.mean": torch.zeros(3)}
    if name.endswith(".pt"):
        torch.save({wrap: held, "epoch": 7} if wrap else held, tmp_path / name)
    else:
        save_file(held, tmp_path / name)
    stack = load_originals(NET, (tmp_path / name,), (11,))
    assert stack.seeds == (11,)
    for key_, tensor in (stack.params | stack.buffers).items():
        assert tensor[0].equal(state[key_]), key_


def test_one_member_from_each_file(tmp_path):
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(trained(seed), paths[-1])
    stack = load_originals(NET, tuple(paths), (5, 6))
    assert [stack.params["1.weight"][k].equal(trained(seed)["1.weight"]) for k, seed in enumerate((1, 2))] == [True, True]


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "plain.pt"):
        with pytest.raises(InputError, match="no weights that can be read safely"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "w.pt"

    def given(state):
        torch.save(state, path)
        return path

    good = trained(1)
    cases = {
        "lacks '1.weight'": {name: t for name, t in good.items() if name != "1.weight"},
        "holds 'extra', which the net does not have": {**good, "extra": torch.zeros(1)},
        r"'13.weight' is \[7, 24\], and the net has \[10, 24\]": {**good, "13.weight": torch.zeros(7, 24)},
        "holds no state dict": {"epoch": 3},
    }
    for words, state in cases.items():
        with pytest.raises(InputError, match=words):
            load_originals(NET, (given(state),), (0,))
    with pytest.raises(InputError, match="No such file"):
        read_weights(tmp_path / "nothing.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="no weights that can be read safely"):
        read_weights(tmp_path / "cut.safetensors")


def test_the_key_follows_the_content(tmp_path):
    for seed in (1, 2):
        torch.save(trained(seed), tmp_path / f"{seed}.pt")
    (tmp_path / "copy.pt").write_bytes((tmp_path / "1.pt").read_bytes())
    one, two, copy = (Checkpoint(str(tmp_path / name)) for name in ("1.pt", "2.pt", "copy.pt"))
    assert key(one) == key(copy) != key(two)
    with pytest.raises(InputError, match="No such file"):
        key(Checkpoint(str(tmp_path / "gone.pt")))


def test_the_table_needs_no_name_in_a_study():
    assert build("original", {"name": "checkpoint", "checkpoint": "a.pt"}).paths == (Path("a.pt"),)
    assert build("original", {"name": "checkpoint", "checkpoint": ["a.pt", "b.pt"]}).paths == (Path("a.pt"), Path("b.pt"))
    assert Trained().paths == ()
    with pytest.raises(InputError, match="checkpoint is empty"):  # and nothing is trained in its place
        Checkpoint(())
    with pytest.raises(InputError, match=r"1 file\(s\) of initial weights for 2 of weights"):
        Checkpoint(("a.pt", "b.pt"), init="c.pt")


def test_a_wrapped_net_takes_the_names_of_what_it_wraps(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)

    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    stack = load_originals(Wrapped(), (tmp_path / "w.pt",), (0,))
    assert set(stack.params) == {"net.weight", "net.bias"}
