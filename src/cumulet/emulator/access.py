"""How clients get into a cloud: its accounts, and what their files and environments say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REGION = "RegionOne"


@dataclass(frozen=True)
class Account:
    """A user with one role in one project, all in the default domain."""

    name: str
    project: str
    role: str = "member"
    password: str = "secret"


ACCOUNTS = (
    Account("admin", "admin", "admin"),
    Account("demo", "demo"),
    Account("alt_demo", "alt_demo"),
    Account("reader", "demo", "reader"),
)


def auth(url: str, account: Account) -> dict[str, str]:
    return {
        "auth_url": f"{url}/identity/v3",
        "username": account.name,
        "password": account.password,
        "project_name": account.project,
        "user_domain_id": "default",
        "project_domain_id": "default",
    }


def environment(url: str, account: Account) -> dict[str, str]:
    """The ``OS_…`` variables that every OpenStack client reads."""
    return {
        **{f"OS_{name.upper()}": value for name, value in auth(url, account).items()},
        "OS_IDENTITY_API_VERSION": "3",
        "OS_REGION_NAME": REGION,
    }


def cloud_name(account: Account) -> str:
    """``emulator`` is the ordinary user, ``emulator-admin`` and the like are the others."""
    return "emulator" if account.name == "demo" else f"emulator-{account.name.replace('_', '-')}"


def clouds(url: str, accounts: Mapping[str, Account]) -> dict[str, Any]:
    """The content of a clouds.yaml with an entry for each account."""
    entries = {
        cloud_name(account): {"auth": auth(url, account), "region_name": REGION, "identity_api_version": 3}
        for account in accounts.values()
    }
    return {"clouds": entries}


def clouds_yaml(url: str, accounts: Mapping[str, Account]) -> str:
    """JSON, which is YAML: nothing is to be imported to write it, and nothing in it needs quoting."""
    import json

    return json.dumps(clouds(url, accounts), indent=2) + "\n"


def write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def connect(url: str, account: Account) -> Any:
    """An openstacksdk connection (the package ``openstacksdk`` must be installed)."""
    import openstack

    return openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth=auth(url, account),
        region_name=REGION,
        compute_default_microversion=None,
    )
