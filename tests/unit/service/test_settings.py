from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.sections import outward_url
from bellbuoy.service.settings import Settings, known_keys, load, with_overrides


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_empty_directory_runs() -> None:
    settings = load()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8470)
    assert settings.database_path == Path("bellbuoy-data/bellbuoy.db")


def test_the_environment_wins_over_the_file_and_options_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path / "x.toml", '[server]\nport = 1\nhost = "127.0.0.2"\n[providers.smtp]\nfrom = "a@b.c"\n')
    monkeypatch.setenv("BELLBUOY_SERVER__PORT", "2")
    monkeypatch.setenv("BELLBUOY_PROVIDERS__SMS__FROM", "+15550001")
    assert load(config).server.port == 2
    assert load(config, {"server": {"port": 3}}).server.port == 3
    assert load(config).server.host == "127.0.0.2"
    assert load(config).providers.smtp.sender == "a@b.c"
    assert load(config).providers.sms.sender == "+15550001"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1", "did you mean server.port?"),
        ("[sever]\nport = 1", "sever is no setting"),
        ("[providers.fcm]\nprojectid = 'x'", "did you mean providers.fcm.project_id?"),
        ("[breakers.fmc]\ntimeout_s = 1", "did you mean breakers.fcm?"),
        ("[server]\nport = 'many'", "server.port"),
        ("[server\n", "is not TOML"),
        ("[providers.fcm]\nbase_url = 'http://example.com'", "https"),
        ("[providers.fcm]\nbase_url = 'https://u:p@example.com'", "no user"),
        ("[alerts.slack]\nwebhook_url = 'http://hooks.example.com/x'", "https"),
        ("[alerts.jira]\nbase_url = 'http://jira.example.com'", "https"),
        ("[alerts]\nrunbook_base_url = 'ftp://example.com'", "https"),
        ("[ledger]\nurl = 'mysql://x'", "sqlite:///"),
        ("[cache]\nurl = 'memcached://x'", "memory://"),
        ("[cache]\nurl = 'redis://'", "redis://USER"),
        ("[providers.fcm]\nrate_per_s = 0", "providers.fcm.rate_per_s"),
        ("[queue]\nurl = 'kafka://x'", "amqp://HOST"),
        ("[queue]\nurl = 'amqp://u:p@one,,three/v'", "between every two commas"),
        ("[retry]\nmax_delay_s = 0.5", "retry.max_delay_s"),
        ("[breakers.fcm]\nfailure_threshold = 0", "breakers.fcm.failure_threshold"),
        ("[data]\nretention_days = 0.5", "data.retention_days"),
        ("[data]\nretention_days = -1", "data.retention_days"),
        ("[delivery]\nrelease_per_s = 1e-9", "delivery.release_per_s: Input should be greater than or equal to 1"),
        ("[delivery]\ndrain_s = inf", "delivery.drain_s"),
        ("[health]\ncalls_min = 2_000_000", "health.calls_min: Input should be less than or equal to 1000000"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        load(written(tmp_path / "x.toml", text))


@pytest.mark.parametrize("key", sorted(known_keys()), ids=".".join)
def test_every_number_has_a_least_and_a_most(key: tuple[str, ...]) -> None:
    for absurd in (-1e300, 1e300):
        document: Any = absurd
        for part in reversed(key):
            document = {part: document}
        with pytest.raises(ValidationError):
            Settings(**document)


def test_a_variable_that_names_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLBUOY_DATA__DRI", "/x")
    with pytest.raises(ConfigurationError, match="did you mean BELLBUOY_DATA__DIR"):
        load()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_overrides_keep_the_rest_and_secrets() -> None:
    settings = with_overrides(load(), {"providers": {"sms": {"auth_token": "s3cret", "account_sid": "AC"}}})
    assert settings.providers.sms.auth_token is not None
    assert settings.providers.sms.auth_token.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)
    again = with_overrides(settings, {"server": {"port": 9}})
    assert again.server.model_fields_set == {"port"}, "what nobody set stays so"
    assert again.providers.sms.auth_token is not None
    assert again.providers.sms.auth_token.get_secret_value() == "s3cret"


@pytest.mark.parametrize("url", ["https://example.com/", "http://127.0.0.1:1", "http://localhost:2", "http://[::1]:3"])
def test_urls_that_may_be_called(url: str) -> None:
    assert outward_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1", "ftp://example.com", "file:///etc/passwd", "http://127.1.example.com"]
)
def test_urls_that_may_not(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        outward_url(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_password_of_the_cache_is_not_shown(tmp_path: Path, scheme: str) -> None:
    settings = load(written(tmp_path / "x.toml", f"[cache]\nurl = '{scheme}://u:s3cret@cache.example.com:6379/2'"))
    assert settings.cache.server == f"{scheme}://u:s3cret@cache.example.com:6379/2"
    assert "s3cret" not in repr(settings)
    assert load(written(tmp_path / "y.toml", "")).cache.server is None


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/services/s3cret",
        "https://u:s3cret@hooks.example.com/services",
        "https://[s3cret/services",
        "https://s3cret\u2100.example.com/services",
        "s3cret",
    ],
)
def test_a_webhook_that_is_refused_is_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"alerts\.slack\.webhook_url") as caught:
        load(written(tmp_path / "x.toml", f"[alerts.slack]\nwebhook_url = '{url}'"))
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


def test_alerts_are_off_unless_they_are_set_and_their_secrets_are_not_shown(tmp_path: Path) -> None:
    text = """
        [alerts]
        runbook_base_url = "https://wiki.example.com/runbooks/"
        [alerts.slack]
        webhook_url = "https://hooks.example.com/services/s3cret/"
        [alerts.jira]
        base_url = "https://jira.example.com/"
        api_token = "s3cret"
    """
    alerts = load(written(tmp_path / "x.toml", text)).alerts
    assert alerts.runbook_base_url == "https://wiki.example.com/runbooks"
    assert alerts.slack.webhook_url is not None
    assert alerts.slack.webhook_url.get_secret_value() == "https://hooks.example.com/services/s3cret"
    assert alerts.jira.base_url == "https://jira.example.com"
    assert "s3cret" not in repr(alerts)
    empty = '[alerts.slack]\nwebhook_url = ""\n[alerts.jira]\nbase_url = ""'
    off = load(written(tmp_path / "y.toml", empty)).alerts
    assert (off.slack.webhook_url, off.jira.base_url) == (None, None)


@pytest.mark.parametrize(
    ("url", "second", "apart"),
    [
        ("file:///b/one", "file:///b/two", True),
        ("file:///b/one", "file:///b/one-more", True),
        ("file:///b", "s3://b", True),
        ("s3://one/b", "s3://two/b", True),
        ("s3://one/b", "s3://one/c", True),
        ("file:///b", "file:///b/", False),
        ("file:///b", "file:///b/two", False),
        ("file:///b/one", "file:///b", False),
        ("file:///b/one/../two", "file:///b/two", False),
        ("s3://one", "s3://one/b", False),
        ("s3://one/b/c", "s3://one/b", False),
    ],
)
def test_of_two_targets_neither_lies_in_the_other(tmp_path: Path, url: str, second: str, apart: bool) -> None:
    config = written(tmp_path / "x.toml", f'[backup]\nurl = "{url}"\nsecond_url = "{second}"\n')
    if apart:
        assert len(load(config).backup.targets) == 2
    else:
        with pytest.raises(ConfigurationError, match="neither may lie in the other"):
            load(config)


def test_keys_come_from_a_file_or_from_a_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        load(written(tmp_path / "x.toml", '[backup]\nkey_command = "vault get"\nkey_file = "keys"\n'))
    with pytest.raises(ConfigurationError, match="quotation"):
        load(written(tmp_path / "y.toml", '[backup]\nkey_command = "vault \'get"\n'))
