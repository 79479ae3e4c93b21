"""The requests that a node Job sends to the API server: its stages ``claim`` and ``label``.

``test_requests`` holds them, and ``scripts/bench-dispatcher`` adds them to those of the dispatcher. The other
stages have no credentials.
"""

FRESH_INSTALL = {
    "claim": ("PATCH",),
    "label": ("GET", "PATCH", "GET", "POST"),
}
"""An install on a new node, whose kubelet reports the handlers when ``label`` begins. The second GET of
``label`` proves that the labels have stayed. The POST is the Event."""

UPGRADE = {
    "claim": ("GET", "PATCH"),
    "label": ("GET", "PATCH", "POST"),
}
"""An install of another version of Kata on a node that serves. Its labels do not change."""

NOTHING_TO_DO = {
    "claim": ("GET",),
    "label": ("GET", "POST"),
}
"""The same install again."""


def count(job: dict[str, tuple[str, ...]]) -> int:
    """Return the number of requests of all stages."""
    return sum(map(len, job.values()))
