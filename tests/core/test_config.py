"""Settings: where they come from, which source wins, and the errors for values that are not valid."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorhub.core.config import SETTINGS, HostPort, Origin, SettingKeywords, Settings, load_settings, mask_secrets
from actorhub.core.errors import ConfigurationError

TLS = {"tls_cert": "cert.pem", "tls_key": "key.pem", "tls_ca": "ca.pem"}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(
    overrides: dict[str, object] | None = None, environ: dict[str, str] | None = None, origin: Origin = "hub.connect"
) -> str:
    """Return the text of the error that these settings raise."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(overrides or {}, environ or {}, origin=origin)
    return caught.value.message


def test_without_any_source_the_documented_defaults_hold() -> None:
    """The defaults are a contract with users."""
    settings = load_settings({}, {})
    assert settings == Settings()
    assert settings.database_url is None
    assert settings.listen == settings.admin == HostPort("127.0.0.1", 7700)
    assert (settings.workers, settings.weight, settings.groups) == (1, 1.0, ())
    assert (settings.shards_per_group, settings.max_resident, settings.max_call_depth) == (300, 100_000, 32)
    assert (settings.max_message_bytes, settings.max_entity_id_bytes) == (4 * 1024 * 1024, 255)
    assert (settings.grace, settings.retention) == (timedelta(seconds=15), timedelta(days=1))


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    """For each setting, a source hides the sources below it."""
    file = tmp_path / "other.toml"
    file.write_text('workers = 2\nweight = 2.0\nnamespace = "from_file"\nretention = "2d"\n')
    environ = {"ACTORHUB_WORKERS": "3", "ACTORHUB_WEIGHT": "3"}
    settings = load_settings({"workers": "4"}, environ, file, origin="flag")
    assert (settings.workers, settings.weight, settings.namespace) == (4, 3.0, "from_file")
    assert (settings.retention, settings.grace) == (timedelta(days=2), timedelta(seconds=15))


def test_the_file_in_the_current_directory_is_read(tmp_path: Path) -> None:
    """`actorhub.toml` needs no flag."""
    (tmp_path / "actorhub.toml").write_text('groups = ["a", "b"]\ngateway = "one:1,two:2"\nhttp = "localhost:0"\n')
    settings = load_settings({}, {})
    assert settings.groups == ("a", "b")
    assert settings.gateway == (HostPort("one", 1), HostPort("two", 2))
    assert settings.http == HostPort("localhost", 0)


def test_a_file_named_by_the_environment_replaces_the_one_in_the_directory(tmp_path: Path) -> None:
    """The file of ACTORHUB_CONFIG replaces `actorhub.toml`, and must exist."""
    (tmp_path / "actorhub.toml").write_text("workers = 2")
    (tmp_path / "named.toml").write_text("workers = 5")
    assert load_settings({}, {"ACTORHUB_CONFIG": "named.toml"}).workers == 5
    assert refusal({}, {"ACTORHUB_CONFIG": "gone.toml"}) == "settings file gone.toml (ACTORHUB_CONFIG) does not exist"


def test_what_is_none_or_empty_counts_as_not_given() -> None:
    """Options that are passed without a value, and empty variables, leave the default."""
    settings = load_settings({"workers": None, "gateway": ()}, {"ACTORHUB_HTTP": ""})
    assert settings == Settings()


def test_every_setting_has_a_flag_a_variable_and_help() -> None:
    """The command line is made from the table, so the table must be complete."""
    assert tuple(SETTINGS) == Settings.__struct_fields__
    assert SETTINGS["database_url"].flag == "--database"
    assert SETTINGS["max_resident"].flag == "--max-resident"
    assert SETTINGS["tls_cert"].env == "ACTORHUB_TLS_CERT"
    for setting in SETTINGS.values():
        assert setting.help.endswith(".")
        assert setting.allowed
        if setting.default not in (None, ()):
            assert setting.parse(setting.default) == setting.default


def test_typed_keywords_are_taken_as_they_are() -> None:
    """`hub.connect` passes Python values, not text."""
    settings = load_settings(
        {"grace": timedelta(seconds=3), "listen": HostPort("::1", 0), "insecure": True, "tls_ca": None, "weight": 2}, {}
    )
    assert (settings.grace, settings.listen, settings.insecure) == (timedelta(seconds=3), HostPort("::1", 0), True)
    assert settings.weight == 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "0"),
        ("workers", "many"),
        ("workers", True),
        ("workers", 1.5),
        ("weight", "nan"),
        ("weight", "-1"),
        ("weight", "heavy"),
        ("groups", "a,,b"),
        ("groups", "a,a"),
        ("groups", "Ä"),
        ("groups", ["a", 3]),
        ("namespace", "Upper"),
        ("namespace", "a" * 32),
        ("namespace", "a;drop"),
        ("namespace", "good\n"),
        ("listen", "7700"),
        ("listen", ":7700"),
        ("listen", "127.0.0.1:99999"),
        ("listen", "::1:7700"),
        ("listen", "[nonsense]:1"),
        ("listen", "http://127.0.0.1:1"),
        ("advertise", "0.0.0.0:7700"),
        ("admin", "127.0.0.1:0"),
        ("gateway", "a:1,b"),
        ("insecure", "maybe"),
        ("grace", "soon"),
        ("grace", "-1s"),
        ("grace", -1),
        ("grace", 10**400),
        ("grace", "999999999999d"),
        ("retention", "0s"),
        ("max_message_bytes", "12"),
        ("max_entity_id_bytes", 5000),
        ("log_level", "loud"),
        ("log_format", 3),
        ("database_url", "mysql://localhost/db"),
        ("database_url", "localhost/db"),
        ("database_url", "postgresql://host:port/db"),
        ("database_url", "postgresql:db"),
        ("token", "two\nlines"),
        ("tls_cert", 3),
    ],
)
def test_a_wrong_value_names_the_setting_its_source_and_what_is_allowed(name: str, value: object) -> None:
    """The message alone is enough to find and correct the value."""
    text = refusal({name: value})
    assert text.startswith(f"{name} = ")
    assert f"(from hub.connect({name}=...))" in text
    assert text.endswith(f" is not valid: use {SETTINGS[name].allowed}")
    assert len(text) < 500


def test_the_source_of_a_wrong_value_is_named_for_every_source(tmp_path: Path) -> None:
    """The message names the flag, the keyword, the environment variable or the file."""
    assert "'x' (from flag --database)" in refusal({"database_url": "x"}, origin="flag")
    assert "(from hub.runner(workers=...))" in refusal({"workers": "x"}, origin="hub.runner")
    assert "(from environment ACTORHUB_WORKERS)" in refusal({}, {"ACTORHUB_WORKERS": "x"})
    (tmp_path / "actorhub.toml").write_text("workers = 0")
    assert "workers = 0 (from actorhub.toml key workers) is not valid" in refusal()


@pytest.mark.parametrize("origin", ["hub.connect", "hub.runner"])
def test_a_program_that_asks_for_workers_hears_that_only_the_command_starts_them(origin: Origin) -> None:
    """From the environment and the file they are for the command, and the program goes on without."""
    assert "run `actorhub serve MODULE:HUB --workers N`" in refusal({"workers": 2}, origin=origin)
    assert load_settings({"workers": 1}, {"ACTORHUB_WORKERS": "3"}, origin=origin).workers == 1
    assert load_settings({}, {"ACTORHUB_WORKERS": "3"}, origin=origin).workers == 3


def _keyword_of(type_: Any) -> set[Any]:  # noqa: ANN401
    """Return what the keyword of a setting of this type may be: the type itself, or the text that stands for it."""
    optional = set(get_args(type_)) if get_origin(type_) is UnionType else {type_}
    (plain,) = optional - {NoneType}
    if get_origin(plain) is tuple:
        item: Any = get_args(plain)[0]
        return {Sequence[str] if item is str else Sequence[item | str], NoneType}
    if get_origin(plain) is Literal:
        return {plain, NoneType}
    texts: dict[Any, set[type]] = {HostPort: {str}, Path: {str}, timedelta: {str, float}}
    return {plain, NoneType, *texts.get(plain, ())}


def test_the_keywords_for_type_checkers_are_the_settings() -> None:
    """Each setting has its keyword, in the same order, with its type: what no checker refuses, the table knows."""
    keywords = get_type_hints(SettingKeywords)
    types = get_type_hints(Settings)
    assert list(keywords) == list(SETTINGS)
    assert {name: set(get_args(keyword)) for name, keyword in keywords.items()} == {
        name: _keyword_of(types[name]) for name in SETTINGS
    }


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"workers": "3"}, TypeError, r"Settings: workers='3' must be a whole number"),
        ({"grace": 5}, TypeError, r"Settings: grace=5 must be a timedelta: write grace=timedelta\(seconds=5\)"),
        ({"groups": "a"}, TypeError, r"Settings: groups='a' must be a tuple of str"),
        ({"listen": "127.0.0.1:7700"}, TypeError, r"Settings: listen='127.0.0.1:7700' must be a HostPort"),
        ({"weight": 0.0}, ConfigurationError, r"weight = 0.0 \(from Settings\) is not valid: use a number from 0.001"),
        ({"shards_per_group": 0}, ConfigurationError, r"shards_per_group = 0 \(from Settings\) is not valid"),
    ],
)
def test_settings_that_a_test_makes_itself_are_checked_as_well(
    wrong: dict[str, Any], error: type[Exception], text: str
) -> None:
    """There, text does not stand for other types."""
    with pytest.raises(error, match=text):
        Settings(**wrong)


def test_an_unknown_name_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    """A misspelt setting is an error, instead of having no effect."""
    assert refusal({"databse_url": "x"}) == (
        "hub.connect(databse_url=...): unknown setting: did you mean 'database_url'?"
    )
    (tmp_path / "actorhub.toml").write_text("shards-per-group = 3")
    assert refusal() == "actorhub.toml: unknown setting 'shards-per-group': did you mean 'shards_per_group'?"
    (tmp_path / "actorhub.toml").write_text("zzz = 3")
    assert "unknown setting 'zzz': use one of database_url, listen" in refusal()


def test_a_file_that_cannot_be_read_as_toml_is_named(tmp_path: Path) -> None:
    """A broken, binary or unreadable file raises one clear error."""
    (tmp_path / "actorhub.toml").write_text("workers = = 3")
    assert "settings file actorhub.toml is not valid TOML" in refusal()
    (tmp_path / "actorhub.toml").write_bytes(b"\xff\xfe")
    assert "settings file actorhub.toml is not valid TOML" in refusal()
    (tmp_path / "directory").mkdir()
    assert "cannot be read: Is a directory" in refusal({}, {"ACTORHUB_CONFIG": "directory"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://ada:s3cret@db/x", "mysql://ada:***@db/x"),
        ("mysql://ada:s3cret:s3cret@s3cret@db/x", "mysql://ada:***@db/x"),
        ("ada:s3cret@db/x", "ada:***@db/x"),
        ("postgresql:/ada:s3cret@db/x", "postgresql:***@db/x"),
        ("mysql://db/x?user=ada&password=s3cret&a=b", "mysql://db/x?user=ada&password=***&a=b"),
        ("host=db password = s3cret user=ada", "host=db password = *** user=ada"),
    ],
)
def test_a_database_password_is_never_shown(url: str, shown: str) -> None:
    """Passwords show neither in errors nor in `repr`, however malformed the URL is."""
    text = refusal({"database_url": url})
    assert shown in text
    assert "s3cret" not in text


def test_repr_shows_no_secrets() -> None:
    """Settings can be logged without revealing secrets."""
    settings = load_settings({"database_url": "postgres://ada:s3cret@db/x", "token": "s3cret"}, {})
    assert settings.database_url == "postgres://ada:s3cret@db/x"
    assert settings.token == "s3cret"
    for text in (repr(settings), str(settings), f"{settings}"):
        assert "s3cret" not in text
        assert "token=***" in text
    assert "***" in refusal({"token": "s3\ncret"})
    assert "token=None" in repr(Settings())


@given(password=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=4, max_size=20))
def test_no_password_survives_masking(password: str) -> None:
    """Masking works for every password."""
    masked = mask_secrets(f"postgresql://ada:{password}@database.example/x")
    assert masked == "postgresql://ada:***@database.example/x"


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.168.0.1:1", "example.com:1"])
def test_listening_beyond_loopback_needs_mutual_tls_or_insecure(listen: str) -> None:
    """Nobody can open an unauthenticated port to the network by accident."""
    given_values: dict[str, object] = {"listen": listen, "advertise": "me:1"}
    assert "without mutual TLS" in refusal(given_values)
    assert load_settings({**given_values, "insecure": True}, {}).insecure
    assert load_settings({**given_values, **TLS}, {}).has_mutual_tls


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_nothing(listen: str) -> None:
    """The defaults need no further settings."""
    assert load_settings({"listen": listen}, {}).listen.is_loopback


def test_half_of_mutual_tls_is_refused() -> None:
    """Without the authority, the certificates of peers would not be checked."""
    text = refusal({"tls_cert": "cert.pem"}, {"ACTORHUB_TLS_KEY": "key.pem"})
    assert "tls_cert (from hub.connect(tls_cert=...)), tls_key (from environment ACTORHUB_TLS_KEY)" in text
    assert "missing: tls_ca" in text


def test_a_wildcard_listen_needs_an_address_to_advertise() -> None:
    """Peers cannot connect to 0.0.0.0."""
    text = refusal({"listen": "0.0.0.0:7700", "insecure": True})
    assert "advertise" in text
    assert "0.0.0.0:7700" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("15s", timedelta(seconds=15)),
        ("1.5m", timedelta(seconds=90)),
        ("2 h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("7", timedelta(seconds=7)),
        (0.25, timedelta(milliseconds=250)),
    ],
)
def test_durations_are_written_with_a_unit_or_in_seconds(text: object, expected: timedelta) -> None:
    """Durations are read from text and from numbers."""
    assert load_settings({"grace": text}, {}).grace == expected


@given(st.builds(HostPort, st.sampled_from(["localhost", "10.0.0.1", "::1", "a-b.example"]), st.integers(0, 65535)))
def test_an_address_survives_being_written(address: HostPort) -> None:
    """`parse` is the inverse of `str`."""
    assert HostPort.parse(str(address)) == address


def test_leases_with_another_way_for_a_lock_session_are_a_contradiction() -> None:
    """There is no lock session to go that way; both sources are named."""
    text = refusal({"locks": "lease"}, {"ACTORHUB_LOCK_DATABASE_URL": "postgresql://h/d"})
    assert "locks = 'lease' (from hub.connect(locks=...))" in text
    assert "lock_database_url (from environment ACTORHUB_LOCK_DATABASE_URL)" in text
    assert load_settings({"locks": "session", "lock_database_url": "postgresql://h/d"}, {}).locks == "session"
