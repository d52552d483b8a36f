// The git helpers, against a bare repository inside the sandbox.
import { assert, check, e2b, refuses, shared } from '../lane.mjs'

const { CommandExitError, GitAuthError, GitUpstreamError, InvalidArgumentError } = e2b
const base = '/home/user/git'
const work = `${base}/work`

check('from init to push and pull', {
  works: ['git.init', 'git.configure_user', 'git.add', 'git.commit', 'git.status', 'git.remote_add', 'git.remote_get', 'git.push', 'git.clone', 'git.pull'],
}, async () => {
  const sbx = await shared()
  const { git } = sbx
  await git.init(`${base}/origin.git`, { bare: true, initialBranch: 'main' })
  await git.init(work, { initialBranch: 'main' })
  await git.configureUser('A Tester', 'tester@example.com')
  await sbx.files.write(`${work}/a.txt`, 'one\n')
  assert.equal((await git.status(work)).hasUntracked, true)
  await git.add(work)
  await git.commit(work, "first, with 'quotes'")
  assert.equal((await git.status(work)).isClean, true)
  await git.remoteAdd(work, 'origin', `${base}/origin.git`)
  assert.equal(await git.remoteGet(work, 'origin'), `${base}/origin.git`)
  await git.push(work, { remote: 'origin', branch: 'main' })
  await git.clone(`${base}/origin.git`, { path: `${base}/copy`, branch: 'main', depth: 1 })
  await sbx.files.write(`${work}/b.txt`, 'two\n')
  await git.add(work)
  await git.commit(work, 'second')
  await git.push(work)
  await git.pull(`${base}/copy`)
  assert.equal(await sbx.files.read(`${base}/copy/b.txt`), 'two\n')
})

check('branches', {
  works: ['git.branches', 'git.create_branch', 'git.checkout_branch', 'git.delete_branch'],
  fails: ['git.branches', 'git.create_branch', 'git.checkout_branch', 'git.delete_branch'],
}, async () => {
  const { git } = await shared()
  await git.createBranch(work, 'feature/x')
  assert.equal((await git.branches(work)).currentBranch, 'feature/x')
  await git.checkoutBranch(work, 'main')
  assert.deepEqual((await git.branches(work)).branches.sort(), ['feature/x', 'main'])
  await git.deleteBranch(work, 'feature/x', { force: true })
  for (const call of [() => git.createBranch(work, 'main'), () => git.checkoutBranch(work, 'none'), () => git.deleteBranch(work, 'none'), () => git.branches('/tmp')]) {
    await refuses(call(), CommandExitError)
  }
})

check('undo', { works: ['git.reset', 'git.restore'], fails: ['git.reset', 'git.restore', 'git.add'] }, async () => {
  const sbx = await shared()
  const { git } = sbx
  await sbx.files.write(`${work}/a.txt`, 'changed\n')
  await git.add(work)
  await git.restore(work, { paths: ['a.txt'], staged: true })
  await git.restore(work, { paths: ['a.txt'] })
  assert.equal(await sbx.files.read(`${work}/a.txt`), 'one\n')
  await sbx.files.write(`${work}/a.txt`, 'changed\n')
  await git.reset(work, { mode: 'hard', target: 'HEAD' })
  assert.equal((await git.status(work)).isClean, true)
  await refuses(git.reset(work, { mode: 'hard', target: 'no-such-commit' }), CommandExitError)
  await refuses(git.restore(work, { paths: ['no-such-file'] }), CommandExitError)
  await refuses(git.add(work, { files: ['no-such-file'] }), CommandExitError)
})

check('config and credentials', {
  works: ['git.set_config', 'git.get_config', 'git.dangerously_authenticate'],
  fails: ['git.set_config', 'git.get_config', 'git.dangerously_authenticate', 'git.configure_user', 'git.remote_add', 'git.remote_get'],
}, async () => {
  const sbx = await shared()
  const { git } = sbx
  await git.setConfig('test.key', 'value here', { scope: 'local', path: work })
  assert.equal(await git.getConfig('test.key', { scope: 'local', path: work }), 'value here')
  assert.equal(await git.getConfig('test.none'), undefined)
  await git.dangerouslyAuthenticate({ username: 'me', password: 'token', host: 'git.example' })
  const asked = await sbx.commands.run("printf 'protocol=https\\nhost=git.example\\n\\n' | git credential fill")
  assert.match(asked.stdout, /password=token/)
  await refuses(git.setConfig('test.key', 'x', { scope: 'local' }), InvalidArgumentError)
  await refuses(git.getConfig(''), InvalidArgumentError)
  await refuses(git.dangerouslyAuthenticate({ username: '', password: 'token' }), InvalidArgumentError)
  await refuses(git.configureUser('', 'x@example.com'), InvalidArgumentError)
  await refuses(git.remoteAdd(work, 'origin', 'https://git.example/b.git'), CommandExitError)
  assert.equal(await git.remoteGet(work, 'none'), undefined)
})

check('refused', { fails: ['git.clone', 'git.push', 'git.pull', 'git.commit', 'git.status', 'git.init'] }, async () => {
  const sbx = await shared()
  const { git } = sbx
  await refuses(git.clone('/no/such/repository', { path: '/tmp/nowhere' }), CommandExitError)
  await refuses(git.clone(`${base}/origin.git`, { password: 'x' }), InvalidArgumentError)
  await sbx.commands.run(`git -C ${work} checkout -q -B lonely`)
  await refuses(git.push(work, { setUpstream: false }), GitUpstreamError)
  await refuses(git.pull(work), GitUpstreamError)
  await sbx.commands.run(`git -C ${work} checkout -q main`)
  await refuses(git.commit(work, 'nothing to commit'), CommandExitError)
  await refuses(git.status('/tmp'), CommandExitError)
  await refuses(git.init('/proc/nowhere'), CommandExitError)
})

check('a private repository', { fails: ['git.clone'] }, async () => {
  const sbx = await shared()
  await sbx.files.write('/tmp/refuses.mjs', `
import { createServer } from 'node:http'
createServer((_, res) => { res.writeHead(401, { 'WWW-Authenticate': 'Basic realm="private"', 'Content-Length': 0 }); res.end() }).listen(8402, '127.0.0.1')`)
  const guard = await sbx.commands.run('node /tmp/refuses.mjs', { background: true, timeoutMs: 0 })
  await sbx.commands.run('for i in $(seq 80); do ss -Htln sport = :8402 | grep -q . && exit 0; sleep 0.1; done; exit 1')
  await refuses(sbx.git.clone('http://127.0.0.1:8402/private.git', { path: '/tmp/private' }), GitAuthError)
  await guard.kill()
})
