"""Runs many independent jobs: in this process, in others on this machine, on a Ray cluster, on Slurm.

What comes out does not depend on which. ``jobs`` says what a job and an engine are; every other module here is one engine, and
none but ``local`` is imported before it is asked for.
"""

from unlearnlab.engine.jobs import Engine, Job, WorkerError, usable_cores
from unlearnlab.engine.local import Local

__all__ = ["Engine", "Job", "Local", "WorkerError", "usable_cores"]
