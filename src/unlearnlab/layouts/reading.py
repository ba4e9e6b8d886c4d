"""Which layout a folder is in, and reading it."""

from __future__ import annotations

from pathlib import Path

from unlearnlab.layouts import fwp, plain, stored
from unlearnlab.layouts.ensembles import Folder, Listing, together
from unlearnlab.spec import InputError, suggest

EXPECTED = (
    f"{fwp.ORACLES} and folders with {fwp.APPROACH}, or oracles.npz (or .safetensors) beside a file for each approach,"
    " or a study's folder in a store (docs/logits.md)"
)


def read(folder: Path, approach: str | None = None) -> Folder:
    """Read a folder of logits in whichever layout it is; ``approach``: of the approaches only that one.

    Raises ``InputError`` for anything that does not fit, naming the file, what was found and what was expected.
    """
    try:
        listing = _listing(folder)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; give a folder that you may read") from error
    if not listing.approaches:
        raise InputError(f"{folder} holds oracles and no approach to compare with them; expected {EXPECTED}")
    if approach is not None and approach not in listing.approaches:
        known = sorted(listing.approaches)
        raise InputError(f"{folder} holds no approach '{approach}'{suggest(approach, known)} (it has: {', '.join(known)})")
    return together(folder, listing, approach)


def _listing(folder: Path) -> Listing:
    if not folder.is_dir():
        raise InputError(
            f"{folder} is a file; give the folder that it is in" if folder.exists() else f"there is no folder {folder}; give a folder of logits: {EXPECTED}"
        )
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    files = [name for name in names if Path(name).suffix in plain.ENDINGS]
    if not names:
        raise InputError(f"the folder {folder} is empty; expected {EXPECTED}")
    if fwp.ORACLES in names:
        if judges := [name for name in files if Path(name).stem in plain.ORACLES]:
            raise InputError(f"{folder} holds {fwp.ORACLES} and {judges[0]}, of two layouts; leave one of them, in a folder of its own")
        return fwp.listing(folder)
    if stored.INDEX in names:
        return stored.listing(folder)
    if files:
        return plain.listing(folder)
    if any((folder / name / plain.OURS).exists() for name in names):
        return plain.listing_of_folders(folder)
    some = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    if any((folder / name / fwp.APPROACH).exists() for name in names):
        raise InputError(
            f"{folder} has approaches and no oracles: {fwp.ORACLES} is missing (there are: {some}); add it, from models trained without the forgotten images"
        )
    raise InputError(f"{folder} holds no logits (there are: {some}); expected {EXPECTED}")
