"""Settings: file, environment, defaults, refusals; where a process logs."""

import json
import logging
from pathlib import Path

import pytest

from cumulet import logs
from cumulet.compose import build_drivers
from cumulet.settings import Settings, SettingsError, load


def test_the_environment_wins_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "cumulet.toml"
    file.write_text('[api]\nport = 1111\nregion = "Here"\n[network.bridge_mappings]\nphysnet = "br-x"\n')
    environment = {"CUMULET_API_PORT": "2222", "CUMULET_HOST_ROLES": '["network"]', "CUMULET_DATABASE_DURABLE": "false"}
    settings = load(file, environment)
    assert (settings.api.port, settings.api.region, settings.api.bind) == (2222, "Here", "127.0.0.1")
    assert settings.host.roles == ["network"]
    assert settings.database.durable is False
    assert settings.network.bridge_mappings == {"physnet": "br-x"}
    assert settings.database_url == "sqlite:////var/lib/cumulet/cumulet.db"
    assert settings.public_url == "http://127.0.0.1:2222"


@pytest.mark.parametrize(
    "text",
    ["[api]\nprot = 1\n", '[api]\nport = "many"\n', "[nothing]\nx = 1\n", "[api\n", '[compute]\ndriver = "vmware"\n'],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cumulet.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"cumulet\.toml"):
        load(file, {})


def test_an_unknown_role_of_a_host_is_refused() -> None:
    settings = Settings()
    settings.host.roles = ["compute", "cooking"]
    with pytest.raises(SettingsError, match="cooking"):
        build_drivers(settings)


def test_log_lines_are_json_with_the_request(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.configure(tmp_path / "all.log")
        with logs.request("req-1"):
            logging.getLogger("cumulet.test").info("hello %s", "you")
        logging.getLogger("cumulet.test").info("bye")
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)
    first, second = [json.loads(line) for line in (tmp_path / "all.log").read_text().splitlines()]
    assert first["message"] == "hello you"
    assert first["request_id"] == "req-1"
    assert "request_id" not in second
    assert (tmp_path / "all.log").stat().st_mode & 0o007 == 0
