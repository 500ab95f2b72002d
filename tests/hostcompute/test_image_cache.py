"""The host's image cache: checked, shared, crash-safe."""

import hashlib
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cumulet.agent.contract import ImageSource
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import ImageCache
from cumulet.guest import boot_sector, boot_sector_qcow2

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    cache = ImageCache(tmp_path / "cache")
    cache.start()
    return cache


def source(path: Path, form: str = "qcow2", data: bytes | None = None, /, **changes: object) -> ImageSource:
    data = boot_sector_qcow2() if data is None else data
    path.write_bytes(data)
    fields: dict[str, object] = {
        "image_id": "11111111-2222-3333-4444-555555555555",
        "disk_format": form,
        "size": len(data),
        "sha512": hashlib.sha512(data).hexdigest(),
        "path": str(path),
    }
    return ImageSource(**(fields | changes))  # type: ignore[arg-type]


def test_a_base_is_the_uncompressed_disk(cache: ImageCache, tmp_path: Path) -> None:
    made = cache.get(source(tmp_path / "image"))
    assert not made.hit
    assert made.virtual_size_bytes == 1 << 20
    assert made.path.read_bytes() == boot_sector()
    assert made.bytes < 1 << 18, "sparse"
    assert made.path.stat().st_mode & 0o777 == 0o644
    assert cache.get(source(tmp_path / "image")).hit
    assert [p.name for p in cache.directory.iterdir()] == [made.path.name]


def test_kernels_stay_as_they_are(cache: ImageCache, tmp_path: Path) -> None:
    made = cache.get(source(tmp_path / "kernel", "aki", b"kernel" * 1000))
    assert made.path.read_bytes() == b"kernel" * 1000


def test_a_raw_image_is_filled_up_to_whole_sectors(cache: ImageCache, tmp_path: Path) -> None:
    data = b"disk" * 100_001
    made = cache.get(source(tmp_path / "image", "raw", data))
    assert made.path.read_bytes() == data.ljust(782 * 512, b"\0")


@pytest.mark.parametrize(
    "changes,code",
    [
        ({"sha512": "0" * 128}, "image-invalid"),
        ({"size": 17}, "image-invalid"),
        ({"disk_format": "raw"}, "image-invalid"),
        ({"path": "/nonexistent/image"}, "image-fetch"),
        ({"path": None}, "image-gone"),
        ({"size": 1 << 60}, "no-space"),
    ],
)
def test_refusals_leave_nothing(cache: ImageCache, tmp_path: Path, changes: dict[str, object], code: str) -> None:
    with pytest.raises(DriverError) as caught:
        cache.get(source(tmp_path / "image", **changes))
    assert caught.value.code == code
    assert list(cache.directory.iterdir()) == []


def test_leftovers_go_at_start(cache: ImageCache) -> None:
    (cache.directory / ".part-x.raw").write_bytes(b"half")
    cache.start()
    assert list(cache.directory.iterdir()) == []


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, form: str, *arguments: object) -> None:
            asked.append(form % arguments)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_concurrent_requests_share_one_download(cache: ImageCache, tmp_path: Path, web: tuple[str, list[str]]) -> None:
    url, asked = web
    wanted = source(tmp_path / "image", path=None, url=f"{url}/image")
    results = []
    threads = [threading.Thread(target=lambda: results.append(cache.get(wanted))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.hit for r in results) == [False, True, True, True, True]
    assert len(asked) == 1


def test_downloads_are_checked(cache: ImageCache, tmp_path: Path, web: tuple[str, list[str]]) -> None:
    url, _ = web
    good = source(tmp_path / "image", path=None, url=f"{url}/image")
    (tmp_path / "image").write_bytes(boot_sector_qcow2() + b"more")
    with pytest.raises(DriverError, match="longer") as caught:
        cache.get(good)
    assert caught.value.code == "image-invalid"
    with pytest.raises(DriverError) as caught:
        cache.get(source(tmp_path / "image", path=None, url=f"{url}/nothing?signature=secret"))
    assert caught.value.code == "image-fetch"
    assert "secret" not in caught.value.message
    assert list(cache.directory.iterdir()) == []


def test_prune_keeps_what_is_in_use(cache: ImageCache, tmp_path: Path) -> None:
    used = cache.get(source(tmp_path / "image")).path
    other = cache.get(source(tmp_path / "image", image_id="other")).path
    fresh = cache.get(source(tmp_path / "image", image_id="fresh")).path
    for path in (used, other):
        os.utime(path, (1, 1))
    assert cache.prune([used], older_than_seconds=3600) == [other]
    assert sorted(cache.directory.iterdir()) == sorted([used, fresh])


def writing(data: bytes) -> Callable[[Path], None]:
    def write(part: Path) -> None:
        part.write_bytes(data)

    return write


@pytest.mark.parametrize("form", ["raw", "aki"])
def test_a_base_of_another_host_is_checked(cache: ImageCache, tmp_path: Path, form: str) -> None:
    whole = b"kernel" * 1000
    path = tmp_path / "image"
    path.write_bytes(whole)
    gone = source(path, form, whole, path=None)
    padded = whole if form == "aki" else whole.ljust(-(-len(whole) // 512) * 512, b"\0")
    for wrong in (b"another" + padded[7:], padded[:-1], padded + b"\0" * 512):
        with pytest.raises(DriverError) as caught:
            cache.get(gone, bring=writing(wrong))
        assert caught.value.code == "image-invalid"
        assert list(cache.directory.iterdir()) == []
    assert cache.find(gone) is None
    assert cache.get(gone, bring=writing(padded)).path.read_bytes() == padded
    found = cache.find(gone)
    assert found is not None
    assert found.path.stat().st_mode & 0o777 == 0o644
    assert cache.get(gone).hit
