"""Where webhooks may go, and how they are signed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

import pytest

from app.domain.errors import StartRefused, WebhookRefused
from app.domain.webhooks import WebhookRules, acceptable, backoff_s, parsed_networks, parsed_targets, signature
from app.settings import Settings
from app.webhook_wiring import webhook_rules

RULES = WebhookRules(parsed_targets("hooks.example.com, https://ci.example.com:8443/jetforge, http://[fd00::1]/in/"))


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://HOOKS.example.com:443/any/where?token=a%20b",
        "https://ci.example.com:8443/jetforge",
        "https://ci.example.com:8443/jetforge/jobs",
        "https://ci.example.com:8443/jetforge?x=1",
        "http://[fd00::1]/in/",
    ],
)
def test_a_url_that_begins_like_a_target_is_allowed(url: str) -> None:
    assert RULES.checked(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com",  # a host stands for https
        "https://hooks.example.com.evil.example",
        "https://hooks.example.com@evil.example/",
        "https://evil.example\\@hooks.example.com/",
        "https://evil.example#@hooks.example.com/",
        "https://hooks.example.com:444/",
        "https://hooks.example.com:99999/",
        "https://ci.example.com:8443/jetforge2",
        "https://ci.example.com:8443/jetforge/../admin",
        "https://ci.example.com:8443/jetforge/%2e%2e/admin",
        "https://hooks.example.com/\r\nX-Evil: 1",
        "https://hooks.example.com/ ",
        "https://hooks.example.com/ä",
        "https://ho\u2044oks.example.com/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "hooks.example.com",
        "https://hooks.example.com/" + "x" * 2000,
    ],
)
def test_any_other_is_refused(url: str) -> None:
    with pytest.raises(WebhookRefused):
        RULES.checked(url)


def test_a_job_may_name_a_webhook_take_the_default_or_have_none() -> None:
    rules = WebhookRules(RULES.targets, (), "https://hooks.example.com/all")

    assert rules.checked(None) == "https://hooks.example.com/all"
    assert rules.checked("https://hooks.example.com/mine") == "https://hooks.example.com/mine"
    assert rules.checked("") is None
    assert RULES.checked(None) is None


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::", "2001::1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not RULES.allows(ipaddress.ip_address(address))


def test_a_public_address_is_allowed_and_another_where_the_owner_says_so() -> None:
    rules = WebhookRules(RULES.targets, parsed_networks("192.168.1.0/24, fd00::/8"))

    assert RULES.allows(ipaddress.ip_address("93.184.215.14"))
    assert RULES.allows(ipaddress.ip_address("2606:2800:21f:cb07::1"))
    assert acceptable(["10.0.0.1", "192.168.1.7"], rules) == "192.168.1.7"
    assert acceptable(["::ffff:192.168.1.7"], rules) == "::ffff:192.168.1.7"
    assert acceptable(["fe80::1%eth0", "192.168.2.7"], rules) is None


def test_the_signature_covers_the_time_and_the_body() -> None:
    expected = hmac.new(b"secret", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()

    assert signature("secret", 1_700_000_000, b'{"a":1}') == f"t=1700000000,v1={expected}"


def test_attempts_come_further_and_further_apart_up_to_an_hour() -> None:
    assert [backoff_s(attempts) for attempts in (1, 2, 3, 6, 50)] == [5, 20, 80, 3600, 3600]


@pytest.mark.parametrize(
    "settings",
    [
        {"webhook_targets": "https://a.example"},
        {"webhook_targets": "https://a.example", "webhook_secret": "short"},
        {"webhook_targets": "https://a b", "webhook_secret": "x" * 16},
        {"webhook_networks": "10.0.0.0/99"},
        {"webhook_url": "https://a.example"},
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(settings: dict[str, str]) -> None:
    with pytest.raises(StartRefused):
        webhook_rules(Settings(**settings))


def test_the_secret_is_not_shown_with_the_settings() -> None:
    assert "0123456789abcdef" not in repr(Settings(webhook_secret="0123456789abcdef"))
