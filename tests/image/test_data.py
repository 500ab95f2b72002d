"""Image data: upload, download, stage, import, signed URLs, and what a crash leaves."""

import hashlib
import os
import random
import struct
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cumulet.agent.contract import SnapshotServerResult
from cumulet.kernel.context import system_context
from cumulet.kernel.errors import CloudError
from cumulet.services.image import store
from cumulet.services.image.public import ImageService, ImageSettings
from cumulet.services.image.reconcilers.files import reconcile_files
from tests.image.conftest import ADMIN

DATA = random.Random(3).randbytes(3_000_000)


def test_data_comes_back_as_it_went_in(api, service):
    image = api.image()["id"]
    assert api("GET", f"/v2/images/{image}/file").status_code == 204
    assert api.upload(image, DATA).status_code == 204
    body = api.show(image)
    assert body["status"] == "active"
    assert body["size"] == body["virtual_size"] == len(DATA)
    assert body["checksum"] == hashlib.md5(DATA).hexdigest()
    assert (body["os_hash_algo"], body["os_hash_value"]) == ("sha512", hashlib.sha512(DATA).hexdigest())
    got = api("GET", f"/v2/images/{image}/file")
    assert got.status_code == 200
    assert got.content == DATA
    assert got.headers["content-md5"] == body["checksum"]
    assert got.headers["content-length"] == str(len(DATA))
    assert api.upload(image, DATA).status_code == 409
    assert api("DELETE", f"/v2/images/{image}").status_code == 204
    assert service.files.listing() == {"images": [], "staging": [], "partial": []}


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=0-9", DATA[:10]), ("bytes=5-", DATA[5:]), ("bytes=-7", DATA[-7:]), ("bytes=10-99999999", DATA[10:])],
)
def test_ranges(api, header, part):
    image = api.image()["id"]
    api.upload(image, DATA)
    got = api("GET", f"/v2/images/{image}/file", headers={"Range": header})
    assert got.status_code == 206
    assert got.content == part
    assert got.headers["content-range"].endswith(f"/{len(DATA)}")


@pytest.mark.parametrize("header", ["bytes=9-5", "bytes=99999999-", "bytes=-", "lines=1-2"])
def test_ranges_that_cannot_be(api, header):
    image = api.image()["id"]
    api.upload(image, DATA)
    assert api("GET", f"/v2/images/{image}/file", headers={"Range": header}).status_code == 416


def test_what_upload_refuses(api):
    bare = api("POST", "/v2/images", json={"name": "no formats"}).json()["id"]
    assert api.upload(bare, DATA).status_code == 400
    image = api.image()["id"]
    assert api.upload(image, DATA, headers={"Content-Type": "text/plain"}).status_code == 415
    assert api.upload(image, DATA, headers={"x-openstack-image-size": "12"}).status_code == 400
    assert api.show(image)["status"] == "queued"
    assert api.upload("nothing", DATA).status_code == 404
    assert api.upload(image, DATA).status_code == 204


def test_a_file_that_lies_about_its_format_is_refused(api, service):
    image = api.image(disk_format="qcow2")["id"]
    assert api.upload(image, DATA).status_code == 415
    backed = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, 112, 6, 16, 1 << 20).ljust(112, b"\0") + b"/etc/passwd"
    assert api.upload(image, backed.ljust(65536, b"\0")).status_code == 415
    assert api.show(image)["status"] == "queued"
    assert service.files.listing() == {"images": [], "staging": [], "partial": []}


class TestLimits:
    @pytest.fixture
    def settings(self):
        return ImageSettings(size_cap_bytes=4_000_000, project_quota_bytes=5_000_000, project_quota_images=2)

    def test_size_cap_and_quotas(self, api):
        image = api.image()["id"]
        assert api.upload(image, b"x" * 4_000_001).status_code == 413
        assert api.upload(image, iter_of(b"x" * 4_000_001)).status_code == 413
        assert api.show(image)["status"] == "queued"
        assert api.upload(image, DATA).status_code == 204
        second = api.image()["id"]
        assert api.upload(second, DATA).status_code == 413
        assert api("POST", "/v2/images", json={}).status_code == 413
        assert api("GET", "/v2/info/usage").json()["usage"]["image_count_total"] == {"limit": 2, "usage": 2}


async def iter_of(data):
    yield data


def test_stage_and_import(api, service):
    image = api.image()["id"]
    request = {"method": {"name": "glance-direct"}}
    assert api("POST", f"/v2/images/{image}/import", json=request).status_code == 409
    assert api.upload(image, DATA, place="stage").status_code == 204
    assert api.show(image)["status"] == "uploading"
    assert api.upload(image, DATA).status_code == 409
    assert api("POST", f"/v2/images/{image}/import", json={"method": {"name": "web-download"}}).status_code == 400
    assert api("POST", f"/v2/images/{image}/import", json={}).status_code == 400
    assert api("POST", f"/v2/images/{image}/import", json=request).status_code == 202
    body = api.show(image)
    assert body["status"] == "active"
    assert body["os_hash_value"] == hashlib.sha512(DATA).hexdigest()
    assert api("GET", f"/v2/images/{image}/file").content == DATA
    tasks = api("GET", f"/v2/images/{image}/tasks").json()["tasks"]
    assert [(task["type"], task["status"]) for task in tasks] == [("api_image_import", "success")]
    assert api("POST", f"/v2/images/{image}/import", json=request).status_code == 409
    assert api("GET", f"/v2/tasks/{tasks[0]['id']}", token=ADMIN).status_code == 200
    assert service.files.listing()["staging"] == []


def test_import_of_a_lie_fails_its_task(api):
    image = api.image(disk_format="vmdk")["id"]
    api.upload(image, DATA, place="stage")
    assert api("POST", f"/v2/images/{image}/import", json={"method": {"name": "glance-direct"}}).status_code == 202
    assert api.show(image)["status"] == "queued"
    assert api("GET", f"/v2/images/{image}/tasks").json()["tasks"][0]["status"] == "failure"


def test_deactivated_images_are_not_downloaded(api):
    image = api.image()["id"]
    assert api("POST", f"/v2/images/{image}/actions/deactivate").status_code == 403
    api.upload(image, DATA)
    assert api("POST", f"/v2/images/{image}/actions/deactivate").status_code == 204
    assert api("POST", f"/v2/images/{image}/actions/deactivate").status_code == 204
    assert api("GET", f"/v2/images/{image}/file").status_code == 403
    assert api("GET", f"/v2/images/{image}/file", token=ADMIN).status_code == 200
    assert api("POST", f"/v2/images/{image}/actions/reactivate").status_code == 204
    assert api("GET", f"/v2/images/{image}/file").status_code == 200


def test_an_image_deleted_during_its_upload_leaves_nothing(api, service: ImageService):
    image = api.image()["id"]
    row = service.db.read(lambda tx: store.image(tx, image))

    def chunks():
        yield DATA
        service.db.write(lambda tx: service.delete(tx, store.image(tx, image)))

    with pytest.raises(Exception, match="deleted"):
        service.upload(row, chunks(), None)
    assert service.files.listing() == {"images": [], "staging": [], "partial": []}


def test_two_uploads_of_one_image_do_not_mix(api, service: ImageService):
    image = api.image()["id"]
    row = service.db.read(lambda tx: store.image(tx, image))
    results = []

    def upload(data):
        try:
            service.upload(row, [data], None)
            results.append("done")
        except CloudError as error:
            results.append(type(error).__name__)

    threads = [threading.Thread(target=upload, args=(data,)) for data in (b"a" * 1000, b"b" * 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["Conflict", "done"]


# -- agents ----------------------------------------------------------------------------------------------------


def test_agents_read_by_path_or_by_signed_url(api, service: ImageService):
    image = api.image()["id"]
    api.upload(image, DATA)
    row = service.db.read(lambda tx: service.get(tx, system_context("test"), image))
    here = service.source(row, "here")
    assert (here.url, Path(here.path).read_bytes()) == (None, DATA)
    there = service.source(row, "there")
    assert there.path is None
    link = urlsplit(there.url)
    path = link.path.removeprefix("/image") + "?" + link.query
    got = api("GET", path, token=None)
    assert got.content == DATA
    assert api("GET", path.replace("expires=1", "expires=2"), token=None).status_code == 403
    assert api("GET", path.replace(image, "0" * 36), token=None).status_code == 403
    assert api("PUT", path, token=None, content=b"").status_code == 403
    assert api("GET", f"/signed/{image}", token=None).status_code == 403


@pytest.mark.parametrize("host", ["here", "there"])
def test_agents_hand_in_a_snapshot(api, service: ImageService, host):
    ctx = system_context("test")
    image = service.db.write(
        lambda tx: service.create_snapshot_image(tx, ctx, "snap", {"base": "x"}, disk_format="raw")
    )
    target = service.db.write(lambda tx: service.upload_target(tx, image, host))
    assert service.db.write(lambda tx: service.upload_target(tx, image, host)) == target or host == "there"
    assert api.show(image, token=ADMIN)["status"] == "saving"
    if host == "here":
        with open(target.path, "wb") as file:
            file.write(DATA)
    else:
        link = urlsplit(target.url)
        sent = api("PUT", f"{link.path.removeprefix('/image')}?{link.query}", token=None, content=DATA)
        assert sent.json()["sha512"] == hashlib.sha512(DATA).hexdigest()
    result = SnapshotServerResult(
        size=len(DATA), sha512=hashlib.sha512(DATA).hexdigest(), md5="0" * 32, virtual_size_bytes=len(DATA)
    )
    assert service.db.write(lambda tx: service.activate(tx, image, result))
    assert service.db.write(lambda tx: service.activate(tx, image, result))
    assert api.show(image, token=ADMIN)["status"] == "active"
    assert api("GET", f"/v2/images/{image}/file", token=ADMIN).content == DATA
    service.db.write(lambda tx: service.discard(tx, image))
    service.db.write(lambda tx: service.discard(tx, image))
    assert service.files.listing()["images"] == []


# -- after a crash ------------------------------------------------------------------------------------------------


def test_what_a_killed_upload_left_is_swept(api, service: ImageService):
    image = api.image()["id"]
    row = service.db.read(lambda tx: store.image(tx, image))
    service.process = service.process.rpartition(":")[0] + ":1"  # a process that is no more
    _, upload_id = service._begin(row, "saving")
    partial = service.files.partial(image, upload_id)
    partial.write_bytes(b"half")
    stray = service.files.path("00000000-0000-0000-0000-000000000000")
    stray.write_bytes(b"x")
    for path in (partial, stray):
        os.utime(path, (1, 1))
    assert reconcile_files(service) == "1 uploads freed, 2 files removed"
    assert api.show(image)["status"] == "queued"
    assert service.files.listing() == {"images": [], "staging": [], "partial": []}
    assert reconcile_files(service) == "0 uploads freed, 0 files removed"


def test_the_sweep_leaves_what_is_in_use(api, service: ImageService):
    active, staged = api.image()["id"], api.image()["id"]
    api.upload(active, DATA)
    api.upload(staged, DATA, place="stage")
    for path in (service.files.path(active), service.files.path(staged, "staging")):
        os.utime(path, (1, 1))
    assert reconcile_files(service) == "0 uploads freed, 0 files removed"
    assert api.show(staged)["status"] == "uploading"
