"""The git helpers, against a bare repository inside the sandbox. Nothing here needs the server to know git."""

import e2b
import pytest
from e2b import CommandExitException

import lane
from marks import fails, works

# Answers every request with 401, as a private repository does.
REFUSES = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header('WWW-Authenticate', 'Basic realm="private"')
        self.send_header('Content-Length', '0')
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', 8401), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def repo(sbx):
    """A bare repository and a working copy with one commit pushed to it."""

    async def prepare():
        git, base = sbx.git, "/home/user/git"
        await git.init(f"{base}/origin.git", bare=True, initial_branch="main")
        await git.init(f"{base}/work", initial_branch="main")
        await git.configure_user("A Tester", "tester@example.com")
        await sbx.files.write(f"{base}/work/a.txt", "one\n")
        await git.add(f"{base}/work")
        await git.commit(f"{base}/work", "first")
        await git.remote_add(f"{base}/work", "origin", f"{base}/origin.git")
        await git.push(f"{base}/work", remote="origin", branch="main")
        return base

    return lane.drive(prepare())


@works("git.init", "git.configure_user", "git.add", "git.commit", "git.status", "git.get_config")
async def test_first_steps(sbx):
    path = "/home/user/git-first"
    await sbx.git.init(path, initial_branch="trunk")
    await sbx.git.configure_user("Local Name", "local@example.com", scope="local", path=path)
    await sbx.files.write(f"{path}/f", "x")
    status = await sbx.git.status(path)
    assert status.current_branch == "trunk" and status.has_untracked and not status.is_clean
    await sbx.git.add(path, files=["f"])
    assert (await sbx.git.status(path)).staged_count == 1
    await sbx.git.commit(path, "a message with 'quotes' and $signs")
    assert (await sbx.git.status(path)).is_clean
    log = await sbx.commands.run("git log --format='%an <%ae> %s'", cwd=path)
    assert log.stdout == "Local Name <local@example.com> a message with 'quotes' and $signs\n"
    assert await sbx.git.get_config("user.name", scope="local", path=path) == "Local Name"


@works("git.clone", "git.remote_get", "git.push", "git.pull", "git.status")
async def test_two_copies(sbx, repo):
    one, two = f"{repo}/one", f"{repo}/two"
    await sbx.git.clone(f"{repo}/origin.git", one)
    await sbx.git.clone(f"{repo}/origin.git", two, branch="main", depth=1)
    assert await sbx.git.remote_get(one, "origin") == f"{repo}/origin.git"
    await sbx.files.write(f"{one}/b.txt", "from one\n")
    await sbx.git.add(one)
    await sbx.git.commit(one, "second")
    assert (await sbx.git.status(one)).ahead == 1
    await sbx.git.push(one)
    await sbx.git.pull(two)
    assert await sbx.files.read(f"{two}/b.txt") == "from one\n"


@works("git.branches", "git.create_branch", "git.checkout_branch", "git.delete_branch")
@fails("git.create_branch", "git.checkout_branch", "git.delete_branch", "git.branches")
async def test_branches(sbx, repo):
    work = f"{repo}/work"
    await sbx.git.create_branch(work, "feature/x")
    assert (await sbx.git.branches(work)).current_branch == "feature/x"
    await sbx.git.checkout_branch(work, "main")
    branches = await sbx.git.branches(work)
    assert branches.current_branch == "main" and sorted(branches.branches) == ["feature/x", "main"]
    await sbx.git.delete_branch(work, "feature/x", force=True)
    assert (await sbx.git.branches(work)).branches == ["main"]
    with pytest.raises(CommandExitException):
        await sbx.git.create_branch(work, "main")
    with pytest.raises(CommandExitException):
        await sbx.git.checkout_branch(work, "none")
    with pytest.raises(CommandExitException):
        await sbx.git.delete_branch(work, "none")
    with pytest.raises(CommandExitException):
        await sbx.git.branches("/tmp")


@works("git.reset", "git.restore", "git.add")
@fails("git.reset", "git.restore", "git.add")
async def test_undo(sbx, repo):
    work = f"{repo}/work"
    await sbx.files.write(f"{work}/a.txt", "changed\n")
    await sbx.git.add(work)
    await sbx.git.restore(work, ["a.txt"], staged=True)
    assert (await sbx.git.status(work)).staged_count == 0
    await sbx.git.restore(work, ["a.txt"])
    assert await sbx.files.read(f"{work}/a.txt") == "one\n"
    await sbx.files.write(f"{work}/a.txt", "changed\n")
    await sbx.git.reset(work, mode="hard", target="HEAD")
    assert (await sbx.git.status(work)).is_clean
    with pytest.raises(CommandExitException):
        await sbx.git.reset(work, mode="hard", target="no-such-commit")
    with pytest.raises(CommandExitException):
        await sbx.git.restore(work, ["no-such-file"])
    with pytest.raises(CommandExitException):
        await sbx.git.add(work, files=["no-such-file"])


@works("git.remote_add", "git.remote_get", "git.set_config", "git.get_config")
@fails("git.remote_add", "git.remote_get", "git.set_config", "git.get_config")
async def test_remotes_and_config(sbx, repo):
    work = f"{repo}/work"
    await sbx.git.remote_add(work, "other", "https://git.example/a.git")
    assert await sbx.git.remote_get(work, "other") == "https://git.example/a.git"
    with pytest.raises(CommandExitException):
        await sbx.git.remote_add(work, "other", "https://git.example/b.git")
    await sbx.git.remote_add(work, "other", "https://git.example/c.git", overwrite=True)
    assert await sbx.git.remote_get(work, "other") == "https://git.example/c.git"
    assert await sbx.git.remote_get(work, "none") is None
    await sbx.git.set_config("test.key", "value here", scope="local", path=work)
    assert await sbx.git.get_config("test.key", scope="local", path=work) == "value here"
    assert await sbx.git.get_config("test.none") is None
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.git.set_config("test.key", "x", scope="local")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.git.get_config("", scope="global")


@works("git.dangerously_authenticate")
@fails("git.dangerously_authenticate", "git.configure_user")
async def test_credentials(sbx):
    await sbx.git.dangerously_authenticate("me", "token", host="git.example")
    asked = await sbx.commands.run("printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill")
    assert "password=token" in asked.stdout
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.git.dangerously_authenticate("", "token")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.git.configure_user("", "x@example.com")


@fails("git.clone", "git.push", "git.pull", "git.commit", "git.status", "git.init")
async def test_wrong(sbx, repo):
    with pytest.raises(CommandExitException):
        await sbx.git.clone("/no/such/repository", "/tmp/nowhere")
    with pytest.raises(e2b.InvalidArgumentException):
        await sbx.git.clone(f"{repo}/origin.git", password="x")
    await sbx.commands.run(f"git -C {repo}/work checkout -q -B lonely")
    with pytest.raises(e2b.GitUpstreamException):
        await sbx.git.push(f"{repo}/work", set_upstream=False)
    with pytest.raises(e2b.GitUpstreamException):
        await sbx.git.pull(f"{repo}/work")
    await sbx.commands.run(f"git -C {repo}/work checkout -q main")
    with pytest.raises(CommandExitException):
        await sbx.git.commit(f"{repo}/work", "nothing to commit")
    with pytest.raises(CommandExitException):
        await sbx.git.status("/tmp")
    with pytest.raises(CommandExitException):
        await sbx.git.init("/proc/nowhere")


@fails("git.clone")
async def test_private_repository(sbx):
    await sbx.files.write("/tmp/refuses.py", REFUSES)
    guard = await sbx.commands.run("python3 /tmp/refuses.py", background=True, timeout=0)
    try:
        await sbx.commands.run("for i in $(seq 50); do ss -Htln sport = :8401 | grep -q . && exit 0; sleep 0.1; done; exit 1")
        with pytest.raises(e2b.GitAuthException):
            await sbx.git.clone("http://127.0.0.1:8401/private.git", "/tmp/private")
    finally:
        await guard.kill()
