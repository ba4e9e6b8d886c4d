"""What the five works leave behind, in the formats in which they leave it: checkpoints, masks, score files and index files, each used in a whole study."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import random
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from unlearnlab import cli, filing, study, studyfiles
from unlearnlab import groundwork as ground
from unlearnlab.checkpoints import Checkpoint, load_originals, read_weights
from unlearnlab.forgetsets import read_ids
from unlearnlab.localise.legacy_file import LegacyFile
from unlearnlab.localise.stored import read_mask, read_ranking
from unlearnlab.nets.resnet import ResNet18
from unlearnlab.planning import plan
from unlearnlab.scores.file import FileScore
from unlearnlab.spec import InputError
from unlearnlab.store import Store

# A residual net as published code writes it; with "downsample" and "fc" for "shortcut" and "linear", as torchvision does.
THEIRS = """
import torch
from torch import nn
from torch.nn import functional as F

class Normalise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]))
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]))

    def forward(self, x):
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))

class ResNet(nn.Module):
    def __init__(self, widths=(64, 128, 256, 512), depth=2, num_classes=10, normalise=True):
        super().__init__()
        if normalise:
            self.normalize = Normalise()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        inside = widths[0]
        for at, width in enumerate(widths, 1):
            stride = 1 if at == 1 else 2
            blocks = [Block(inside if i == 0 else width, width, stride if i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{at}", nn.Sequential(*blocks))
            inside = width
        self.stages = len(widths)
        self.linear = nn.Linear(inside, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(self.normalize(x) if hasattr(self, "normalize") else x)))
        for at in range(1, self.stages + 1):
            x = getattr(self, f"layer{at}")(x)
        return self.linear(x.mean((2, 3)))
"""
TINY = {"widths": (4, 6), "depth": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 in its release's files, with 24 images each; their net, and ours of the same structure with torchvision's names."""
    where = tmp_path_factory.mktemp("artefacts")
    (where / "theirs.py").write_text(THEIRS)
    (where / "ours.py").write_text(THEIRS.replace("shortcut", "downsample").replace("linear", "fc").replace("normalise=True", "normalise=False"))
    draw, batches = np.random.default_rng(0), where / "data" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels = [at % 10 for at in range(24)]
        held = {b"data": draw.integers(0, 256, (24, 3072), dtype=np.uint8), b"labels": labels}
        (batches / name).write_bytes(pickle.dumps(held, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"name%d" % at for at in range(10)]}, protocol=2))
    return where


def made(folder: Path, seed: int = 0, **settings: Any) -> nn.Module:
    """Their model, after some images, so that its running means are not those of the start."""
    spec = importlib.util.spec_from_file_location("theirs", folder / "theirs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(seed)
    net: nn.Module = module.ResNet(**settings)
    net(torch.rand(8, 3, 32, 32))
    return net.eval()


def pruned(net: nn.Module, share: float = 0.8) -> nn.Module:
    """As Jia et al. prune: globally over convolutions, the masks beside the weights."""
    where = [(module, "weight") for module in net.modules() if isinstance(module, nn.Conv2d)]
    prune.global_unstructured(where, pruning_method=prune.L1Unstructured, amount=share)
    return net


def run(folder: Path, name: str, until: str = "audit", **changes: Any) -> study.Runner:
    """A study of two models on that release."""
    table = {
        "title": name,
        "models": 2,
        "dataset": "cifar10",
        "partition": {"name": "released", "held_out": 0.3},
        "net": {"name": "module", "path": str(folder / "ours.py") + ":ResNet", "arguments": ["widths=[4, 6]", "depth=1"]},
        "recipe": {"name": "standard", "epochs": 1, "batch": 20},
        "forget": {"name": "random", "count": 12},
        "methods": [{"name": "finetune", "epochs": 1}],
        "metrics": ["trace", {"name": "acc", "part": "test"}],
        **changes,
    }
    (folder / f"{name}.toml").write_text(tomli_w.dumps(table))
    asked = studyfiles.read(str(folder / f"{name}.toml"))[1]
    return study.run(asked, name, Store(folder / "store"), until=until, data_root=str(folder / "data"))


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_a_published_resnet18_answers_as_it_did(folder: Path, tmp_path: Path, parallel: bool) -> None:
    theirs = made(folder)
    prefix = "module." if parallel else ""
    held = {f"{prefix}{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": held, "best_acc": np.float64(93.1), "epoch": 182, "result": {"test_ta": [93.1]}}, tmp_path / "0model_SA_best.pth.tar")
    ours = ResNet18()((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    stack = load_originals(ours, (tmp_path / "0model_SA_best.pth.tar",), (0,))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(stack.logits(images)[0], theirs(images), atol=1e-4)
    assert not stack.live


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held | {"fc.weight": held["linear.weight"]}, "'fc.weight', 'linear.weight' may each be its 'fc.weight'; save the state dict of one"),
        (lambda held: held | {"classifier.weight": held["linear.weight"]}, "'classifier.weight', 'linear.weight' may each be its 'fc.weight'"),
        (lambda held: held | {"extra.weight": torch.ones(2)}, "it holds 'extra.weight', which the net does not have"),
        (lambda held: {name: held[name] for name in held if name != "bn1.bias"}, "it lacks 'bn1.bias'; choose the net that was trained"),
        (lambda held: held | {"linear.weight": torch.zeros(7, 512)}, r"'linear.weight' is \[7, 512\], and the net has \[10, 512\]"),
        (lambda held: held | {"normalize.std": torch.tensor([0.2023, 0.1994, 0.2010])}, r"'normalize.std' = \[0.2023, 0.1994, 0.201\].*set normalise"),
        (lambda held: held | {"conv1.weight_orig": held["conv1.weight"], "conv1.weight_mask": held["conv1.weight"]}, r"both 'conv1.weight' and"),
        (lambda held: masked(held, held["conv1.weight"]), "holds no mask under 'conv1.weight_mask'"),
        (lambda held: masked(held, torch.ones(3)), r"holds no mask under 'conv1.weight_mask' \(torch.float32 \[3\]\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(folder: Path, tmp_path: Path, change: Any, words: str) -> None:
    torch.save(change(dict(made(folder).state_dict())), tmp_path / "w.pt")
    ours = ResNet18()((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    with pytest.raises(InputError, match=words) as caught:
        load_originals(ours, (tmp_path / "w.pt",), (0,))
    assert "\n" not in str(caught.value)


def masked(held: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in held.items() if name != "conv1.weight"} | {"conv1.weight_orig": held["conv1.weight"], "conv1.weight_mask": mask}


def save_pruned(folder: Path, to: Path, seed: int = 0) -> nn.Module:
    net = pruned(made(folder, seed, **TINY))
    init = made(folder, seed + 100, **TINY).state_dict()
    torch.save({"result": {}, "epoch": 160, "state_dict": net.state_dict(), "best_sa": 91.2, "init_weight": init}, to)
    return net


def test_a_pruned_checkpoint_stays_pruned(folder: Path, tmp_path: Path) -> None:
    theirs = save_pruned(folder, tmp_path / "1model_SA_best.pth.tar")
    done = run(folder, "pruned", original={"checkpoint": str(tmp_path / "1model_SA_best.pth.tar")})
    images = ground.load_data(done.setup, done.data_key).train
    (original,) = (filing.load_stack(done.setup, key, images) for key in done.originals)
    live = {name: bool_.sum().item() / bool_.numel() for name, bool_ in original.live.items()}
    assert sorted(live) == sorted(f"net.{name}" for name in _named(theirs))
    assert sum(int(bits.sum()) for bits in original.live.values()) == round(0.2 * sum(bits.numel() for bits in original.live.values()))
    pixels = images.pixels[:16]
    with torch.no_grad():
        assert torch.allclose(original.logits(pixels)[0], theirs(pixels.float() / 255), atol=1e-4)
    for keys in (done.oracles, done.unlearned["finetune"], done.unlearned["retrain"]):
        for key in keys:
            held = filing.load_stack(done.setup, key, images)
            for weight, bits in original.live.items():
                assert torch.equal(held.live[weight], bits.expand_as(held.live[weight]))
                assert not bool(held.params[weight][~held.live[weight]].any())
            assert not torch.equal(held.params["net.conv1.weight"][:1], original.params["net.conv1.weight"])
    assert any("originals come pruned" in note for note in done.document["notes"])
    assert all(item.reused == item.models for item in plan(studyfiles.read(str(folder / "pruned.toml"))[1], done.store))


def _named(net: nn.Module) -> list[str]:
    """Of their pruned weights what ours calls them."""
    names = [name.removesuffix("_mask") for name, _ in net.named_buffers() if name.endswith("_mask")]
    return [name.replace("shortcut", "downsample") for name in names]


def test_originals_that_are_not_pruned_alike(folder: Path, tmp_path: Path) -> None:
    save_pruned(folder, tmp_path / "a.pt")
    save_pruned(folder, tmp_path / "b.pt", seed=1)
    torch.save(made(folder, 2, **TINY).state_dict(), tmp_path / "dense.pt")
    assert Checkpoint((str(tmp_path / "a.pt"), str(tmp_path / "b.pt"))).sparse
    assert not Checkpoint(str(tmp_path / "dense.pt")).sparse
    with pytest.raises(InputError, match=r"a.pt and .*dense.pt are not pruned alike: one of them has no mask for 'conv1.weight', 'layer1"):
        _ = Checkpoint((str(tmp_path / "a.pt"), str(tmp_path / "dense.pt"))).sparse


# -- masks -----------------------------------------------------------------------------------------


def test_published_masks_in_a_study(folder: Path, tmp_path: Path) -> None:
    """One original, two models: SalUn's zeros and ones, RUM's soft values, DEL's file; all under the names of their net."""
    theirs = made(folder, **TINY)
    torch.save(theirs.state_dict(), tmp_path / "original.pt")
    torch.save(made(folder, 7, **TINY).state_dict(), tmp_path / "init.pt")
    draw = torch.Generator().manual_seed(3)
    scores = {name: torch.randn(p.shape, generator=draw) for name, p in theirs.named_parameters()}
    files = {
        "with_0.5.pt": {f"module.{name}": (held > 0).long() for name, held in scores.items()},  # SalUn
        "tanh_soft_with_0.3.pt": {name: torch.tanh(held) for name, held in scores.items()},  # RUM
        "mask_resnet18_cifar10_non_iid_0.1_weighted_grad_channel_thr_0.3.pt": {name: (held > 0.5).float() for name, held in scores.items()},  # DEL
    }
    for name, held in files.items():
        torch.save(held, tmp_path / name)
    salun, rum, del_ = (str(tmp_path / name) for name in files)
    relabel, reset = {"name": "random_label", "epochs": 1}, {"name": "reset_finetune", "epochs": 1}
    methods = [
        {"name": "localised", "where": {"name": "legacy_file", "path": salun}, "method": relabel},
        {"name": "localised", "where": {"name": "legacy_file", "path": rum, "budget": 0.3}, "method": relabel},
        {"name": "localised", "where": {"name": "legacy_file", "path": del_}, "method": reset},
    ]
    done = run(folder, "masks", "unlearn", methods=methods, original={"checkpoint": str(tmp_path / "original.pt"), "init": str(tmp_path / "init.pt")})
    images = ground.load_data(done.setup, done.data_key).train
    (original,) = (filing.load_stack(done.setup, key, images) for key in done.originals)
    rows = [name for name in done.unlearned if name not in ("original", "retrain")]
    assert len(rows) == 3
    head = {"net.fc.weight", "net.fc.bias"}  # which reset_finetune opens whatever the mask says
    flat = torch.cat([held.abs().tanh().flatten() for held in scores.values()])
    least = flat.sort(descending=True).values[int(0.3 * len(flat)) - 1]
    for row, held in zip(rows, files.values(), strict=True):
        after = filing.load_stack(done.setup, done.unlearned[row][0], images)
        for name, values in held.items():
            own = "net." + name.removeprefix("module.").replace("shortcut", "downsample").replace("linear", "fc")
            closed = values.abs() < least if held is files["tanh_soft_with_0.3.pt"] else values == 0
            changed = after.params[own] != original.params[own]
            assert not bool((changed & closed).any()) or (own in head and row == rows[2]), (row, own)
        assert any(bool((after.params[name] != original.params[name]).any()) for name in after.params), row


def test_a_mask_file_serves_one_model(folder: Path, tmp_path: Path) -> None:
    nets = [made(folder, seed, **TINY) for seed in (1, 2)]
    for seed, net in enumerate(nets):
        torch.save(net.state_dict(), tmp_path / f"{seed}.pt")
    torch.save({name: torch.ones_like(p) for name, p in nets[0].named_parameters()}, tmp_path / "with_1.0.pt")
    where = {"name": "localised", "where": {"name": "legacy_file", "path": str(tmp_path / "with_1.0.pt")}, "method": "finetune"}
    with pytest.raises(InputError, match=r"is that of one model, and there are 2; give the study the one that it was made from"):
        run(folder, "two", "mask", methods=[where], original={"checkpoint": [str(tmp_path / "0.pt"), str(tmp_path / "1.pt")]})
    assert LegacyFile(str(tmp_path / "with_1.0.pt")).content()["sha256"]


# -- score files -----------------------------------------------------------------------------------


def memorisation(count: int = 120) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(5).random(count).astype(np.float32)


def test_rums_score_file_in_a_study(folder: Path, tmp_path: Path) -> None:
    values = memorisation()
    np.savez(tmp_path / "scores.npz", memorization=values, influence=np.zeros((24, 120), dtype=np.float32))
    by_score = {"name": "by_score", "score": "file", "band": "mix", "count": 12}
    rum = {"name": "rum", "refine": {"name": "by_score", "score": "file"}, "each": [{"name": "finetune", "epochs": 1}]}
    done = run(folder, "rum", forget=by_score, methods=[rum], scores=[{"name": "file", "path": str(tmp_path / "scores.npz")}])
    train = ground.load_data(done.setup, done.data_key).train.ids.tolist()
    ranked = sorted(train, key=lambda i: (values[i], i))
    mid = sorted(train, key=lambda i: (abs(float(values[i]) - 0.5), values[i], i))[:4]
    groups = ground.load_groups(done.setup, done.forget_key)
    assert groups == {"file.low": sorted(ranked[:4]), "file.mid": sorted(mid), "file.high": sorted(ranked[-4:])}
    assert [row["method"] for row in done.document["rows"]][:2] == ["original", "retrain"]
    steps = json.loads((Path(done.setup.root) / "studies" / "rum" / "groups.json").read_text())
    assert sorted(i for held in steps.values() for ids in held.values() for i in ids) == sorted(i for ids in groups.values() for i in ids)


def events(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """id, last epoch, confidence, max_conf, neg_entropy, bi_acc: of the easy ones high."""
    return np.stack([np.arange(len(values)), np.full(len(values), 29), 1 - values, 1 - values, -values, 1 - values], 1)


@pytest.mark.parametrize(
    ("name", "held", "more"),
    [
        ("events.npz", lambda v: {"events": events(v)}, {"column": "confidence"}),
        ("neg_entropy.npz", lambda v: {"events": events(v)}, {"column": "entropy"}),
        ("kl.npz", lambda v: {"kl_divergences": np.stack([np.arange(len(v)), v], 1)}, {}),
        ("curvatures.pkl", lambda v: {"curvatures": dict(enumerate(v.tolist()))}, {}),
        ("infl_mem.npz", lambda v: {"memorization": v, "influence": np.zeros((3, len(v)))}, {}),
    ],
)
def test_published_proxies_choose_the_hardest(folder: Path, tmp_path: Path, name: str, held: Any, more: dict[str, Any]) -> None:
    values = memorisation()
    if name.endswith(".npz"):
        np.savez(tmp_path / name, **held(values))
    else:
        (tmp_path / name).write_bytes(pickle.dumps(held(values)))
    table = {"forget": {"name": "by_score", "score": "file", "band": "high", "count": 7}, "scores": [{"name": "file", "path": str(tmp_path / name), **more}]}
    done = run(folder, "proxy", "forget", **table)
    train = ground.load_data(done.setup, done.data_key).train.ids.tolist()
    chosen = ground.load_split(done.setup, done.data_key, done.forget_key).forget.ids.tolist()
    assert chosen == sorted(sorted(train, key=lambda i: float(values[i]))[-7:])


def test_the_score_file_of_cifar100_in_a_study(tmp_path: Path) -> None:
    release, draw = tmp_path / "data" / "cifar-100-python", np.random.default_rng(0)
    release.mkdir(parents=True)
    labels = {"train": [at % 6 for at in range(90)], "test": [at % 6 for at in range(30)]}
    for part, fine in labels.items():
        held = {b"data": draw.integers(0, 256, (len(fine), 3072), dtype=np.uint8), b"fine_labels": fine, b"coarse_labels": fine}
        (release / part).write_bytes(pickle.dumps(held, protocol=2))
    meta = {b"fine_label_names": [b"f%d" % at for at in range(100)], b"coarse_label_names": [b"c%d" % at for at in range(20)]}
    (release / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    values = memorisation(90)
    arrays = {"tr_mem": values, "tr_labels": np.array(labels["train"]), "tt_labels": np.array(labels["test"])}
    for label in range(6):
        at = {part: np.flatnonzero(np.array(held) == label) for part, held in labels.items()}
        arrays |= {f"infl_matrix_class{label}": np.zeros((len(at["train"]), len(at["test"])))}
        arrays |= {f"tr_classidx_{label}": at["train"], f"tt_classidx_{label}": at["test"]}
    np.savez(tmp_path / "cifar100_infl_matrix.npz", **arrays)
    changes: dict[str, Any] = {
        "dataset": "cifar100",
        "net": {"name": "small_cnn", "widths": [4, 4, 4]},
        "forget": {"name": "by_score", "score": "file", "band": "low", "count": 5},
        "scores": [{"name": "file", "path": str(tmp_path / "cifar100_infl_matrix.npz")}],
    }
    done = run(tmp_path, "hundred", "audit", **changes)
    train = ground.load_data(done.setup, done.data_key).train.ids.tolist()
    chosen = ground.load_split(done.setup, done.data_key, done.forget_key).forget.ids.tolist()
    assert chosen == sorted(sorted(train, key=lambda i: float(values[i]))[:5])
    np.savez(tmp_path / "cifar100_infl_matrix.npz", **arrays | {"tr_labels": np.roll(labels["train"], 1)})
    with pytest.raises(InputError, match="give scores of this data set, in the order of its release"):
        run(tmp_path, "hundred", "forget", **changes)


# -- files of ids ----------------------------------------------------------------------------------

IDS = [7, 3, 19]


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("forget_idx_3_seed_1.txt", lambda path: np.savetxt(path, IDS)),
        ("forget_idx_3_seed_1.txt", lambda path: np.savetxt(path, IDS, fmt="%d")),
        ("idx.npz", lambda path: np.savez(path, np.array(IDS))),
        ("idx.npz", lambda path: np.savez(path, forget_idx=np.array(IDS), retain_idx=np.arange(3))),
        ("idx.pt", lambda path: torch.save(IDS, path)),
        ("idx.pt", lambda path: torch.save(torch.tensor(IDS, dtype=torch.int32), path)),
        ("idx.pth", lambda path: torch.save(np.array(IDS), path)),
        ("idx.pth", lambda path: torch.save([np.int64(i) for i in IDS], path)),
        ("idx.pt", lambda path: torch.save({"indices": torch.tensor(IDS)}, path)),
        ("idx.pt", lambda path: torch.save({"forget": IDS, "retain": [1, 2]}, path)),
        ("idx.pt", lambda path: torch.save(torch.tensor(IDS), path, _use_new_zipfile_serialization=False)),
    ],
)
def test_published_index_files(tmp_path: Path, name: str, save: Any) -> None:
    save(tmp_path / name)
    assert read_ids(tmp_path / name) == IDS


def test_a_mask_of_members_saved_by_torch(tmp_path: Path) -> None:
    torch.save(torch.tensor([False, True, True]), tmp_path / "mask.pt")
    assert read_ids(tmp_path / "mask.pt") == [1, 2]


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize(
    ("name", "save", "words"),
    [
        ("idx.pkl", lambda path: path.write_bytes(pickle.dumps(IDS)), "a pickle may run code of whoever wrote it, so it is never read; save the ids"),
        ("idx.pt", lambda path: torch.save(Bomb(), path), "holds more than numbers, or is damaged, and is not read; save the ids alone"),
        ("idx.pt", lambda path: path.write_bytes(b"nothing"), "holds more than numbers, or is damaged"),
        ("idx.pt", lambda path: path.write_bytes(b""), "idx.pt"),
        ("idx.npz", lambda path: path.write_bytes(b"PK nothing"), "does not hold ids"),
        ("idx.npz", lambda path: np.savez(path, a=np.array(IDS), b=np.array(IDS)), r"none of its entries says forget \(it has: a, b\)"),
        ("idx.npz", lambda path: np.savez(path, np.array([Bomb()], dtype=object)), "does not hold ids: Object arrays cannot be loaded"),
        ("idx.pt", lambda path: torch.save({"forget": IDS, "forget_labels": IDS}, path), r"2 of its entries \(forget, forget_labels\) are of the forget set"),
        ("idx.pt", lambda path: torch.save({}, path), "it has: none"),
        ("idx.pt", lambda path: torch.save({"forget": "all"}, path), "holds a str, not a list, array or tensor"),
        ("idx.pt", lambda path: torch.save(torch.tensor([[1, 2], [3, 4]]), path), r"an array of the shape \[2, 2\]"),
        ("idx.pt", lambda path: torch.save(torch.tensor([1.5]), path), "1.5 is no whole number"),
        ("idx.pt", lambda path: torch.save([[1], [2]], path), r"\[1\] is no whole number"),
    ],
)
def test_index_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, save: Any, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        read_ids(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_damaged_files_of_every_kind_are_told_in_one_line(tmp_path: Path) -> None:
    """Bytes overwritten at random, among them the header that NumPy parses as Python, and the names and versions in archives."""
    np.save(tmp_path / "a.npy", np.arange(5))
    np.savez(tmp_path / "a.npz", forget=np.arange(5))
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    save_file({"a": torch.ones(1, dtype=torch.uint8), "rank:a": torch.ones(1)}, tmp_path / "about.safetensors", metadata={"about": "[]"})
    readers = {"ids": read_ids, "weights": read_weights, "mask": lambda path: LegacyFile(str(path))._loaded(), "stored": read_mask, "ranks": read_ranking}
    readers["scores"] = lambda path: FileScore(str(path)).told(5)
    chance, refused, damaged = random.Random(1), list[str](), tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "about.safetensors").write_bytes((tmp_path / "about.safetensors").read_bytes())
    (damaged / "words.csv").write_text('"')
    for whole in sorted(tmp_path.glob("a.*")):
        for at in range(40):
            held = bytearray(whole.read_bytes())
            for _ in range(chance.choice((1, 3, 10))):
                held[chance.randrange(len(held))] = chance.randrange(256)
            (damaged / f"{at}{whole.suffix}").write_bytes(held)
    for path in sorted(damaged.iterdir()):
        for read in readers.values():
            try:
                read(path)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 500
    assert not [told for told in refused if "\n" in told]


def test_an_index_file_in_a_study(folder: Path, tmp_path: Path) -> None:
    data = run(folder, "whole", "data")
    train = ground.load_data(data.setup, data.data_key).train.ids.tolist()
    torch.save({"forget": torch.tensor(train[3:9])}, tmp_path / "forget.pt")
    done = run(folder, "ids", "forget", forget={"name": "ids", "file": str(tmp_path / "forget.pt")})
    assert ground.load_split(done.setup, done.data_key, done.forget_key).forget.ids.tolist() == train[3:9]


# -- unlearnlab fetch ------------------------------------------------------------------------------


def test_fetch_says_where_scores_are_published_and_checks_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fetch", "rum_cifar10_memorisation", "--data-root", str(tmp_path)]
    assert cli.call(words) == 2
    out, err = capsys.readouterr()
    place = tmp_path / "scores" / "rum_cifar10_memorisation.npz"
    for told in ("https://drive.google.com/file/d/1RCTrrI8jbCk6n1AWOtWJS3IubY-jtjRl", "memorization (float32, 50000", f"put at {place}"):
        assert told in out
    assert f"there is no file {place}; get it by hand" in err
    toml = out[out.index("[[scores]]") :]
    assert tomllib.loads(toml) == {
        "scores": [{"name": "file", "path": str(place)}],
        "forget": {"name": "by_score", "score": "file", "band": "mix", "count": 3000},
    }
    place.parent.mkdir()
    np.savez(place, memorization=np.linspace(-0.01, 1, 50_000, dtype=np.float32), influence=np.zeros((2, 2), dtype=np.float32))
    assert cli.call(words) == 0
    out, _ = capsys.readouterr()
    assert f"sha256 {hashlib.sha256(place.read_bytes()).hexdigest()}" in out
    assert "it reads well: 50000 scores (memorisation), from -0.010 to 1.000" in out
    for held, fault in ((b"<html>sign in first</html>", "html"), (b"PK", "is truncated or damaged")):
        place.write_bytes(held)
        assert cli.call(words) == 2
        assert fault in capsys.readouterr().err
    np.savez(place, memorization=np.zeros(10))
    assert cli.call(words) == 2
    assert "holds 10 scores; expected 50000" in capsys.readouterr().err


def test_fetch_without_a_name_lists_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cifar-10-batches-py/data_batch_1", "mnist/train-images-idx3-ubyte.gz", "svhn/train_32x32.mat", "svhn/test_32x32.mat", "agedb/AgeDB.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "cifar100_infl_matrix.npz").touch()
    assert cli.call(["fetch", "--data-root", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {name for name, line in lines.items() if "is there:" in line} == {"svhn", "agedb", "cifar100_memorisation"}  # of others a part
    assert {"cifar10", "mnist", "tiny_imagenet", "utkface", "fwp_logits", "rum_cifar10_memorisation"} < set(lines)
    assert cli.call(["fetch", "agedb", "--data-root", str(tmp_path)]) == 0
    assert cli.call(["fetch", "fwp_logits", "--data-root", str(tmp_path)]) == 2
    assert "scripts/create_logits.ipynb" in capsys.readouterr().err
    assert cli.call(["fetch", "rum_memorisation"]) == 2
    assert "score files: rum_cifar10_memorisation, cifar100_memorisation" in capsys.readouterr().err
