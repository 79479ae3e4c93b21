"""The deadline of a run, which is to end before the program that waits for it gives up."""

from __future__ import annotations

import logging
import time
from datetime import datetime

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.template import Owner

log = logging.getLogger(__name__)


def set_deadline(api: ApiClient, config: Config, owner: Owner | None) -> None:
    """Let the run end at its deadline, if it has one. Raises :class:`KubeError`.

    The time counts from the creation of the Job ``owner``, because helm waits from then on. Its Pod may have
    waited for its image, or may replace another one.
    """
    if not config.deadline:
        return
    job = Jobs(api, config.namespace).get(owner.name) if owner else None
    created = job.metadata.creation_timestamp if job else None
    passed = max(0.0, time.time() - datetime.fromisoformat(created).timestamp()) if created else 0.0
    left = config.deadline - passed
    log.info("this run ends in %.0f s, at the deadline of %d s", max(0.0, left), config.deadline)
    api.stop.set_deadline(left, f"the deadline of {config.deadline} s has passed")
