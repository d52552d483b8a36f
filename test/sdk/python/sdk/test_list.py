"""Listing: filters, order, pages."""

from datetime import datetime, timedelta, timezone

import e2b
import pytest
from e2b import SandboxQuery, SandboxState

import lane
from e2bsdk import Sandbox
from marks import fails, quick, works


async def everything(paginator):
    items = []
    while paginator.has_next:
        items += await paginator.next_items()
    return items


@quick
@works("Sandbox.list", "SandboxPaginator.next_items")
async def test_finds_its_own(sbx):
    listed = await everything(await Sandbox.list(SandboxQuery(metadata=lane.MARK)))
    mine = [item for item in listed if item.sandbox_id == sbx.sandbox_id]
    assert len(mine) == 1
    assert mine[0].state == SandboxState.RUNNING
    assert mine[0].metadata == lane.MARK
    assert mine[0].template_id and mine[0].cpu_count and mine[0].memory_mb and mine[0].envd_version


@works("Sandbox.list", "SandboxPaginator.next_items")
async def test_metadata_with_signs_that_urls_use(make):
    metadata = {"k y": "v&1=2", "per%cent": "50 % + ä/ö?#", "plus+": "a+b"}
    sandbox = await make(metadata=metadata)
    for query in (metadata, {"k y": "v&1=2"}, {"per%cent": "50 % + ä/ö?#"}, {"plus+": "a+b"}):
        listed = await everything(await Sandbox.list(SandboxQuery(metadata={**lane.MARK, **query})))
        assert [item.sandbox_id for item in listed] == [sandbox.sandbox_id], query
    assert await everything(await Sandbox.list(SandboxQuery(metadata={**lane.MARK, "k y": "v&1"}))) == []


@works("Sandbox.list", "SandboxPaginator.next_items")
async def test_pages_and_order(make):
    batch = {"batch": lane.RUN}
    ids = [(await make(metadata=batch)).sandbox_id for _ in range(3)]
    query = SandboxQuery(metadata={**lane.MARK, **batch})
    for order, want in ((None, ids[::-1]), ("desc", ids[::-1]), ("asc", ids)):
        paginator = await Sandbox.list(query, limit=2, order=order)
        first = await paginator.next_items()
        assert paginator.has_next and paginator.next_token
        second = await paginator.next_items()
        assert not paginator.has_next
        assert [item.sandbox_id for item in first + second] == want
    paginator = await Sandbox.list(query, limit=1)
    await paginator.next_items()
    later = await Sandbox.list(query, limit=5, next_token=paginator.next_token)
    assert [item.sandbox_id for item in await later.next_items()] == ids[-2::-1]


@works("Sandbox.list", "SandboxPaginator.next_items")
async def test_state_template_and_start(sbx):
    async def found(**query):
        return [i.sandbox_id for i in await everything(await Sandbox.list(SandboxQuery(metadata=lane.MARK, **query)))]

    info = await sbx.get_info()
    now = datetime.now(timezone.utc)
    assert sbx.sandbox_id in await found(state=[SandboxState.RUNNING, SandboxState.PAUSED])
    assert sbx.sandbox_id not in await found(state=[SandboxState.PAUSED])
    assert sbx.sandbox_id in await found(template=info.template_id)
    assert await found(template="no-such-template") == []
    assert sbx.sandbox_id in await found(started_after=info.started_at - timedelta(seconds=2))
    assert await found(started_after=now + timedelta(hours=1)) == []


@fails("Sandbox.list", "SandboxPaginator.next_items")
async def test_refused():
    paginator = await Sandbox.list(api_key="e2b_" + "0" * 40)
    with pytest.raises(e2b.AuthenticationException):
        await paginator.next_items()
    paginator = await Sandbox.list(next_token="no token of yours")
    with pytest.raises(e2b.SandboxException, match="^400: "):
        await paginator.next_items()
    paginator = await Sandbox.list(limit=-1)
    with pytest.raises(e2b.SandboxException, match="^400: "):
        await paginator.next_items()


@fails("SandboxPaginator.next_items")
async def test_past_the_end():
    paginator = await Sandbox.list(SandboxQuery(metadata={"nobody": "has this"}))
    assert await paginator.next_items() == []
    with pytest.raises(Exception, match="No more items"):
        await paginator.next_items()
