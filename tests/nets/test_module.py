"""``module``: nets of the user's own, found, checked, initialised as they initialise themselves, and keyed by their code."""

from __future__ import annotations

import copy
import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attention import assert_stacked_is_apart, assert_starts_reproducibly, some_images
from torch import nn

from unlearnlab.fit import Shuffled, cross_entropy, fit
from unlearnlab.nets.module import ModuleNet, fits
from unlearnlab.nets.pixels import Pixels
from unlearnlab.optimizers import Sgd
from unlearnlab.seeds import seeded
from unlearnlab.spec import InputError, build, identity, key, to_dict
from unlearnlab.stack import Stack, blocks, in_mode, is_stochastic

SHAPE = (3, 8, 8)

CODE = '''
import torch
from torch import nn


class Small(nn.Module):
    """Batch normalisation, attention, and parameters and buffers that no other layer holds."""

    def __init__(self, num_classes=1000, width=4, *, attends=False, scale=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) * scale)
        self.register_buffer("drawn", torch.randn(width))
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if attends else None
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2) * self.gain + self.drawn
        if self.attention is not None:
            x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class Dropping(Small):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, self.training))


class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.head(x.flatten(1))


class Bare(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class Pair(Small):
    def forward(self, x):
        return super().forward(x), x


class Maps(Small):
    def forward(self, x):
        return self.conv(x)


class Double(Small):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.double()


def ten():
    return Small(10)


def outputs(outputs, width=4):
    return Small(outputs, width)


def anything(**settings):
    return Small(**settings)


def number(num_classes):
    return num_classes


built = Small(10)
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


Named = Callable[..., ModuleNet]


@pytest.fixture
def named(file: Path) -> Named:
    """named("Small", …): the spec of that class or function in the file."""

    def make(name: str, *arguments: str, classes_argument: str = "num_classes") -> ModuleNet:
        return ModuleNet(f"{file}:{name}", arguments, classes_argument)

    return make


def test_by_file_and_by_module_in_the_current_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "owner_nets"
    package.mkdir()
    (package / "__init__.py").write_text("from owner_nets.inner import Small\n")
    (package / "inner.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for where in ("mine.py", str(file), "owner_nets.inner", "owner_nets"):
        net = build("net", {"name": "module", "path": f"{where}:Small", "arguments": ["width=6"]})(SHAPE, 10, (0.5,) * 3, (0.2,) * 3)
        assert isinstance(next(net.children()), Pixels)
        pixels = some_images(SHAPE, 2).pixels
        with torch.no_grad():
            torch.testing.assert_close(net.eval()(pixels), net.get_submodule("net")((pixels / 255 - 0.5) / 0.2))
        assert net.net.gain.shape == (6,)
    assert sys.path == path
    both = hashlib.sha256((package / "__init__.py").read_bytes() + CODE.encode()).hexdigest()
    assert ModuleNet("owner_nets:Small").content()["source"] == both  # who passes it on, and who defines it
    del sys.modules["owner_nets"], sys.modules["owner_nets.inner"]


def test_the_file_may_import_its_neighbours(file: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("from nowhere_beside import Small\n")
    (tmp_path / "nowhere_beside.py").write_text(CODE)
    assert ModuleNet(f"{tmp_path / 'beside.py'}:Small")(SHAPE, 10)(torch.zeros(2, *SHAPE)).shape == (2, 10)
    del sys.modules["nowhere_beside"]


def test_arguments_are_toml_values(named: Named) -> None:
    net = named("Small", "width=8", "attends = true", "scale=0.0")(SHAPE, 10).net
    assert net.gain.tolist() == [0.0] * 8
    assert isinstance(net.attention, nn.MultiheadAttention)
    with pytest.raises(InputError, match=r"cannot read the argument 'norm=batch': .*; write \"width=64\", or \"norm='batch'\" for text"):
        named("Small", "norm=batch")
    with pytest.raises(InputError, match="cannot read the argument 'width'"):
        named("Small", "width")
    with pytest.raises(InputError, match="'width=3' must set one argument, and none may be set twice"):
        named("Small", "width=2", "width=3")
    with pytest.raises(InputError, match=r"Small called with \(num_classes=10, depth=2\) failed: TypeError: .* argument 'depth'; set arguments"):
        named("Small", "depth=2")(SHAPE, 10)


def test_the_number_of_classes_is_given_where_it_is_taken(named: Named) -> None:
    seven = [named("Small"), named("anything"), named("outputs", classes_argument="outputs"), named("Small", "num_classes=7", classes_argument="")]
    for made in seven:
        assert made(SHAPE, 7)(torch.zeros(2, *SHAPE)).shape == (2, 7)
    with pytest.raises(InputError, match="its head has 1000 outputs, the data has 7 classes; pass that number"):
        named("Small", classes_argument="")(SHAPE, 7)
    with pytest.raises(InputError, match="its head has 9 outputs"):
        named("Small", "num_classes=9")(SHAPE, 7)  # what is said outright goes first
    assert named("ten")(SHAPE, 10)(torch.zeros(2, *SHAPE)).shape == (2, 10)
    with pytest.raises(InputError, match="its head has 10 outputs, the data has 7 classes"):
        named("ten")(SHAPE, 7)
    with pytest.raises(InputError, match=r"outputs has no argument 'output'; did you mean 'outputs'\?"):
        named("outputs", classes_argument="output")(SHAPE, 7)


@pytest.mark.parametrize("attends", ["false", "true"])
def test_members_begin_as_the_net_initialises_itself(named: Named, attends: str) -> None:
    net = named("Small", f"attends={attends}")(SHAPE, 10)
    stack = Stack.init(net, (1, 2))
    assert {name for name in stack.params if name.startswith("net.gain")} == {"net.gain"}
    for k, seed in enumerate(stack.seeds):
        with seeded(seed, "init", device=torch.device("cpu")):
            own = type(net.net)(10, attends=attends == "true")
        tensors = dict(own.named_parameters()) | dict(own.named_buffers())
        assert {f"net.{name}" for name in tensors} == (stack.params | stack.buffers).keys()
        for name, tensor in tensors.items():
            assert torch.equal((stack.params | stack.buffers)[f"net.{name}"][k], tensor), name
    assert not torch.equal(*stack.buffers["net.drawn"])
    assert_starts_reproducibly(net, "net.head")


def test_one_stacked_step_is_two_separate_steps(named: Named) -> None:
    net = named("Small")(SHAPE, 10, (0.5,) * 3, (0.2,) * 3)
    assert not is_stochastic(in_mode(net, "train"))
    assert_stacked_is_apart(Stack.init(net, (1, 2)), some_images(SHAPE, 6))


def test_nets_that_draw_while_training_are_trained_one_at_a_time(named: Named) -> None:
    net, data = named("Dropping")(SHAPE, 10), some_images(SHAPE, 6)
    assert is_stochastic(in_mode(net, "train"))
    assert not is_stochastic(in_mode(net, "eval_all"))
    stack = Stack.init(net, (1, 2))
    together = fit(stack, Shuffled(data, 3, (1, 2), "order"), cross_entropy, lr=0.1, optimizer=Sgd(), steps=2)
    for k in range(2):
        apart = fit(stack.rows([k]), Shuffled(data, 3, (k + 1,), "order"), cross_entropy, lr=0.1, optimizer=Sgd(), steps=2)
        for name, tensor in (apart.params | apart.buffers).items():
            assert torch.equal((together.params | together.buffers)[name][k], tensor[0]), name


def test_checking_draws_nothing_and_changes_nothing(named: Named) -> None:
    net = named("Dropping")(SHAPE, 10)
    assert net.training
    assert net.net.training
    assert not net.net.norm.running_mean.any()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fits("mine", net.net, SHAPE, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_partition_the_parameters(named: Named, tmp_path: Path) -> None:
    found = blocks(named("Small", "attends=true")(SHAPE, 10))
    assert found[0] == ("net.gain",)
    assert ("net.attention.in_proj_weight",) in found
    assert found[-1] == ("net.head.weight", "net.head.bias")
    own = tmp_path / "own.py"
    own.write_text(CODE + "\nclass Own(Small):\n    forward_order = ('conv', 'norm', 'gain', 'head')\n")
    assert blocks(ModuleNet(f"{own}:Own")(SHAPE, 10))[2] == ("net.gain",)
    one = tmp_path / "one.py"
    one.write_text("from torch import nn\nclass One(nn.Linear):\n    def forward(self, x):\n        return super().forward(x)[:, 0, 0]\n")
    assert blocks(ModuleNet(f"{one}:One", ("in_features=8",), "out_features")(SHAPE, 8)) == [("net.weight", "net.bias")]


def test_lazy_layers_take_their_sizes_from_the_data(named: Named) -> None:
    net = named("Lazy")(SHAPE, 10)
    stack = assert_starts_reproducibly(net, "net.head")
    assert stack.params["net.head.weight"].shape == (2, 10, 3 * 8 * 8)


def test_nets_and_their_specs_can_be_copied_and_packed(named: Named) -> None:
    made = named("Small", "width=6")
    assert pickle.loads(pickle.dumps(made)) == made == build("net", to_dict(made))
    net = copy.deepcopy(made(SHAPE, 10))
    net.reset_parameters()


def test_the_code_enters_the_key_and_its_place_does_not(named: Named, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = named("Small", "width=6")
    assert made.content() == {
        "path": "mine.py:Small",
        "arguments": ["width=6"],
        "classes_argument": "num_classes",
        "source": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert identity(made)["settings"] == made.content()
    before = key(made)
    assert len({before, key(named("Small")), key(named("Lazy", "width=6")), key(named("Small", "width=6", classes_argument=""))}) == 4
    monkeypatch.chdir(tmp_path)
    assert key(ModuleNet("mine.py:Small", ("width=6",))) == before
    file.write_text(CODE.replace("torch.rand(width)", "torch.ones(width)"))
    assert key(made) != before
    assert made(SHAPE, 10).net.gain.tolist() == [1.0] * 6  # and what is built is the edited net


def test_what_cannot_be_found_is_refused(named: Named, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for senseless in ("mine.py", "mine.py:", ":Small", "folder/mine:Small", "mine.py:a b"):
        with pytest.raises(InputError, match=r"must be 'package\.module:Name' or 'path/to/file\.py:Name'"):
            ModuleNet(senseless)
    with pytest.raises(InputError, match=rf"cannot import no_such\.thing: ModuleNotFoundError: No module named 'no_such'; looked in {tmp_path}"):
        ModuleNet("no_such.thing:Net")(SHAPE, 10)
    with pytest.raises(InputError, match=rf"cannot import gone\.py: FileNotFoundError: .*{tmp_path}/gone\.py"):
        key(ModuleNet("gone.py:Net"))
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=r"cannot import broken\.py: ZeroDivisionError: division by zero"):
        ModuleNet("broken.py:Net")(SHAPE, 10)
    with pytest.raises(InputError, match=r"there is no 'Smal' in .*mine\.py; did you mean 'Small'\?"):
        named("Smal")(SHAPE, 10)
    with pytest.raises(InputError, match=r"mine\.py:built is of type Small; give a class, or a function that returns a torch\.nn\.Module"):
        named("built")(SHAPE, 10)
    file.write_text("CODE = ''\n")
    with pytest.raises(InputError, match=r"CODE is of type str; give a class"):
        named("CODE")(SHAPE, 10)


def test_what_does_not_fit_the_data_is_refused(named: Named) -> None:
    with pytest.raises(InputError, match=r"\(.*mine\.py:number\) returns a int, not a torch\.nn\.Module"):
        named("number")(SHAPE, 10)
    with pytest.raises(InputError, match=r"Bare\) has no parameters to train"):
        named("Bare", classes_argument="")(SHAPE, 10)
    with pytest.raises(InputError, match=r"Small\) fails on an image of 1×8×8: RuntimeError: .* 3 channels.*; check input channels and size"):
        named("Small")((1, 8, 8), 10)
    with pytest.raises(InputError, match=r"Small\) fails on an image of 3×2×8: RuntimeError: .*; check input channels and size"):
        named("Small")((3, 2, 8), 10)
    with pytest.raises(InputError, match=r"Pair\) returns a tuple; expected a tensor of logits"):
        named("Pair")(SHAPE, 10)
    with pytest.raises(InputError, match=r"Maps\) turns one image into a tensor of shape \[1, 4, 6, 6\]; expected \[1, 10\]"):
        named("Maps")(SHAPE, 10)
    with pytest.raises(InputError, match=r"Double\) fails on an image of 3×8×8: RuntimeError"):
        named("Double")(SHAPE, 10)


def test_two_outputs_while_training_are_refused(file: Path) -> None:
    file.write_text(CODE + "\nclass Two(Small):\n    def forward(self, x):\n        y = super().forward(x)\n        return (y, y) if self.training else y\n")
    with pytest.raises(InputError, match=r"Two\), while training, returns a tuple; expected a tensor of logits \(switch further outputs off\)"):
        ModuleNet(f"{file}:Two")(SHAPE, 10)
