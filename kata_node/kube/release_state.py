"""The ConfigMap with the state of a release: its name, and the keys that the dispatcher writes."""

from __future__ import annotations

STATE_PREFIX = "kata-deploy-state."
"""The beginning of its name. The name of the release follows."""

ROLLOUT_KEY, RECONCILE_KEY = "lastRollout", "lastReconcile"
"""Keys of its data. A run that only looks for nodes without Kata does not replace the record of the other."""
