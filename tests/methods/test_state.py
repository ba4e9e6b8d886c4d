"""The files in which methods keep what they trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toy import same
from unlearnlab.methods.state import group, grouped, read, read_words, write
from unlearnlab.spec import InputError


def test_tensors_and_words_come_back(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    tensors = grouped(params={"a": whole.T, "b": whole[0]}, buffers={"a": torch.tensor([True])})  # views of one storage, one of them transposed
    write(tmp_path / "deep" / "file.safetensors", tensors, {"ids": [1, 2], "name": "β"})
    found, words = read(tmp_path / "deep" / "file.safetensors")
    assert words == {"ids": [1, 2], "name": "β"} == read_words(tmp_path / "deep" / "file.safetensors")
    assert same(group(found, "params"), {"a": whole.T, "b": whole[0]})
    assert same(group(found, "buffers"), {"a": torch.tensor([True])})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.safetensors"]


def test_names_shapes_and_order_are_those_of_the_net(tmp_path: Path) -> None:
    like = {"z": torch.ones(2), "a": torch.zeros(3)}
    write(tmp_path / "file", grouped(params=like), {})
    found = read(tmp_path / "file")[0]
    assert list(group(found, "params", like)) == ["z", "a"]  # noise is drawn in this order
    for other in ({"z": torch.ones(2)}, {"z": torch.ones(2), "a": torch.zeros(4)}, {**like, "b": torch.ones(1)}):
        with pytest.raises(InputError, match="not those of this net"):
            group(found, "params", other)


def test_a_missing_or_damaged_file_is_told(tmp_path: Path) -> None:
    assert read_words(tmp_path / "none") is None
    write(tmp_path / "file", {"a": torch.ones(3)}, {})
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:40])
    assert read_words(tmp_path / "file") is None
    for name in ("none", "file"):
        with pytest.raises(InputError, match="not there or is damaged"):
            read(tmp_path / name)
