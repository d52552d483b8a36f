// Life of a sandbox: create with every option, connect, time, info, metrics, listing, end.
import {
  Sandbox, Secret, Template, Volume, MARK, NAME, NOBODY, OTHER_KEY, TEMPLATE, assert, check, e2b, make, notHere, pause, refuses, shared, surface, until,
} from '../lane.mjs'

const { AuthenticationError, InvalidArgumentError, SandboxError, SandboxNotFoundError, TimeoutError } = e2b
const left = (info) => (info.endAt.getTime() - Date.now()) / 1000

{
  const bound = new e2b.Sandbox({ sandboxId: 'x', envdVersion: '0.6.13', apiKey: 'e2b_00' })
  const api = Object.getPrototypeOf(e2b.Sandbox)
  // Types mark these as protected or private; JavaScript does not.
  const hidden = [
    'Sandbox.createSandbox', 'Sandbox.forkSandbox', 'Sandbox.connectSandbox', 'Sandbox.resolveApiOpts', 'Sandbox.fileUrl', 'commands.start',
    'git.runGit', 'git.runShell', 'git.getRemoteUrl', 'git.resolveRemoteName', 'git.withRemoteCredentials', 'git.hasUpstream',
    'CommandHandle.flushDecoders', 'CommandHandle.iterateEvents', 'CommandHandle.handleEvents', 'WatchHandle.iterateEvents', 'WatchHandle.handleEvents',
    // These print a template on the client.
    'Template.toJSON', 'Template.toDockerfile',
  ]
  const part = (object) => [object.constructor.prototype]
  const handle = await probeHandles(bound)
  surface({
    Sandbox: [e2b.Sandbox, e2b.Sandbox.prototype, api, api.prototype], commands: part(bound.commands), pty: part(bound.pty),
    files: part(bound.files), git: part(bound.git), ...handle, Template: [e2b.Template], Volume: [e2b.Volume], volume: [e2b.Volume.prototype],
    Secret: [e2b.Secret], SandboxPaginator: part(e2b.Sandbox.list({ apiKey: 'e2b_00' })),
    SnapshotPaginator: part(e2b.Sandbox.listSnapshots({ apiKey: 'e2b_00' })), SecretPaginator: part(e2b.Secret.list({ apiKey: 'e2b_00' })),
  }, hidden)
}

// The handles' classes are not exported: one of each is made on a real sandbox.
async function probeHandles() {
  const sandbox = await e2b.Sandbox.create(TEMPLATE, { metadata: MARK, timeoutMs: 60_000 })
  try {
    const command = await sandbox.commands.run('true', { background: true })
    const watch = await sandbox.files.watchDir('/tmp', () => {})
    await watch.stop()
    return { CommandHandle: [Object.getPrototypeOf(command)], WatchHandle: [Object.getPrototypeOf(watch)] }
  } finally {
    await sandbox.kill()
  }
}

check('create and kill', { works: ['Sandbox.create', 'Sandbox.is_running', 'Sandbox.kill'], fails: ['Sandbox.is_running', 'Sandbox.kill'], quick: true }, async () => {
  const sandbox = await Sandbox.create(TEMPLATE, { metadata: MARK, timeoutMs: 60_000 })
  assert.match(sandbox.sandboxId, /^[a-z0-9]+$/)
  assert.equal(await sandbox.isRunning(), true)
  assert.equal(await sandbox.kill(), true)
  assert.equal(await sandbox.isRunning(), false)
  assert.equal(await sandbox.kill(), false)
  assert.equal(await Sandbox.kill(NOBODY), false)
})

check('create with every option', { works: ['Sandbox.create', 'Sandbox.get_info', 'Sandbox.get_full_info'] }, async () => {
  const metadata = { plain: '1', 'with space': 'a&b=c', 'percent%': 'ä ö/ü', empty: '' }
  const sandbox = await make({
    timeoutMs: 61_000,
    metadata,
    envs: { GREETING: 'hello there', EMPTY: '' },
    secure: true,
    allowInternetAccess: false,
    network: { allowPublicTraffic: true, maskRequestHost: 'guest.example:${PORT}' },
    lifecycle: { onTimeout: 'kill', autoResume: false },
  })
  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.deepEqual(info.metadata, { ...MARK, ...metadata })
  assert.equal(info.state, 'running')
  assert.equal(info.envdVersion, '0.6.13')
  assert.ok(info.templateId && info.cpuCount >= 1 && info.memoryMB >= 128)
  const life = (info.endAt - info.startedAt) / 1000
  assert.ok(life > 50 && life <= 75, `lives ${life} s`)
  assert.equal(info.allowInternetAccess, false)
  const full = await Sandbox.getFullInfo(sandbox.sandboxId)
  assert.equal(full.sandboxId, sandbox.sandboxId)
  const run = await sandbox.commands.run('printf "%s|%s|%s" "$GREETING" "${EMPTY-unset}" "$E2B_SANDBOX_ID"')
  assert.equal(run.stdout, `hello there||${sandbox.sandboxId}`)
})

check('create refused', { fails: ['Sandbox.create'] }, async () => {
  await refuses(Sandbox.create('no-such-template', { metadata: MARK }), SandboxError, /40[04]: .*no-such-template/)
  await refuses(Sandbox.create(TEMPLATE, { metadata: MARK, apiKey: OTHER_KEY }), AuthenticationError)
  await refuses(Sandbox.create(TEMPLATE, { metadata: MARK, apiKey: 'not a key' }), AuthenticationError)
  for (const opts of [
    { timeoutMs: -1000 }, { timeoutMs: 1e12 }, { network: { denyOut: ['not an address'] } }, { network: { denyOut: ['some.host.example'] } },
    { network: { allowOut: ['some.host.example'] } }, { network: { maskRequestHost: 'a b' } },
  ]) {
    await refuses(Sandbox.create(TEMPLATE, { metadata: MARK, timeoutMs: 30_000, ...opts }), SandboxError, /400: /)
  }
  await refuses(Sandbox.create(TEMPLATE, { metadata: MARK, lifecycle: { onTimeout: 'kill', autoResume: true } }), InvalidArgumentError)
})

check('connect by id from another client', { works: ['Sandbox.connect', 'Sandbox.get_info'] }, async () => {
  const sandbox = await make({ timeoutMs: 200_000 })
  await sandbox.files.write('/tmp/left-by-first', 'still here')
  const same = await Sandbox.connect(sandbox.sandboxId)
  assert.equal(await same.files.read('/tmp/left-by-first'), 'still here')
  await same.connect({ timeoutMs: 30_000 })
  assert.ok(left(await sandbox.getInfo()) > 150, 'connect shortened the time')
  await same.connect({ timeoutMs: 500_000 })
  assert.ok(left(await sandbox.getInfo()) > 400)
})

check('a sandbox nobody knows', {
  fails: ['Sandbox.connect', 'Sandbox.get_info', 'Sandbox.get_full_info', 'Sandbox.set_timeout', 'Sandbox.get_metrics', 'Sandbox.update_network'],
}, async () => {
  await refuses(Sandbox.connect(NOBODY), SandboxNotFoundError)
  await refuses(Sandbox.getInfo(NOBODY), SandboxNotFoundError)
  await refuses(Sandbox.getFullInfo(NOBODY), SandboxNotFoundError)
  await refuses(Sandbox.setTimeout(NOBODY, 30_000), SandboxNotFoundError)
  await refuses(Sandbox.getMetrics(NOBODY), SandboxNotFoundError)
  await refuses(Sandbox.updateNetwork(NOBODY, { denyOut: ['8.8.8.8'] }), SandboxNotFoundError)
})

check('set timeout is absolute', { works: ['Sandbox.set_timeout', 'Sandbox.get_info'], fails: ['Sandbox.set_timeout'] }, async () => {
  const sandbox = await make({ timeoutMs: 60_000 })
  await sandbox.setTimeout(600_000)
  assert.ok(left(await sandbox.getInfo()) > 500)
  await Sandbox.setTimeout(sandbox.sandboxId, 100_000)
  const seconds = left(await sandbox.getInfo())
  assert.ok(seconds > 50 && seconds <= 110, `${seconds} s`)
  await refuses(sandbox.setTimeout(-5000), SandboxError, /400: /)
})

check('time runs out', { works: ['Sandbox.set_timeout', 'Sandbox.is_running'], fails: ['Sandbox.connect', 'commands.run'] }, async () => {
  const sandbox = await make({ timeoutMs: 60_000 })
  await sandbox.setTimeout(1000)
  await until('the sandbox ended by itself', async () => !(await sandbox.isRunning()), 15_000)
  const answer = () => Sandbox.connect(sandbox.sandboxId).catch((error) => error)
  // While it is being ended the answer is a conflict.
  await until('the sandbox is not found', async () => !/^409: /.test((await answer()).message), 15_000)
  await refuses(Sandbox.connect(sandbox.sandboxId), SandboxNotFoundError)
  await refuses(sandbox.commands.run('echo too late'), SandboxNotFoundError)
})

check('metrics', { works: ['Sandbox.get_metrics'] }, async () => {
  const sandbox = await shared()
  const samples = await until('a first measurement', async () => {
    const found = await sandbox.getMetrics()
    return found.length ? found : null
  }, 30_000)
  const last = samples.at(-1)
  assert.ok(last.cpuCount >= 1 && last.cpuUsedPct >= 0)
  assert.ok(last.memUsed > 0 && last.memUsed <= last.memTotal)
  assert.ok(last.diskUsed >= 0 && last.diskUsed <= last.diskTotal)
  const soon = new Date(Date.now() + 3600_000)
  assert.deepEqual(await Sandbox.getMetrics(sandbox.sandboxId, { start: soon, end: new Date(soon.getTime() + 1000) }), [])
})

check('list', { works: ['Sandbox.list', 'SandboxPaginator.next_items'], quick: true }, async () => {
  const sandbox = await shared()
  const pages = Sandbox.list({ query: { metadata: MARK, state: ['running'] } })
  const items = []
  while (pages.hasNext) items.push(...(await pages.nextItems()))
  const mine = items.filter((item) => item.sandboxId === sandbox.sandboxId)
  assert.equal(mine.length, 1)
  assert.equal(mine[0].state, 'running')
  assert.deepEqual(mine[0].metadata, MARK)
})

check('list by metadata, in pages, in order', { works: ['Sandbox.list', 'SandboxPaginator.next_items'], fails: ['SandboxPaginator.next_items', 'Sandbox.list'] }, async () => {
  const odd = { 'k y': 'v&1=2', 'per%cent': '50 % + ä/ö?#' }
  const ids = []
  for (let i = 0; i < 3; i++) ids.push((await make({ metadata: odd })).sandboxId)
  for (const [order, want] of [[undefined, ids.toReversed?.() ?? [...ids].reverse()], ['asc', ids]]) {
    const pages = Sandbox.list({ query: { metadata: { ...MARK, ...odd } }, limit: 2, ...(order && { order }) })
    const first = await pages.nextItems()
    assert.equal(pages.hasNext, true)
    assert.ok(pages.nextToken)
    const second = await pages.nextItems()
    assert.equal(pages.hasNext, false)
    assert.deepEqual([...first, ...second].map((item) => item.sandboxId), want)
    await refuses(pages.nextItems(), Error, /No more items/)
  }
  const none = Sandbox.list({ query: { metadata: { ...MARK, 'k y': 'v&1' } } })
  assert.deepEqual(await none.nextItems(), [])
  await refuses(Sandbox.list({ nextToken: 'no token of yours' }).nextItems(), SandboxError, /400: /)
  await refuses(Sandbox.list({ apiKey: OTHER_KEY }).nextItems(), AuthenticationError)
})

check('sixteen in parallel', { works: ['Sandbox.create', 'commands.run', 'Sandbox.kill'] }, async () => {
  const count = 16
  const sandboxes = await Promise.all(Array.from({ length: count }, () => make()))
  assert.equal(new Set(sandboxes.map((s) => s.sandboxId)).size, count)
  const answers = await Promise.all(
    sandboxes.map(async (s, n) => {
      await s.files.write('/tmp/mine', String(n))
      return (await s.commands.run('cat /tmp/mine')).stdout
    })
  )
  assert.deepEqual(answers, sandboxes.map((_, n) => String(n)))
  assert.deepEqual(await Promise.all(sandboxes.map((s) => s.kill())), sandboxes.map(() => true))
})

check('kill ends a stream', { works: ['Sandbox.kill'], fails: ['handle.wait'] }, async () => {
  const sandbox = await make()
  const handle = await sandbox.commands.run('while true; do echo tick; sleep 0.2; done', { background: true, timeoutMs: 60_000 })
  const waiting = refuses(handle.wait(), TimeoutError)
  await pause(1000)
  assert.equal(await sandbox.kill(), true)
  await waiting
})

check('older wire without security', { works: ['Sandbox.create', 'Sandbox.download_url'] }, async () => {
  if (NAME !== 'js-older') notHere('this release secures every sandbox')
  const sandbox = await make({ secure: false })
  assert.ok(!(await sandbox.downloadUrl('/etc/hostname')).includes('signature'))
  assert.equal((await sandbox.commands.run('echo open')).stdout, 'open\n')
  await refuses(sandbox.downloadUrl('/etc/hostname', { useSignatureExpiration: 10 }), InvalidArgumentError)
})
