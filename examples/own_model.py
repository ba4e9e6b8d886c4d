"""A folder of images and a model of one's own: trained, unlearned and audited. Give the folder, or digits are written to one.

python examples/own_model.py [FOLDER of class folders]
"""

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import unlearnlab as ul
from unlearnlab.data.partition import split_for


class Net(nn.Module):
    """Like torchvision's: it wants to know the number of classes, and turns a batch of images into logits."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


def digits_as_files() -> Path:
    """Real scans as PNG files, one folder a class: what stands in for a folder of yours."""
    folder, digits = Path(tempfile.mkdtemp()), ul.build("dataset", "digits")()
    for at, (pixels, label) in enumerate(zip(digits.pixels[:600, 0], digits.labels.tolist(), strict=False)):
        (folder / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / str(label) / f"{at:04}.png")
    return folder


def main(folder: Path) -> None:
    images = ul.build("dataset", {"name": "image_folder", "path": str(folder), "channels": 1})()
    parts = ul.build("partition", {"name": "stratified", "train": 200, "held_out": 150, "test": 150})(images, seed=0)
    forget = ul.build("forget", {"name": "random", "count": 30, "by_class": True})
    split = split_for(parts, forget(parts.train, seed=0), seed=0)

    net = ul.build("net", f"{__file__}:Net")(tuple(images.pixels.shape[1:]), images.classes)
    recipe = ul.build("recipe", {"name": "standard", "epochs": 20, "batch": 25})
    originals = recipe(ul.Stack.init(net, seeds=range(16)), split.train)  # models you trained yourself: ul.Stack.of(models, seeds=range(16))
    oracles = recipe(ul.Stack.init(net, seeds=range(100, 116)), split.retain)  # the same, without the forget set
    after = ul.unlearn(originals, forget=split.forget, retain=split.retain, method="finetune", lr=0.1, epochs=5, batch=25)
    print(ul.audit(originals=originals, oracles=oracles, unlearned={"original": originals, "finetune": after}, split=split))
    torch.save(after.member(0).state_dict(), "forgotten.pt")


if __name__ == "__main__":  # the net is imported from this file, which must not run again then
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else digits_as_files())
