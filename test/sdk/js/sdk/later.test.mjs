// Pause, fork, snapshots, template builds, volumes, secrets. Each test counts from the day its route is served.
import {
  NAME, NOBODY, OTHER_KEY, RUN, Sandbox, Secret, TEMPLATE, Template, Volume, MARK, api, assert, check, e2b, landed, make, pause, refuses, shared, until,
} from '../lane.mjs'

const { AuthenticationError, BuildError, FileNotFoundError, InvalidArgumentError, SandboxError, SandboxNotFoundError } = e2b
const { SecretNotFoundError, VolumeNotFoundError, VolumePathNotFoundError } = e2b
const NONE = 'no-such-thing'
const unique = (what) => `${what}-${RUN}-${NAME}`.toLowerCase()

check('pause and resume', { works: ['Sandbox.pause', 'Sandbox.connect', 'Sandbox.list'], fails: ['Sandbox.pause'] }, async () => {
  await landed('POST', `/sandboxes/${NOBODY}/pause`, {})
  const sandbox = await make({ timeoutMs: 300_000 })
  await sandbox.commands.run('n=0; while true; do n=$((n+1)); echo $n > /tmp/c.new; mv /tmp/c.new /tmp/c; sleep 0.1; done', { background: true, timeoutMs: 0 })
  await until('the first count', () => sandbox.files.exists('/tmp/c'))
  assert.equal(await sandbox.pause(), true)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  const listed = await Sandbox.list({ query: { metadata: MARK, state: ['paused'] } }).nextItems()
  assert.ok(listed.some((item) => item.sandboxId === sandbox.sandboxId))
  assert.equal(await sandbox.pause(), false)
  const resumed = await Sandbox.connect(sandbox.sandboxId)
  const count = async () => Number(await resumed.files.read('/tmp/c'))
  const first = await count()
  await pause(500)
  assert.ok((await count()) > first, 'the process does not go on')
  await refuses(Sandbox.pause(NOBODY), SandboxNotFoundError)
})

check('beta pause', { works: ['Sandbox.beta_pause', 'Sandbox.kill'], fails: ['Sandbox.beta_pause'] }, async () => {
  await landed('POST', `/sandboxes/${NOBODY}/pause`, {})
  const sandbox = await make()
  assert.equal(await sandbox.betaPause(), true)
  assert.equal(await sandbox.betaPause(), false)
  assert.equal(await sandbox.kill(), true)
})

check('fork', { works: ['Sandbox.fork'], fails: ['Sandbox.fork'] }, async () => {
  await landed('POST', `/sandboxes/${NOBODY}/fork`, { count: 1 })
  const sandbox = await make()
  await sandbox.files.write('/home/user/state', 'before')
  const forks = await sandbox.fork({ count: 2, timeoutMs: 60_000 })
  try {
    assert.equal(new Set([sandbox, ...forks].map((s) => s.sandboxId)).size, 3)
    for (const fork of forks) {
      assert.equal(await fork.files.read('/home/user/state'), 'before')
      await fork.files.write('/home/user/state', 'in a fork')
    }
    assert.equal(await sandbox.files.read('/home/user/state'), 'before')
  } finally {
    await Promise.allSettled(forks.map((fork) => fork.kill?.()))
  }
  await refuses(Sandbox.fork(NOBODY), SandboxNotFoundError)
})

check('snapshots', {
  works: ['Sandbox.create_snapshot', 'Sandbox.list_snapshots', 'SnapshotPaginator.next_items', 'Sandbox.delete_snapshot'],
  fails: ['Sandbox.create_snapshot', 'Sandbox.list_snapshots', 'SnapshotPaginator.next_items', 'Sandbox.delete_snapshot'],
}, async () => {
  await landed('POST', `/sandboxes/${NOBODY}/snapshots`, {})
  await landed('GET', '/snapshots')
  const sandbox = await make()
  await sandbox.files.write('/home/user/state', 'in the snapshot')
  const snapshot = await sandbox.createSnapshot({ name: unique('snap') })
  try {
    const copy = await make({}, snapshot.snapshotId)
    assert.equal(await copy.files.read('/home/user/state'), 'in the snapshot')
    const listed = await sandbox.listSnapshots().nextItems()
    assert.ok(listed.some((s) => s.snapshotId === snapshot.snapshotId))
  } finally {
    assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  }
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
  await refuses(Sandbox.createSnapshot(NOBODY), SandboxNotFoundError)
  await refuses(Sandbox.listSnapshots({ apiKey: OTHER_KEY }).nextItems(), AuthenticationError)
})

const steps = () => e2b.Template().fromTemplate(TEMPLATE).setEnvs({ BUILT: 'yes' }).runCmd('echo built > /home/user/built')

check('build, use, tag', {
  works: ['Template.build', 'Template.build_in_background', 'Template.get_build_status', 'Template.get_tags', 'Template.assign_tags', 'Template.remove_tags'],
  fails: ['Template.build', 'Template.build_in_background', 'Template.get_build_status', 'Template.get_tags', 'Template.assign_tags', 'Template.remove_tags'],
}, async () => {
  await landed('POST', '/v3/templates', {})
  const name = unique('built')
  const logs = []
  const info = await Template.build(steps(), `${name}:v1`, { cpuCount: 1, memoryMB: 512, onBuildLogs: (entry) => logs.push(entry) })
  assert.ok(info.templateId && info.buildId && logs.length)
  assert.equal((await Template.getBuildStatus(info)).status, 'ready')
  const sandbox = await make({}, `${name}:v1`)
  assert.equal(await sandbox.files.read('/home/user/built'), 'built\n')
  await Template.assignTags(`${name}:v1`, ['stable'])
  assert.ok((await Template.getTags(info.templateId)).some((t) => t.tag === 'stable'))
  await Template.removeTags(name, ['stable'])
  const later = await Template.buildInBackground(steps(), unique('background'))
  await until('the build ended', async () => (await Template.getBuildStatus(later)).status === 'ready', 90_000)
  await refuses(Template.build(e2b.Template().fromTemplate(TEMPLATE).runCmd('exit 9'), unique('broken')), BuildError)
  await refuses(Template.buildInBackground(steps(), 'Not A Name!'), Error)
  await refuses(Template.getBuildStatus({ templateId: NONE, buildId: NONE }), Error)
  await refuses(Template.getTags(NONE), Error)
  await refuses(Template.assignTags(`${NONE}:v1`, ['x']), Error)
  await refuses(Template.removeTags(NONE, ['x']), Error)
})

check('names of templates', { works: ['Template.exists', 'Template.alias_exists'], fails: ['Template.exists', 'Template.alias_exists'] }, async () => {
  await landed('GET', `/templates/aliases/${NONE}`)
  assert.equal(await Template.exists(TEMPLATE), true)
  assert.equal(await Template.aliasExists(TEMPLATE), true)
  assert.equal(await Template.exists(NONE), false)
  assert.equal(await Template.aliasExists(NONE), false)
})

check('mcp', { works: ['Sandbox.get_mcp_url', 'Sandbox.get_mcp_token'], fails: ['Sandbox.get_mcp_token', 'Sandbox.create'] }, async () => {
  const sandbox = await make()
  assert.equal(sandbox.getMcpUrl(), `https://50005-${sandbox.sandboxId}.${sandbox.sandboxDomain}/mcp`)
  await refuses(sandbox.getMcpToken(), FileNotFoundError)
  await sandbox.files.write('/etc/mcp-gateway/.token', 'the token', { user: 'root' })
  assert.equal(await sandbox.getMcpToken(), 'the token')
  await refuses(Sandbox.create({ metadata: MARK, mcp: { nothing: {} } }), SandboxError)
  const templates = await (await api('GET', '/templates')).json()
  if (!templates.some((t) => t.aliases.includes('mcp-gateway'))) return // not built for this run
  const served = await Sandbox.create({ metadata: MARK, timeoutMs: 120_000, mcp: {} })
  try {
    const token = await served.getMcpToken()
    const ask = `curl -s -o /tmp/answer -w '%{http_code}' -H 'Content-Type: application/json' -d '{"jsonrpc":"2.0","id":1,"method":"ping"}' http://127.0.0.1:50005/mcp`
    assert.equal((await served.commands.run(`${ask} -H 'Authorization: Bearer ${token}'; cat /tmp/answer`)).stdout, '200{"jsonrpc": "2.0", "id": 1, "result": {}}')
    assert.equal((await served.commands.run(ask)).stdout, '401')
    assert.equal(await served.files.read('/etc/mcp-gateway/.token', { user: 'root' }), token)
  } finally {
    await served.kill()
  }
})

check('volumes', {
  works: ['Volume.create', 'Volume.get_info', 'Volume.list', 'Volume.connect', 'Volume.destroy'],
  fails: ['Volume.create', 'Volume.get_info', 'Volume.list', 'Volume.connect', 'Volume.destroy'],
}, async () => {
  await landed('GET', '/volumes')
  const volume = await Volume.create(unique('vol'))
  try {
    assert.equal((await Volume.getInfo(volume.volumeId)).name, unique('vol'))
    assert.ok((await Volume.list()).some((v) => v.volumeId === volume.volumeId))
    assert.equal((await Volume.connect(volume.volumeId)).name, unique('vol'))
    await refuses(Volume.create(unique('vol')), Error)
    await refuses(Volume.getInfo(NONE), VolumeNotFoundError)
    await refuses(Volume.connect(NONE), VolumeNotFoundError)
    await refuses(Volume.list({ apiKey: OTHER_KEY }), AuthenticationError)
  } finally {
    assert.equal(await Volume.destroy(volume.volumeId), true)
  }
  assert.equal(await Volume.destroy(volume.volumeId), false)
})

const content = ['volume.list', 'volume.make_dir', 'volume.exists', 'volume.get_info', 'volume.update_metadata', 'volume.read_file', 'volume.write_file', 'volume.remove']
check('content of volumes', { works: content, fails: content }, async () => {
  await landed('GET', '/volumes')
  const volume = await Volume.create(unique('content'))
  try {
    await volume.makeDir('/d/e', { force: true })
    await volume.writeFile('/d/f', 'content')
    assert.equal(await volume.readFile('/d/f'), 'content')
    assert.deepEqual((await volume.list('/d')).map((e) => e.name).sort(), ['e', 'f'])
    assert.deepEqual([await volume.exists('/d/f'), await volume.exists('/d/none')], [true, false])
    assert.equal((await volume.getInfo('/d/f')).size, 7)
    assert.equal((await volume.updateMetadata('/d/f', { mode: 0o600 })).mode & 0o777, 0o600)
    await volume.remove('/d/f')
    for (const call of ['readFile', 'getInfo', 'list', 'remove']) await refuses(volume[call]('/d/f'), VolumePathNotFoundError)
    await refuses(volume.updateMetadata('/d/f', { mode: 0o600 }), VolumePathNotFoundError)
    await refuses(volume.makeDir('/d/e'), Error)
    await refuses(volume.writeFile('/d/e', 'is a folder'), Error)
  } finally {
    await Volume.destroy(volume.volumeId)
  }
})

check('placeholders of secrets', { works: ['Secret.fill', 'Secret.iam_token'], fails: ['Secret.fill'] }, async () => {
  assert.equal(Secret.fill('my-key'), '${e2b.secrets.my-key}')
  assert.throws(() => Secret.fill('no{brace}'), InvalidArgumentError)
  assert.equal(Secret.iamToken({ audience: 'sts.example', tokenType: 'JWT-SVID' }).audience, 'sts.example')
})

check('secrets', {
  works: ['Secret.create', 'Secret.update', 'Secret.get_info', 'Secret.list', 'SecretPaginator.next_items', 'Secret.exists', 'Secret.destroy'],
  fails: ['Secret.create', 'Secret.update', 'Secret.get_info', 'Secret.list', 'SecretPaginator.next_items', 'Secret.exists', 'Secret.destroy'],
}, async () => {
  await landed('GET', '/secrets')
  const name = unique('secret')
  const made = await Secret.create(name, 'the value', { metadata: { env: 'test' } })
  try {
    assert.deepEqual([made.name, made.metadata], [name, { env: 'test' }])
    await Secret.update(made.secretId, 'another')
    assert.equal((await Secret.getInfo(name)).secretId, made.secretId)
    assert.ok((await Secret.list().nextItems()).some((s) => s.secretId === made.secretId))
    assert.deepEqual([await Secret.exists(name), await Secret.exists(NONE)], [true, false])
    await refuses(Secret.create(name, 'again'), Error)
    await refuses(Secret.getInfo(NONE), SecretNotFoundError)
    await refuses(Secret.update(NONE, 'x'), SecretNotFoundError)
    await refuses(Secret.list({ apiKey: OTHER_KEY }).nextItems(), AuthenticationError)
  } finally {
    assert.equal(await Secret.destroy(made.secretId), true)
  }
  assert.equal(await Secret.destroy(made.secretId), false)
})
