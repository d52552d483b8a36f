"""Volumes. Each test counts from the day its route is served."""

import e2b
import pytest

import lane
from e2bsdk import Volume
from marks import fails, works
from server import landed

NONE = "no-such-volume"


@pytest.fixture
def volume():
    landed("GET", "/volumes")
    made = lane.drive(Volume.create(f"vol-{lane.RUN}-{lane.NAME}".lower()))
    yield made
    lane.drive(Volume.destroy(made.volume_id))


@works("Volume.create", "Volume.get_info", "Volume.list", "Volume.connect", "Volume.destroy")
@fails("Volume.get_info", "Volume.connect", "Volume.destroy", "Volume.create")
async def test_volume():
    landed("GET", "/volumes")
    name = f"own-{lane.RUN}-{lane.NAME}".lower()
    made = await Volume.create(name)
    info = await Volume.get_info(made.volume_id)
    assert (info.volume_id, info.name) == (made.volume_id, name) and info.token
    assert made.volume_id in [v.volume_id for v in await Volume.list()]
    assert (await Volume.connect(made.volume_id)).name == name
    with pytest.raises(Exception):
        await Volume.create(name)
    assert await Volume.destroy(made.volume_id) is True
    assert await Volume.destroy(made.volume_id) is False
    with pytest.raises(e2b.VolumeNotFoundException):
        await Volume.get_info(NONE)
    with pytest.raises(e2b.VolumeNotFoundException):
        await Volume.connect(NONE)


@fails("Volume.list")
async def test_volumes_with_a_key_nobody_has():
    landed("GET", "/volumes")
    with pytest.raises(e2b.AuthenticationException):
        await Volume.list(api_key="e2b_" + "0" * 40)


@works("volume.make_dir", "volume.write_file", "volume.read_file", "volume.list", "volume.exists", "volume.get_info", "volume.update_metadata", "volume.remove")
@fails("volume.read_file", "volume.get_info", "volume.list", "volume.exists", "volume.remove", "volume.update_metadata", "volume.make_dir", "volume.write_file")
async def test_content(volume):
    await volume.make_dir("/d/e", force=True)
    await volume.write_file("/d/f", b"content")
    assert await volume.read_file("/d/f") == "content"
    assert sorted(e.name for e in await volume.list("/d")) == ["e", "f"]
    assert await volume.exists("/d/f") is True and await volume.exists("/d/none") is False
    assert (await volume.get_info("/d/f")).size == 7
    assert (await volume.update_metadata("/d/f", mode=0o600)).mode & 0o777 == 0o600
    await volume.remove("/d/f")
    for call in (volume.read_file, volume.get_info, volume.list, volume.remove):
        with pytest.raises(e2b.VolumePathNotFoundException):
            await call("/d/f")
    with pytest.raises(e2b.VolumePathNotFoundException):
        await volume.update_metadata("/d/f", mode=0o600)
    with pytest.raises(Exception):
        await volume.make_dir("/d/e")
    with pytest.raises(Exception):
        await volume.write_file("/d/e", b"is a folder")


@works("Sandbox.create")
async def test_mount(make, volume):
    one = await make(volume_mounts={"/mnt/shared": volume})
    await one.files.write("/mnt/shared/from-one", "kept")
    assert {"name": volume.name, "path": "/mnt/shared"} in (await one.get_info()).volume_mounts
    await one.kill()
    two = await make(volume_mounts={"/mnt/shared": volume.name})
    assert await two.files.read("/mnt/shared/from-one") == "kept"
