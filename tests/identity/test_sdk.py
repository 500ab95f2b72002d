"""The identity API through openstacksdk and the `openstack` client."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keystoneauth1.exceptions
import openstack.exceptions
import pytest
from tests.identity.conftest import Identity


def test_sdk_walks_through_everything(sdk: Callable[..., Any]) -> None:
    cloud = sdk()
    api = cloud.identity
    assert cloud.authorize()
    domain = api.create_domain(name="sdk-domain", description="d")
    assert api.find_domain("sdk-domain").id == domain.id
    project = api.create_project(name="sdk-project", domain_id=domain.id, tags=["a", "b"])
    child = api.create_project(name="sdk-child", domain_id=domain.id, parent_id=project.id)
    assert {p.name for p in api.projects(domain_id=domain.id)} == {"sdk-project", "sdk-child"}
    assert api.update_project(child, description="new").description == "new"
    user = api.create_user(name="sdk-user", domain_id=domain.id, password="pw-pw", email="a@b.c")
    assert api.get_user(user.id).email == "a@b.c"
    assert api.find_user("sdk-user", domain_id=domain.id).id == user.id
    group = api.create_group(name="sdk-group", domain_id=domain.id)
    api.add_user_to_group(user, group)
    assert api.check_user_in_group(user, group)
    assert [u.name for u in api.group_users(group)] == ["sdk-user"]
    api.remove_user_from_group(user, group)
    assert not api.check_user_in_group(user, group)
    role = api.create_role(name="sdk-role")
    api.assign_project_role_to_user(project, user, role)
    api.assign_domain_role_to_group(domain, group, role)
    assert api.validate_user_has_project_role(project, user, role)
    assert [a.role["id"] for a in api.role_assignments(user_id=user.id)] == [role.id]
    api.unassign_project_role_from_user(project, user, role)
    api.unassign_domain_role_from_group(domain, group, role)
    service = api.create_service(name="sdk-service", type="sdk-type")
    region = api.create_region(id="sdk-region")
    endpoint = api.create_endpoint(
        service_id=service.id, interface="public", url="http://x/%(project_id)s", region_id="sdk-region"
    )
    assert [e.id for e in api.endpoints(service_id=service.id)] == [endpoint.id]
    registered = api.create_registered_limit(service_id=service.id, resource_name="things", default_limit=3)
    limit = api.create_limit(
        service_id=service.id, resource_name="things", resource_limit=5, project_id=project.id, region_id=None
    )
    api.delete_limit(limit)
    api.delete_registered_limit(registered)
    api.delete_endpoint(endpoint)
    api.delete_region(region)
    api.delete_service(service)
    mine = cloud.current_user_id
    application = api.create_application_credential(mine, "sdk-app")
    assert application.secret
    assert [a.name for a in api.application_credentials(mine)] == ["sdk-app"]
    api.delete_application_credential(mine, application)
    credential = api.create_credential(user=mine, type="totp", blob="s3cret", project_id=None, user_id=mine)
    assert api.get_credential(credential).blob == "s3cret"
    api.delete_credential(credential)
    with pytest.raises(openstack.exceptions.ForbiddenException):
        api.delete_domain(domain, ignore_missing=False)
    api.delete_role(role)
    api.delete_project(child)
    api.update_domain(domain, is_enabled=False)
    api.delete_domain(domain)
    assert api.find_user("sdk-user", domain_id=domain.id) is None
    with pytest.raises(openstack.exceptions.NotFoundException):
        api.get_project(project.id)
    cloud.close()


def test_sdk_logs_in_with_an_application_credential(identity: Identity, sdk: Callable[..., Any]) -> None:
    demo = sdk("demo", "demo-pw")
    made = demo.identity.create_application_credential(demo.current_user_id, "login")
    app = openstack.connect(
        auth_type="v3applicationcredential",
        auth_url=identity.url,
        application_credential_id=made.id,
        application_credential_secret=made.secret,
    )
    assert app.current_project_id == identity.boot.demo_project_id
    with pytest.raises(openstack.exceptions.ForbiddenException):
        app.identity.create_application_credential(demo.current_user_id, "another")
    demo.identity.delete_application_credential(demo.current_user_id, made)
    with pytest.raises(keystoneauth1.exceptions.Unauthorized):
        app.identity.get_user(demo.current_user_id)
    demo.close()
    app.close()


def test_ordinary_users_are_refused(sdk: Callable[..., Any]) -> None:
    demo = sdk("demo", "demo-pw")
    for attempt in (
        lambda: list(demo.identity.users()),
        lambda: demo.identity.create_project(name="x"),
        lambda: demo.identity.get_user("0" * 32),
        lambda: demo.identity.create_role(name="x"),
        lambda: list(demo.identity.services()),
    ):
        with pytest.raises(openstack.exceptions.ForbiddenException):
            attempt()
    assert demo.identity.get_user(demo.current_user_id).name == "demo"
    demo.close()


@pytest.mark.clients
def test_the_openstack_client(identity: Identity, tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OS_")},
        "HOME": str(tmp_path),
        "OS_AUTH_URL": identity.url,
        "OS_USERNAME": "admin",
        "OS_PASSWORD": "admin-pw",
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
    }
    script = (
        "project create cli-p --tag x",
        "user create cli-u --project cli-p --password pw-pw --email a@b.c",
        "role add --user cli-u --project cli-p member",
        "role assignment list --names --user cli-u --effective",
        "user list --project cli-p",
        "group create cli-g",
        "group add user cli-g cli-u",
        "group contains user cli-g cli-u",
        "catalog list",
        "catalog show compute",
        "endpoint list --service identity",
        "implied role list",
        "token issue",
        "role remove --user cli-u --project cli-p member",
        "user set cli-u --disable",
        "user show cli-u",
        "project set cli-p --description changed",
        "project show cli-p --children",
        "domain list",
        "region list",
        "access rule list",
        "ec2 credentials create",
        "ec2 credentials list",
        "group delete cli-g",
        "user delete cli-u",
        "project delete cli-p",
    )
    client = Path(sys.executable).with_name("openstack")
    stdin = "\n".join(script) + "\n"
    done = subprocess.run([client], input=stdin, env=environment, capture_output=True, text=True, timeout=100)
    said = done.stdout + done.stderr
    assert "HTTP 4" not in said, said
    assert "HTTP 5" not in said, said
    assert "Error" not in done.stderr, said
    assert "cli-u@Default" in done.stdout
    assert identity.boot.admin_project_id in done.stdout
