"""Files of scores that papers published: where they are, what they hold, and where they go here. Needs nothing but Python.

No checksum was published with any of them, so none is downloaded: it is placed by hand, and then read and told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unlearnlab.spec import InputError


@dataclass(frozen=True)
class ScoreFile:
    """``address``: the page that names the file; ``click``: what to take there; ``file``: what to call it; ``count``: the scores in it."""

    address: str
    click: str
    file: str
    holds: str
    dataset: str
    count: int


SCORES: dict[str, ScoreFile] = {
    "rum_cifar10_memorisation": ScoreFile(
        address="https://drive.google.com/file/d/1RCTrrI8jbCk6n1AWOtWJS3IubY-jtjRl/view?usp=sharing",
        click="the one file behind that link, which is 'here' in the first lines of RUM's page: open it in a browser and press Download",
        file="rum_cifar10_memorisation.npz",
        holds="memorization (float32, 50000, by row of the release) and influence (float32, 10000 x 50000, about 2 GB, which is never read)",
        dataset="cifar10",
        count=50_000,
    ),
    "cifar100_memorisation": ScoreFile(
        address="https://pluskid.github.io/influence-memorization/",
        click="the file of pre-computed estimates for CIFAR-100 (cifar100_infl_matrix.npz): this is the page that RUM's page names for CIFAR-100",
        file="cifar100_infl_matrix.npz",
        holds="tr_mem and tr_labels (50000 each, by row of the release), tt_labels, and influence class by class, which is never read",
        dataset="cifar100",
        count=50_000,
    ),
}


def score_place(name: str, root: Path) -> Path:
    """Where the scores lie below the data root, with whatever ending; where to put them, if they are not there."""
    wanted = root / "scores" / SCORES[name].file
    others = sorted(path for path in wanted.parent.glob(f"{wanted.stem}.*") if path.is_file())
    return wanted if wanted.is_file() or not others else others[0]


def tell_scores(name: str, root: Path, read: Callable[[Path, int], str], say: Callable[[str], None]) -> None:
    """Say all there is to say of a published file of scores; ``read`` says what is in a file that should hold so many, or raises ``InputError``.

    Raises ``InputError`` where the file is not there, or is not what it should be.
    """
    about, place = SCORES[name], score_place(name, root)
    say(f"{name}: memorisation scores of {about.dataset}, published without a checksum, so nothing is downloaded")
    say(f"  from   {about.address}")
    say(f"  take   {about.click}")
    say(f"  holds  {about.holds}")
    say(f"  put at {place}")
    say(f'\nthen, in a study of {about.dataset}:\n\n[[scores]]\nname = "file"\npath = {json.dumps(str(place))}\n')
    say('[forget]\nname = "by_score"\nscore = "file"\nband = "mix"    # or low, mid, high\ncount = 3000\n')
    if not place.is_file():
        raise InputError(f"{name} is not there: there is no file {place}; get it by hand from {about.address} as said above, and run this again to check it")
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    say(f"{place} is there: {place.stat().st_size} bytes, sha256 {found}")
    say(f"it reads well: {read(place, about.count)}")
