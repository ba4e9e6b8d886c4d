"""A model and a data set of one's own: any ``nn.Module``, any map-style ``Dataset``, any way of training."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import unlearnlab as ul


class Blobs(Dataset[tuple[torch.Tensor, int]]):
    """Noise around one picture per class; a tenth of the labels is wrong."""

    def __init__(self, size: int = 300, classes: int = 4) -> None:
        chance = torch.Generator().manual_seed(0)
        true = torch.arange(size) % classes
        self.images = torch.randn(classes, 3, 6, 6, generator=chance)[true] + torch.randn(size, 3, 6, 6, generator=chance)
        self.labels = torch.where(torch.arange(size) % 10 == 0, (true + 1) % classes, true)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        return self.images[at], int(self.labels[at])


class Classifier(nn.Module):
    """Convolution, BatchNorm, dropout, and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def accuracy(model: nn.Module, part: Dataset[tuple[torch.Tensor, int]]) -> float:
    images, labels = next(iter(DataLoader(part, batch_size=1000)))
    return float((model.eval()(images).argmax(1) == labels).float().mean())


torch.manual_seed(0)
data, model = Blobs(), Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(30):
    for images, labels in DataLoader(data, batch_size=50, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

forget, retain = Subset(data, range(0, 300, 10)), Subset(data, [i for i in range(300) if i % 10])
new = ul.unlearn(model, forget=forget, retain=retain, method="salun", lr=0.02, batch=50, seed=0)
for name, one in (("before", model), ("after", new)):
    print(f"{name}: {accuracy(one, forget):.0%} of the wrong labels to forget, {accuracy(one, retain):.0%} of the labels to keep")
