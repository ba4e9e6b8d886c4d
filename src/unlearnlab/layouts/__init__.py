"""Folders of logits: what anyone's models said of the same images, read from disk and written there; no model is needed (docs/logits.md)."""

from unlearnlab.layouts.ensembles import Ensemble, Folder, accuracies
from unlearnlab.layouts.fwp import write_fwp
from unlearnlab.layouts.plain import write_plain
from unlearnlab.layouts.reading import read
from unlearnlab.layouts.writing import check_free, check_outside

__all__ = ["Ensemble", "Folder", "accuracies", "check_free", "check_outside", "read", "write_fwp", "write_plain"]
