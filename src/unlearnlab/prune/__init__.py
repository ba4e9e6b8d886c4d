"""Prunings: how dense models are made sparse and trained again. One scheme, one file."""

from unlearnlab.spec import ALIASES

ALIASES["pruning"] = {"OMP": "omp", "IMP": "imp", "rewind_lt": "imp", "SynFlow": "synflow"}
