# ruff: noqa: B023 - what is made in a loop is called in the same round
"""Changes of images asked for at once: what comes second sees what came first."""

import json
from typing import Any

from tests.support.at_once import at_once, rounds, statuses
from tests.support.cloud import Answer, Cloud, unique

OCTETS = {"content-type": "application/octet-stream"}
PATCH = {"content-type": "application/openstack-images-v2.1-json-patch"}


class Images:
    def __init__(self, cloud: Cloud) -> None:
        self.api = cloud.api("demo")

    def create(self, **more: Any) -> str:
        body = {"name": unique("image"), "disk_format": "raw", "container_format": "bare", **more}
        made = self.api.post("image", "/images", body)
        assert made.status == 201, made.text
        return str(made["id"])

    def show(self, image: str) -> Answer:
        return self.api.get("image", f"/images/{image}")

    def put(self, image: str, data: bytes, what: str = "file") -> Answer:
        return self.api.request("PUT", "image", f"/images/{image}/{what}", data=data, headers=OCTETS)

    def change(self, image: str, op: str, name: str, value: Any) -> Answer:
        data = json.dumps([{"op": op, "path": f"/{name}", "value": value}])
        return self.api.request("PATCH", "image", f"/images/{image}", data=data, headers=PATCH)

    def delete(self, image: str) -> Answer:
        return self.api.delete("image", f"/images/{image}")


def test_data_comes_once(cloud: Cloud) -> None:
    images = Images(cloud)
    for _ in rounds(cloud):
        for what in ("file", "stage"):
            image = images.create()
            answers = at_once(
                lambda image=image: images.put(image, b"a" * 512),
                lambda image=image: images.put(image, b"b" * 512, what),
            )
            assert sorted(statuses(answers)) == [204, 409]
            assert images.delete(image).status == 204


def test_changes_of_all_are_kept(cloud: Cloud) -> None:
    images = Images(cloud)
    for _ in rounds(cloud):
        image = images.create()
        answers = at_once(
            lambda: images.change(image, "add", "one", "1"),
            lambda: images.change(image, "add", "two", "2"),
            lambda: images.api.put("image", f"/images/{image}/tags/red"),
            lambda: images.api.put("image", f"/images/{image}/tags/blue"),
        )
        assert statuses(answers) == [200, 200, 204, 204]
        found = images.show(image)
        assert (found["one"], found["two"], set(found["tags"])) == ("1", "2", {"red", "blue"})
        images.delete(image)


def test_what_is_protected_stays(cloud: Cloud) -> None:
    images = Images(cloud)
    for _ in rounds(cloud):
        image = images.create()
        gone, changed = at_once(
            lambda: images.delete(image), lambda: images.change(image, "replace", "protected", True)
        )
        assert statuses([gone, changed]) in ([204, 404], [403, 200])
        if changed.status == 200:
            assert images.show(image)["protected"] is True
            images.change(image, "replace", "protected", False)
            images.delete(image)


def test_data_is_what_its_format_says(cloud: Cloud) -> None:
    """The format that the data is looked at in is the one that the image has."""
    images = Images(cloud)
    for _ in rounds(cloud):
        image = images.create()
        sent, changed = at_once(
            lambda: images.put(image, b"\0" * 512), lambda: images.change(image, "replace", "disk_format", "qcow2")
        )
        found = images.show(image)
        assert max(sent.status, changed.status) < 500
        assert (found["status"], found["disk_format"]) in (("active", "raw"), ("queued", "qcow2"))
        images.delete(image)


def test_a_member_comes_once(cloud: Cloud) -> None:
    images = Images(cloud)
    other = cloud.api("other").project_id
    for _ in rounds(cloud):
        image = images.create(visibility="shared")
        path = f"/images/{image}/members"
        answers = at_once(*[lambda: images.api.post("image", path, {"member": other})] * 2)
        assert sorted(statuses(answers)) == [200, 409]
        images.api.delete("image", f"{path}/{other}")
        gone, made = at_once(lambda: images.delete(image), lambda: images.api.post("image", path, {"member": other}))
        assert statuses([gone, made]) in ([204, 404], [204, 200])
        assert _members_left(cloud, image) == 0


def _members_left(cloud: Cloud, image: str) -> int:
    from cumulet.services.image import store

    return len(cloud.control.db.read(lambda tx: store.members(tx, image)))


def test_an_id_is_taken_once(cloud: Cloud) -> None:
    from cumulet.kernel.ids import new_uuid

    images = Images(cloud)
    for _ in rounds(cloud):
        image = new_uuid()
        answers = at_once(*[lambda: images.api.post("image", "/images", {"id": image, "name": "x"})] * 2)
        assert sorted(statuses(answers)) == [201, 409]
        images.delete(image)


def test_staged_data_is_imported_once(cloud: Cloud) -> None:
    images = Images(cloud)
    for _ in rounds(cloud):
        image = images.create()
        assert images.put(image, b"\0" * 512, "stage").status == 204
        body = {"method": {"name": "glance-direct"}}
        answers = at_once(
            *[lambda: images.api.post("image", f"/images/{image}/import", body)] * 2, lambda: images.delete(image)
        )
        assert answers[2].status == 204
        assert {answer.status for answer in answers[:2]} <= {202, 404, 409}
        assert images.show(image).status == 404
