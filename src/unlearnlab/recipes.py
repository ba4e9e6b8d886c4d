"""The published recipes by name: each is ``Recipe`` with other defaults, so every setting can still be changed.

What is published comes from the papers' own pages; each docstring names what is ours.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from unlearnlab.data.augment import Crop, Flip, RandomResizedCrop
from unlearnlab.data.autoaugment import AutoAugment
from unlearnlab.optimizers import AdamW, Cosine, MultiStep, Sgd, WarmUp
from unlearnlab.spec import spec
from unlearnlab.train import Recipe

PLAIN, DECAYED, FINAL = Sgd(weight_decay=0.0), Sgd(), 0.01
CROP_AND_FLIP = (Crop(padding=4), Flip())


_TYPES = get_type_hints(Recipe, include_extras=True)


def _recipe(name: str, summary: str, *, paper: str, **defaults: Any) -> None:
    """File ``Recipe`` under another name with other defaults."""
    settings = {"__doc__": summary, "__module__": __name__, "__annotations__": {field: _TYPES[field] for field in defaults}}
    made: Any = type("".join(word.title() for word in name.split("_")), (Recipe,), settings | defaults)
    globals()[made.__name__] = spec("recipe", name, paper=paper)(made)


# ---- Unlearn-Sparse (Jia et al. 2023), SalUn (Fan et al. 2024)

_recipe(
    "unlearn_sparse",
    "Unlearn-Sparse and SalUn on CIFAR: 182 epochs in batches of 256, lr 0.1 cut to a tenth at 91 and 136, crops and flips; weights after epoch 8 are kept.",
    paper="arXiv:2304.04934",
    epochs=182,
    batch=256,
    lr=0.1,
    schedule=MultiStep(epochs=(91, 136)),
    augment=CROP_AND_FLIP,
    rewind=8,
)
_recipe(
    "unlearn_sparse_svhn",
    "Unlearn-Sparse and SalUn on SVHN: as on CIFAR, but 160 epochs and no augmentation.",
    paper="arXiv:2304.04934",
    epochs=160,
    batch=256,
    lr=0.1,
    schedule=MultiStep(epochs=(91, 136)),
    rewind=8,
)
_recipe(
    "unlearn_sparse_imagenet",
    """Unlearn-Sparse on ImageNet: 90 epochs in batches of 1024, 8 of warm-up and a cosine, momentum 0.875, weight decay 3.05e-5.

    Ours: the peak rate 1.024 (0.256 for each 256 images of the batch) and crops resized to 224.
    """,
    paper="arXiv:2304.04934",
    epochs=90,
    batch=1024,
    lr=1.024,
    optimizer=Sgd(momentum=0.875, weight_decay=3.05e-5),
    schedule=WarmUp(epochs=8, then=Cosine()),
    augment=(RandomResizedCrop(size=224), Flip()),
)

# ---- RUM (Zhao et al. 2024)

_recipe(
    "rum_cifar10",
    "RUM on CIFAR-10: 30 epochs in batches of 256, lr 0.1 along a cosine to 0, no augmentation.",
    paper="arXiv:2406.01257",
    epochs=30,
    batch=256,
    lr=0.1,
    schedule=Cosine(),
)
_recipe(
    "rum_cifar100",
    """RUM on CIFAR-100: 150 epochs in batches of 256, lr 0.1 cut to a fifth at 60 and 120, no augmentation.

    Epochs and cuts are from recollection of the paper, unverified.
    """,
    paper="arXiv:2406.01257",
    epochs=150,
    batch=256,
    lr=0.1,
    schedule=MultiStep(epochs=(60, 120), factor=0.2),
)
_recipe(
    "rum_tiny_imagenet",
    """RUM on Tiny-ImageNet: 80 epochs in batches of 256, lr 0.1 along a cosine to 0, no augmentation.

    The number of epochs is from recollection of the paper, unverified.
    """,
    paper="arXiv:2406.01257",
    epochs=80,
    batch=256,
    lr=0.1,
    schedule=Cosine(),
)
_recipe(
    "memorisation",
    "The runs behind RUM's memorisation scores: 30 epochs in batches of 512, lr 0.01 cut to a tenth from epochs 16, 21 and 26 (counted from 0).",
    paper="arXiv:2406.01257",
    epochs=30,
    batch=512,
    lr=0.01,
    schedule=MultiStep(epochs=(16, 21, 26)),
)

# ---- DEL

for _name, _data, _settings in (
    ("del_cifar10", "CIFAR-10: 30 epochs in batches of 128, lr 0.1 along a cosine to 1 %", {"epochs": 30, "lr": 0.1}),
    ("del_svhn", "SVHN with vit_small_data: 30 epochs in batches of 128, lr 0.05 along a cosine to 1 %", {"epochs": 30, "lr": 0.05}),
    (
        "del_imagenet100",
        "ImageNet-100: 100 epochs in batches of 128, lr 0.1 along a cosine to 1 %, crops resized to 128 and flips",
        {"epochs": 100, "lr": 0.1, "augment": (RandomResizedCrop(size=128), Flip())},
    ),
):
    _recipe(_name, f"DEL on {_data}; no weight decay.", paper="arXiv:2412.02432", batch=128, optimizer=PLAIN, schedule=Cosine(final=FINAL), **_settings)

# ---- deepunlearn (the contest's methods compared)

_recipe(
    "deepunlearn",
    "deepunlearn on CIFAR-10/100: 182 epochs in batches of 256, lr 0.1 along a cosine, crops and flips.",
    paper="arXiv:2410.01276",
    epochs=182,
    batch=256,
    lr=0.1,
    schedule=Cosine(),
    augment=CROP_AND_FLIP,
)
_recipe(
    "deepunlearn_small",
    "deepunlearn on MNIST, Fashion-MNIST and UTKFace: 50 epochs in batches of 256, lr 0.1 along a cosine.",
    paper="arXiv:2410.01276",
    epochs=50,
    batch=256,
    lr=0.1,
    schedule=Cosine(),
)

# ---- SSD (Foster et al. 2024)

for _name, _data, _epochs, _cuts in (
    ("ssd_cifar10", "CIFAR-10", 20, (8, 12, 16)),
    ("ssd_cifar20", "CIFAR-20", 40, (15, 30, 35)),
    ("ssd_cifar100", "CIFAR-100 and faces", 200, (60, 120, 160)),
):
    _recipe(
        _name,
        f"""SSD on {_data}: {_epochs} epochs, lr cut at {", ".join(map(str, _cuts))}, crops and flips.

        Ours: lr 0.1, cut to a tenth, batches of 128, weight decay 5e-4.
        """,
        paper="arXiv:2308.07707",
        epochs=_epochs,
        batch=128,
        lr=0.1,
        schedule=MultiStep(epochs=_cuts),
        augment=CROP_AND_FLIP,
    )
_recipe(
    "ssd_vit",
    """SSD's fine-tuning of a pretrained vision transformer: 8 epochs with crops and flips.

    Ours: all else (AdamW, lr 1e-4 along a cosine, batches of 128). It wants pretrained weights, which we do not ship.
    """,
    paper="arXiv:2308.07707",
    epochs=8,
    batch=128,
    lr=1e-4,
    optimizer=AdamW(),
    schedule=Cosine(),
    augment=CROP_AND_FLIP,
)

# ---- Forget with Precision

_REFLECTED = (AutoAugment(), Crop(padding=4, mode="reflect"), Flip())
_recipe(
    "fwp_cifar10",
    "Forget with Precision on CIFAR-10: 100 epochs in batches of 128, lr 0.1 cut to a tenth at 35, 70 and 90, Nesterov, AutoAugment, reflected crops, flips.",
    paper="",
    epochs=100,
    batch=128,
    lr=0.1,
    optimizer=Sgd(nesterov=True),
    schedule=MultiStep(epochs=(35, 70, 90)),
    augment=_REFLECTED,
)
_recipe(
    "fwp_agedb",
    """Forget with Precision on AgeDB: as on CIFAR-10, with the loss weighted by inverse class frequency.

    Ours: the crop's padding of 4 pixels, and AutoAugment's CIFAR-10 policy where the paper's pages name the ImageNet policy.
    """,
    paper="",
    epochs=100,
    batch=128,
    lr=0.1,
    optimizer=Sgd(nesterov=True),
    schedule=MultiStep(epochs=(35, 70, 90)),
    augment=_REFLECTED,
    class_weights="inverse",
)

# ---- ours

_recipe("digits", "The digits study: 40 epochs in batches of 50, one cycle up to lr 0.1; the same as `standard`.", paper="")
