"""Running code in a kernel: output, results, errors, contexts."""

import pytest
from e2b import InvalidArgumentException, TimeoutException

import lane
from codesdk import Sandbox
from marks import fails, works

TEMPLATE = "code-interpreter"


@pytest.fixture(scope="module")
def sbx():
    sandbox = lane.drive(Sandbox.create(TEMPLATE, timeout=600, metadata=lane.MARK))
    yield sandbox
    lane.drive(sandbox.kill())


@works("code.run_code")
async def test_output_and_result(sbx):
    out, results = [], []
    done = await sbx.run_code("print('hello'); import sys; print('oops', file=sys.stderr); 6*7", on_stdout=out.append, on_result=results.append)
    assert "".join(done.logs.stdout) == "hello\n" and "".join(done.logs.stderr) == "oops\n"
    assert done.text == "42" and done.error is None
    assert out and out[0].line.startswith("hello") and len(results) == 1
    assert done.results[0].is_main_result and done.execution_count >= 1


@works("code.run_code")
async def test_state_is_kept(sbx):
    await sbx.run_code("kept = [1, 2]")
    await sbx.run_code("kept.append(3)")
    assert (await sbx.run_code("kept")).text == "[1, 2, 3]"


@works("code.run_code")
async def test_environment_of_one_run(sbx):
    assert (await sbx.run_code("import os; os.environ['ONE_RUN']", envs={"ONE_RUN": "yes"})).text == "'yes'"


@fails("code.run_code")
async def test_error(sbx):
    done = await sbx.run_code("1/0")
    assert done.error.name == "ZeroDivisionError" and "division by zero" in done.error.value and "1/0" in done.error.traceback
    assert (await sbx.run_code("'goes on'")).text == "'goes on'"
    with pytest.raises(TimeoutException):
        await sbx.run_code("import time; time.sleep(30)", timeout=1)
    assert (await sbx.run_code("'after the timeout'")).text == "'after the timeout'"


@works("code.create_code_context", "code.list_code_contexts", "code.restart_code_context", "code.remove_code_context", "code.run_code")
async def test_contexts(sbx):
    context = await sbx.create_code_context(cwd="/tmp", language="python")
    assert context.id in [c.id for c in await sbx.list_code_contexts()]
    await sbx.run_code("mine = 1", context=context)
    assert (await sbx.run_code("import os; os.getcwd()", context=context)).text == "'/tmp'"
    assert (await sbx.run_code("mine")).error.name == "NameError"
    await sbx.restart_code_context(context)
    assert (await sbx.run_code("mine", context=context)).error.name == "NameError"
    await sbx.remove_code_context(context)
    assert context.id not in [c.id for c in await sbx.list_code_contexts()]


@fails("code.create_code_context", "code.restart_code_context", "code.remove_code_context", "code.run_code")
async def test_refused(sbx):
    with pytest.raises(Exception):
        await sbx.create_code_context(language="no-such-language")
    with pytest.raises(Exception):
        await sbx.restart_code_context("no-such-context")
    with pytest.raises(Exception):
        await sbx.remove_code_context("no-such-context")
    context = await sbx.create_code_context()
    with pytest.raises(InvalidArgumentException):
        await sbx.run_code("1", language="python", context=context)


@fails("code.list_code_contexts")
async def test_on_a_dead_sandbox():
    sandbox = await Sandbox.create(TEMPLATE, timeout=60, metadata=lane.MARK)
    await sandbox.kill()
    with pytest.raises(Exception):
        await sandbox.list_code_contexts()
