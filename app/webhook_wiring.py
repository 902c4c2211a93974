"""Webhooks from the settings: where they may go, and who sends them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from app.domain.errors import StartRefused, WebhookRefused
from app.domain.webhooks import SECRET_MIN, WebhookRules, parsed_networks, parsed_targets
from app.settings import Settings
from app.storage.database import Database
from app.storage.jobs import JobQueue
from app.storage.webhooks import Webhooks


@contextmanager
def webhooks_delivered(settings: Settings, database: Database) -> Iterator[None]:
    """Webhooks are sent for as long as the block lasts, if there are to be any."""
    rules = webhook_rules(settings)
    if not rules.targets:
        yield
        return
    from app.courier import Courier  # brings an HTTP client, which the server does not need

    courier = Courier(
        Webhooks(database),
        JobQueue(database),
        rules,
        device=settings.device_name or socket.gethostname(),
        secret=settings.webhook_secret,
        attempts_max=settings.webhook_attempts,
        timeout_s=settings.webhook_timeout_s,
    )
    courier.start()
    try:
        yield
    finally:
        courier.stop()


def webhook_rules(settings: Settings) -> WebhookRules:
    """Where webhooks may go.

    Raises:
        StartRefused: the settings contradict each other, or cannot be read.
    """
    try:
        targets, networks = parsed_targets(settings.webhook_targets), parsed_networks(settings.webhook_networks)
        rules = WebhookRules(targets, networks, settings.webhook_url)
        rules.checked(None)
    except (WebhookRefused, ValueError) as error:
        raise StartRefused(
            f"The settings of webhooks cannot be used: {error}",
            hint="webhook_targets are hosts or URLs, webhook_networks are like 10.0.0.0/8, webhook_url begins like one"
            " of the targets.",
        ) from error
    if targets and len(settings.webhook_secret) < SECRET_MIN:
        raise StartRefused(
            f"webhook_secret has {len(settings.webhook_secret)} characters; webhooks need one of {SECRET_MIN} or more.",
            hint="Make one: openssl rand -hex 32.",
        )
    return rules
