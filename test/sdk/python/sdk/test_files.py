"""Files: what is written is what is read, in every form the package has; folders, links, metadata, watching."""

import hashlib
import io
import os
from datetime import datetime, timezone
from uuid import uuid4

import e2b
import httpx
import pytest
from e2b import FilesystemEventType, FileType

import lane
import server
from lane import until
from marks import fails, quick, works

RANDOM = os.urandom(300_000)


async def collect(reader):
    """All of a streamed read."""
    if lane.SYNC:
        return b"".join(reader)
    return b"".join([chunk async for chunk in reader])


@quick
@works("files.write", "files.read")
async def test_write_and_read(sbx, folder):
    text = "Grüße, 世界\n"
    written = await sbx.files.write(f"{folder}/a.txt", text)
    assert (written.name, written.path, written.type) == ("a.txt", f"{folder}/a.txt", FileType.FILE)
    assert await sbx.files.read(f"{folder}/a.txt") == text
    assert bytes(await sbx.files.read(f"{folder}/a.txt", format="bytes")) == text.encode()
    assert await collect(await sbx.files.read(f"{folder}/a.txt", format="stream")) == text.encode()
    await sbx.files.write(f"{folder}/a.txt", "shorter")
    assert await sbx.files.read(f"{folder}/a.txt") == "shorter"


@works("files.write", "files.read")
@pytest.mark.parametrize("opts", [{}, {"use_octet_stream": True}, {"gzip": True}], ids=["multipart", "octet-stream", "gzip"])
async def test_ways_to_upload(sbx, folder, opts):
    for name, data, want in (
        ("text", "text ä", "text ä".encode()),
        ("bytes", RANDOM, RANDOM),
        ("empty", "", b""),
        ("file", io.BytesIO(RANDOM), RANDOM),
        ("textfile", io.StringIO("lines\n" * 1000), b"lines\n" * 1000),
    ):
        await sbx.files.write(f"{folder}/{name}", data, **opts)
        got = bytes(await sbx.files.read(f"{folder}/{name}", format="bytes"))
        assert hashlib.sha256(got).digest() == hashlib.sha256(want).digest(), name


@works("files.write")
async def test_upload_from_an_iterator(sbx, folder):
    if lane.NAME.startswith("python-older"):
        pytest.skip("n/a: this release takes no iterators")

    def chunks():
        for start in range(0, len(RANDOM), 7000):
            yield RANDOM[start : start + 7000]

    async def later():
        for chunk in chunks():
            yield chunk

    await sbx.files.write(f"{folder}/it", chunks() if lane.SYNC else later())
    assert bytes(await sbx.files.read(f"{folder}/it", format="bytes")) == RANDOM


@works("files.read")
async def test_gzip_download(sbx, folder):
    await sbx.files.write(f"{folder}/z", "much the same " * 50_000)
    assert await sbx.files.read(f"{folder}/z", gzip=True) == "much the same " * 50_000
    assert await collect(await sbx.files.read(f"{folder}/z", format="stream", gzip=True)) == b"much the same " * 50_000


@works("files.write", "files.read")
async def test_twenty_megabytes(sbx, folder):
    big = RANDOM * 70
    await sbx.files.write(f"{folder}/big", io.BytesIO(big))
    got = await collect(await sbx.files.read(f"{folder}/big", format="stream"))
    assert hashlib.sha256(got).digest() == hashlib.sha256(big).digest()
    done = await sbx.commands.run(f"sha256sum {folder}/big")
    assert done.stdout.split()[0] == hashlib.sha256(big).hexdigest()


@works("files.write", "files.read")
async def test_paths(sbx, folder):
    name = folder.removeprefix("/home/user/")
    written = await sbx.files.write(f"{name}/deep/er/still.txt", "made its parents")
    assert written.path == f"{folder}/deep/er/still.txt"
    assert await sbx.files.read(f"~/{name}/deep/er/still.txt") == "made its parents"
    for odd in ("with space", "quote'\"s", "ünï", "percent%20", "plus+and&", "-dash", "semi;colon"):
        await sbx.files.write(f"{folder}/{odd}", odd)
        assert await sbx.files.read(f"{folder}/{odd}") == odd
    assert sorted(e.name for e in await sbx.files.list(folder) if e.type == FileType.FILE) == sorted(
        ("with space", "quote'\"s", "ünï", "percent%20", "plus+and&", "-dash", "semi;colon")
    )


@works("files.write_files", "files.read")
async def test_many_files(sbx, folder):
    files = [{"path": f"{folder}/many/{n}", "data": f"number {n}"} for n in range(30)]
    written = await sbx.files.write_files(files)
    assert [w.path for w in written] == [f["path"] for f in files]
    assert await sbx.files.read(f"{folder}/many/29") == "number 29"
    assert await sbx.files.write_files([]) == []
    two = await sbx.files.write_files([{"path": f"{folder}/b1", "data": RANDOM}, {"path": f"{folder}/b2", "data": b"x"}], gzip=True)
    assert [w.name for w in two] == ["b1", "b2"]
    assert bytes(await sbx.files.read(f"{folder}/b1", format="bytes")) == RANDOM


@fails("files.write_files")
async def test_many_files_with_a_bad_one(sbx, folder):
    with pytest.raises(e2b.SandboxException):
        await sbx.files.write_files([{"path": f"{folder}/ok", "data": "x"}, {"path": folder, "data": "is a folder"}])


@works("files.write", "files.get_info", "files.list")
async def test_metadata(sbx, folder):
    meta = {"origin": "a test", "version": "1"}
    written = await sbx.files.write(f"{folder}/m", "x", metadata=meta)
    assert written.metadata == meta
    assert (await sbx.files.get_info(f"{folder}/m")).metadata == meta
    assert [e.metadata for e in await sbx.files.list(folder)] == [meta]
    await sbx.files.write(f"{folder}/m", "x", metadata={"other": "2"}, use_octet_stream=True)
    assert (await sbx.files.get_info(f"{folder}/m")).metadata == {"other": "2"}
    await sbx.files.write(f"{folder}/m", "x")
    assert not (await sbx.files.get_info(f"{folder}/m")).metadata


@fails("files.write")
async def test_metadata_that_cannot_be(sbx, folder):
    for meta in ({"a b": "x"}, {"ok": "line\nbreak"}, {"": "x"}):
        with pytest.raises(e2b.InvalidArgumentException):
            await sbx.files.write(f"{folder}/m", "x", metadata=meta)
    with pytest.raises(e2b.SandboxException):
        await sbx.files.write(f"{folder}/m", "x", metadata={"long": "x" * 5000})


@fails("files.read")
async def test_read_what_cannot_be_read(sbx, folder):
    for form in ("text", "bytes", "stream"):
        with pytest.raises(e2b.FileNotFoundException):
            await sbx.files.read(f"{folder}/none", format=form)
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.files.read(folder)
    with pytest.raises(e2b.AuthenticationException):
        await sbx.files.read("/etc/hostname", user="nobody-here")


@works("files.read", "files.write")
async def test_user(sbx, folder):
    await sbx.files.write("/root/mine", "root's", user="root")
    assert await sbx.files.read("/root/mine", user="root") == "root's"
    assert (await sbx.files.get_info("/root/mine", user="root")).owner == "root"
    assert (await sbx.files.write(f"{folder}/u", "x")) and (await sbx.files.get_info(f"{folder}/u")).owner == "user"


@works("files.read", "files.write", "files.make_dir", "files.rename", "files.list", "files.remove")
async def test_where_the_user_has_no_right(sbx):
    """Who may ask may also name root, so that a user's calls reach everywhere; what they make is the user's."""
    at = f"/srv/{uuid4().hex}"
    assert (await sbx.files.write(f"{at}/deep/f", "mine")).path == f"{at}/deep/f"
    assert await sbx.files.make_dir(f"{at}/d")
    for name in ("", "/deep", "/deep/f", "/d"):
        info = await sbx.files.get_info(at + name)
        assert (info.owner, info.group) == ("user", "user"), (name, info)
    assert (await sbx.commands.run(f"echo more >> {at}/deep/f; cat {at}/deep/f")).stdout == "minemore\n"
    await sbx.files.write("/etc/made-by-a-test", "1")
    assert (await sbx.files.rename("/etc/made-by-a-test", f"{at}/renamed")).path == f"{at}/renamed"
    await sbx.files.write("/root/closed/f", "root's", user="root")
    await sbx.commands.run("chmod 700 /root/closed", user="root")
    assert await sbx.files.read("/root/closed/f") == "root's"
    assert [e.name for e in await sbx.files.list("/root/closed")] == ["f"]
    for path in ("/root/closed", at):
        await sbx.files.remove(path)
        assert not await sbx.files.exists(path)


@fails("files.write")
async def test_write_what_cannot_be_written(sbx, folder):
    with pytest.raises(e2b.SandboxException):
        await sbx.files.write(folder, "is a folder")
    await sbx.files.write(f"{folder}/file", "x")
    with pytest.raises(e2b.SandboxException):
        await sbx.files.write(f"{folder}/file/below", "x")
    with pytest.raises(e2b.AuthenticationException):
        await sbx.files.write(f"{folder}/x", "x", user="nobody-here")


@works("files.read")
async def test_files_of_the_kernel(sbx):
    assert "processor" in await sbx.files.read("/proc/cpuinfo")
    assert await sbx.files.read("/proc/self/status")


@works("files.list", "files.make_dir")
async def test_list(sbx, folder):
    for path in ("d1", "d2", "d1/d11", "d2/d21"):
        assert await sbx.files.make_dir(f"{folder}/{path}") is True
    await sbx.files.write(f"{folder}/f", "12345")
    await sbx.commands.run("ln -s f link", cwd=folder)
    one = {e.name: e for e in await sbx.files.list(folder)}
    assert sorted(one) == ["d1", "d2", "f", "link"]
    assert (one["d1"].type, one["d1"].permissions, one["d1"].owner, one["d1"].group) == (FileType.DIR, "drwxr-xr-x", "user", "user")
    assert (one["f"].type, one["f"].size, one["f"].mode, one["f"].permissions) == (FileType.FILE, 5, 0o644, "-rw-r--r--")
    assert one["f"].path == f"{folder}/f"
    assert abs((datetime.now(timezone.utc) - one["f"].modified_time).total_seconds()) < 60
    assert one["link"].symlink_target == f"{folder}/f"
    two = [e.path.removeprefix(folder + "/") for e in await sbx.files.list(folder, depth=2)]
    assert sorted(two) == ["d1", "d1/d11", "d2", "d2/d21", "f", "link"]
    assert len(await sbx.files.list(folder, depth=9)) == 6
    await sbx.commands.run(f"ln -sfn {folder} /tmp/link-to-folder")
    assert sorted(e.name for e in await sbx.files.list("/tmp/link-to-folder")) == ["d1", "d2", "f", "link"]


@fails("files.list")
async def test_list_what_cannot_be_listed(sbx, folder):
    with pytest.raises(e2b.FileNotFoundException):
        await sbx.files.list(f"{folder}/none")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.files.list(folder, depth=0)
    await sbx.files.write(f"{folder}/f", "x")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.files.list(f"{folder}/f")


@works("files.make_dir")
@fails("files.make_dir")
async def test_make_dir(sbx, folder):
    assert await sbx.files.make_dir(f"{folder}/x/y/z") is True
    assert await sbx.files.make_dir(f"{folder}/x/y/z") is False
    assert (await sbx.files.get_info(f"{folder}/x/y")).owner == "user"
    await sbx.files.write(f"{folder}/f", "x")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.files.make_dir(f"{folder}/f")
    with pytest.raises(e2b.AuthenticationException):
        await sbx.files.make_dir(f"{folder}/new", user="nobody-here")


@works("files.exists", "files.get_info")
@fails("files.exists", "files.get_info")
async def test_exists_and_info(sbx, folder):
    await sbx.files.write(f"{folder}/f", "1234")
    await sbx.commands.run("ln -s f link; ln -s nowhere dangling; chmod 640 f", cwd=folder)
    assert await sbx.files.exists(f"{folder}/f") is True
    assert await sbx.files.exists(folder) is True
    assert await sbx.files.exists(f"{folder}/none") is False
    info = await sbx.files.get_info(f"{folder}/f")
    assert (info.name, info.size, info.mode, info.permissions) == ("f", 4, 0o640, "-rw-r-----")
    assert (await sbx.files.get_info(folder)).type == FileType.DIR
    assert (await sbx.files.get_info(f"{folder}/link")).symlink_target == f"{folder}/f"
    with pytest.raises(e2b.FileNotFoundException):
        await sbx.files.get_info(f"{folder}/none")
    with pytest.raises(e2b.AuthenticationException):
        await sbx.files.exists(folder, user="nobody-here")


@works("files.rename")
@fails("files.rename")
async def test_rename(sbx, folder):
    await sbx.files.write(f"{folder}/old", "content")
    entry = await sbx.files.rename(f"{folder}/old", f"{folder}/new")
    assert (entry.name, entry.path) == ("new", f"{folder}/new")
    assert await sbx.files.exists(f"{folder}/old") is False
    assert await sbx.files.read(f"{folder}/new") == "content"
    with pytest.raises(e2b.FileNotFoundException):
        await sbx.files.rename(f"{folder}/old", f"{folder}/newer")


@works("files.remove")
@fails("files.remove")
async def test_remove(sbx, folder):
    await sbx.files.write(f"{folder}/sub/f", "x")
    await sbx.files.remove(f"{folder}/sub/f")
    assert await sbx.files.exists(f"{folder}/sub/f") is False
    await sbx.files.write(f"{folder}/sub/g", "x")
    await sbx.files.remove(f"{folder}/sub")
    assert await sbx.files.exists(f"{folder}/sub") is False
    await sbx.files.remove(f"{folder}/never-was")
    with pytest.raises(e2b.AuthenticationException):
        await sbx.files.remove(f"{folder}/x", user="nobody-here")


class Watch:
    """Events of a watched folder, by polling in sync mode and by callback in async mode."""

    def __init__(self, sandbox):
        self.sandbox, self.events = sandbox, []

    async def open(self, path, **opts):
        if lane.SYNC:
            self.handle = await self.sandbox.files.watch_dir(path, **opts)
        else:
            self.handle = await self.sandbox.files.watch_dir(path, on_event=self.events.append, **opts)
        return self

    async def sees(self, kind, name):
        async def found():
            if lane.SYNC:
                self.events += await self.handle.get_new_events()
            return next((e for e in self.events if (e.type, e.name) == (kind, name)), None)

        return await until(f"{kind} {name}, not only {[(e.type.value, e.name) for e in self.events]}", found)


@works("files.watch_dir", "watch.stop")
async def test_watch(sbx, folder):
    watch = await Watch(sbx).open(folder)
    await sbx.files.write(f"{folder}/f", "x")
    await watch.sees(FilesystemEventType.CREATE, "f")
    await watch.sees(FilesystemEventType.WRITE, "f")
    await sbx.commands.run(f"chmod 600 {folder}/f")
    await watch.sees(FilesystemEventType.CHMOD, "f")
    await sbx.files.rename(f"{folder}/f", f"{folder}/g")
    await watch.sees(FilesystemEventType.RENAME, "f")
    await watch.sees(FilesystemEventType.CREATE, "g")
    await sbx.files.remove(f"{folder}/g")
    await watch.sees(FilesystemEventType.REMOVE, "g")
    await watch.handle.stop()
    assert all(event.entry is None for event in watch.events)


@works("files.watch_dir", "watch.stop")
async def test_watch_below(sbx, folder):
    await sbx.files.make_dir(f"{folder}/there")
    watch = await Watch(sbx).open(folder, recursive=True, include_entry=True)
    await sbx.files.write(f"{folder}/there/f", "x")
    event = await watch.sees(FilesystemEventType.WRITE, "there/f")
    assert event.entry is not None and event.entry.path == f"{folder}/there/f"
    await sbx.files.make_dir(f"{folder}/new/deeper")
    await watch.sees(FilesystemEventType.CREATE, "new")
    await sbx.files.write(f"{folder}/new/deeper/g", "x")
    await watch.sees(FilesystemEventType.WRITE, "new/deeper/g")
    await watch.handle.stop()


@works("watch.get_new_events")
@fails("watch.get_new_events")
async def test_watch_after_stop(sbx, folder):
    handle = await sbx.files.watch_dir(folder)
    assert await handle.get_new_events() == []
    await handle.stop()
    with pytest.raises(e2b.SandboxException):
        await handle.get_new_events()


@fails("files.watch_dir")
async def test_watch_what_cannot_be_watched(sbx, folder):
    extra = {} if lane.SYNC else {"on_event": lambda event: None}
    with pytest.raises(e2b.FileNotFoundException):
        await sbx.files.watch_dir(f"{folder}/none", **extra)
    await sbx.files.write(f"{folder}/f", "x")
    with pytest.raises(e2b.SandboxException):
        await sbx.files.watch_dir(f"{folder}/f", **extra)


@works("Sandbox.upload_url", "Sandbox.download_url")
async def test_signed_urls(sbx, folder):
    up = await sbx.upload_url(f"{folder}/up", use_signature_expiration=60)
    res = httpx.post(up, files={"file": ("up", b"by url")}, headers=server.routed(sbx))
    assert res.status_code == 200, res.text
    assert await sbx.files.read(f"{folder}/up") == "by url"
    res = httpx.get(await sbx.download_url(f"{folder}/up"), headers=server.routed(sbx))
    assert (res.status_code, res.text) == (200, "by url")
    await sbx.files.write("/root/secret", "root's", user="root")
    res = httpx.get(await sbx.download_url("/root/secret", user="root", use_signature_expiration=60), headers=server.routed(sbx))
    assert (res.status_code, res.text) == (200, "root's")


@fails("Sandbox.upload_url", "Sandbox.download_url")
async def test_urls_that_say_something_else(sbx, folder):
    await sbx.files.write(f"{folder}/f", "x")
    url = await sbx.download_url(f"{folder}/f")
    routed = server.routed(sbx)
    for wrong in (
        url.split("&signature=")[0],
        url.replace(f"{folder}/f".replace("/", "%2F"), "%2Fetc%2Fhostname").replace(f"{folder}/f", "/etc/hostname"),
        url + "x",
        url + "&username=root",
        await sbx.download_url(f"{folder}/f", use_signature_expiration=-10),
    ):
        assert httpx.get(wrong, headers=routed).status_code == 401, wrong
    assert httpx.post(url, files={"file": ("f", b"y")}, headers=routed).status_code == 401
    late = await sbx.upload_url(f"{folder}/f", use_signature_expiration=-10)
    assert httpx.post(late, files={"file": ("f", b"y")}, headers=routed).status_code == 401
    assert await sbx.files.read(f"{folder}/f") == "x"


@works("files.read")
async def test_ranges_and_tags(sbx, folder):
    await sbx.files.write(f"{folder}/r", "0123456789")
    url, routed = await sbx.download_url(f"{folder}/r"), server.routed(sbx)
    part = httpx.get(url, headers={**routed, "Range": "bytes=2-5"})
    assert (part.status_code, part.text) == (206, "2345")
    whole = httpx.get(url, headers=routed)
    assert whole.headers["content-disposition"].startswith("inline")
    if "etag" in whole.headers:
        assert httpx.get(url, headers={**routed, "If-None-Match": whole.headers["etag"]}).status_code == 304
    squeezed = httpx.get(url, headers={**routed, "Accept-Encoding": "gzip"})
    assert squeezed.text == "0123456789"
    assert await sbx.files.read(f"{folder}/r") == "0123456789"
