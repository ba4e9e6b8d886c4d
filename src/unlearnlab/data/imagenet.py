"""Two subsets of ImageNet: Tiny ImageNet (200 classes, 64×64) and ImageNet-100."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from unlearnlab.data.hf import list_files, read_rows
from unlearnlab.data.images import Facts, Images
from unlearnlab.data.pictures import Decoder, Picture
from unlearnlab.data.source import IMAGENET_MEAN, IMAGENET_STD, Release, damaged, load, need
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.store import Store


@spec("dataset", "tiny_imagenet")
class TinyImageNet:
    """Tiny ImageNet: 100 000 training images of 64×64 in 200 classes, 10 000 for testing; below ROOT/tiny-imagenet-200/.

    The released validation images are the test set (the labels of the released test images were never published). Classes are
    in the sorted order of their WordNet ids, as torchvision's ``ImageFolder`` has them, not in the order of wnids.txt. Training
    images come class by class in the order of their names, then the others in the order of val_annotations.txt; ids are
    positions in that order. Columns: ``class`` (WordNet's words), ``wnid``, ``file``. The few grey images become RGB.
    """

    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD
    facts: ClassVar[Facts] = Facts(train=100_000, test=10_000, classes=200, shape=(3, 64, 64))

    def files(self, root: Path) -> Sequence[Path]:
        how = f"run 'unlearnlab fetch tiny_imagenet', or unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in {root}, and leave its folders as they are"
        names = [f"tiny-imagenet-200/{name}" for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")]
        texts = need("tiny_imagenet", root, names, how)
        base, wnids = texts[0].parent, self._wnids(texts[0])
        held = {wnid: sorted((base / "train" / wnid / "images").glob("*.JPEG")) for wnid in wnids}
        few, most = min(held, key=lambda wnid: len(held[wnid])), max(held, key=lambda wnid: len(held[wnid]))
        if len(held[few]) < max(len(held[most]), 1):  # 500 of each in the release: an unpacking that broke off shows here
            wanted = f"{len(held[most])} as in {most}" if held[most] else "500"
            raise damaged(self, base / "train" / few / "images", f"holds {len(held[few])} images, expected {wanted}")
        unknown = next((folder for folder in sorted((base / "train").iterdir()) if folder.is_dir() and folder.name not in held), None)
        if unknown is not None:
            raise InputError(f"dataset 'tiny_imagenet': {unknown} is a class that {texts[0]} does not list; expected its {len(wnids)} classes only")
        test = [base / "val" / "images" / name for name, _ in self._annotations(texts[2], wnids)]
        there = set((base / "val" / "images").glob("*.JPEG"))
        for line, file in enumerate(test, start=1):
            if file not in there:
                raise InputError(f"dataset 'tiny_imagenet': {texts[2]} names in line {line} {file.name}, but there is no file {file}; {how}")
        if len(set(test)) != len(there):
            extra = sorted(there - set(test))[0]
            raise damaged(self, texts[2], f"names {len(test)} images, expected {len(there)}: it lacks {extra.name}")
        return [*texts, *(file for wnid in wnids for file in held[wnid]), *test]

    def read(self, files: Sequence[Path]) -> Release:
        base, wnids = files[0].parent, self._wnids(files[0])
        words = dict(line.split("\t", 1) for line in files[1].read_text(encoding="utf-8").splitlines() if "\t" in line)
        mute = next((wnid for wnid in wnids if wnid not in words), None)
        if mute is not None:
            raise damaged(self, files[1], f"has no words for {mute}, expected a line for each of the {len(wnids)} classes")
        annotated = dict(self._annotations(files[2], wnids))
        pictures = [Picture(file) for file in files[3:]]
        inside = [picture.file.relative_to(base) for picture in pictures]
        test = [file.parts[0] == "val" for file in inside]
        found = [annotated[file.name] if held_out else file.parts[1] for file, held_out in zip(inside, test, strict=True)]
        decoder, at = Decoder(self, side=self.facts.shape[1]), {wnid: label for label, wnid in enumerate(wnids)}
        columns = {"class": [words[wnid].strip() for wnid in found], "wnid": found, "file": [file.as_posix() for file in inside]}
        shape = decoder.shape(pictures[0])
        return Release(shape, [at[wnid] for wnid in found], test, len(wnids), lambda: decoder.blocks(pictures, shape), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)

    def _wnids(self, path: Path) -> list[str]:
        found = sorted(path.read_text(encoding="utf-8").split())
        if not found or len(set(found)) != len(found):
            raise damaged(self, path, f"lists {len(found)} classes, {len(set(found))} of them different, expected every class once")
        return found

    def _annotations(self, path: Path, wnids: Sequence[str]) -> list[tuple[str, str]]:
        """File name and class of every validation image, in the order of the file."""
        found, known = [], set(wnids)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            cells = line.split("\t")
            if len(cells) < 2 or cells[1] not in known:
                what = f"the unknown class '{cells[1]}'" if len(cells) > 1 else f"'{line}'"
                raise damaged(self, path, f"has {what} in line {number}, expected a file name, a tab and one of the {len(wnids)} classes of wnids.txt")
            found.append((cells[0], cells[1]))
        return found


@spec("dataset", "imagenet100")
class ImageNet100:
    """ImageNet-100: 126 689 training images in 100 classes, 5 000 for testing; the hub's clane9/imagenet-100 below ROOT/imagenet-100/.

    The shorter side of every image is resized to ``size`` and the centred square kept, so that all are of one size on the disk.
    Nets get ``view``×``view`` pixels: the middle of the image where they are evaluated, and whatever crop the augmentation of a
    recipe takes in training. The released validation images are the test set. Order and columns as for ``hf``. Needs pyarrow.
    """

    mean: ClassVar[tuple[float, ...]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_STD

    size: Annotated[int, Setting("the shorter side is resized to so much, then the centred square kept", ge=1, unit="pixels")] = 160
    view: Annotated[int, Setting("side of what nets see of an image", ge=1, unit="pixels")] = 128

    @property
    def facts(self) -> Facts:
        return Facts(train=126_689, test=5_000, classes=100, shape=(3, self.size, self.size))

    def __post_init__(self) -> None:
        if self.view > self.size:
            raise InputError(f"dataset 'imagenet100': view = {self.view} is more than size = {self.size}; expected at most as much")

    def files(self, root: Path) -> Sequence[Path]:
        folder, how = root / "imagenet-100", f"hf download clane9/imagenet-100 --repo-type dataset --local-dir {root}/imagenet-100"
        for split in ("train", "validation"):
            if not any(folder.rglob(f"{split}-*.parquet")):
                need("imagenet100", root, [f"imagenet-100/data/{split}-*.parquet"], how)
        return list_files(self, folder)

    def read(self, files: Sequence[Path]) -> Release:
        return read_rows(self, files, Decoder(self, size=self.size, crop=True), classes=self.facts.classes)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)
