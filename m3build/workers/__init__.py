"""Work spread over processes, none of which the build depends on.

``pool`` hands tasks to worker processes and gives their results in order; ``process`` is what runs in them;
``frames`` is how the two talk.
"""

from __future__ import annotations

from m3build.workers.pool import Death, Job, Tell, WorkerPool, default_workers

__all__ = ["Death", "Job", "Tell", "WorkerPool", "default_workers"]
