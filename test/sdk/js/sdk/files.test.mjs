// Files: what is written is what is read, in every form; folders, links, metadata, watching, signed addresses.
import { createHash, randomBytes } from 'node:crypto'
import { DOMAIN, Sandbox, assert, check, e2b, fetchRaw, newFolder, refuses, routed, shared, until } from '../lane.mjs'

const { AuthenticationError, FileNotFoundError, FileType, FilesystemEventType, InvalidArgumentError, SandboxError } = e2b
const RANDOM = randomBytes(300_000)
const sum = (data) => createHash('sha256').update(data).digest('hex')
const buffer = (data) => data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)
const whole = async (stream) => {
  const parts = []
  for await (const part of stream) parts.push(part)
  return Buffer.concat(parts)
}

check('write and read', { works: ['files.write', 'files.read'], quick: true }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const text = 'Grüße, 世界\n'
  const written = await sbx.files.write(`${at}/a.txt`, text)
  assert.deepEqual([written.name, written.path, written.type], ['a.txt', `${at}/a.txt`, 'file'])
  assert.equal(await sbx.files.read(`${at}/a.txt`), text)
  assert.equal(Buffer.from(await sbx.files.read(`${at}/a.txt`, { format: 'bytes' })).toString(), text)
  assert.equal(await (await sbx.files.read(`${at}/a.txt`, { format: 'blob' })).text(), text)
  assert.equal((await whole(await sbx.files.read(`${at}/a.txt`, { format: 'stream' }))).toString(), text)
  await sbx.files.write(`${at}/empty`, '')
  assert.equal(await sbx.files.read(`${at}/empty`), '')
})

check('ways to upload', { works: ['files.write', 'files.read'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const stream = () => new Blob([RANDOM]).stream()
  for (const opts of [{}, { useOctetStream: true }, { gzip: true }]) {
    for (const [name, data, want] of [
      ['text', 'text ä', Buffer.from('text ä')], ['array', buffer(RANDOM), RANDOM], ['blob', new Blob([RANDOM]), RANDOM], ['stream', stream(), RANDOM],
    ]) {
      await sbx.files.write(`${at}/${name}`, data, opts)
      assert.equal(sum(await sbx.files.read(`${at}/${name}`, { format: 'bytes' })), sum(want), `${name} ${JSON.stringify(opts)}`)
    }
  }
  assert.equal(sum(await sbx.files.read(`${at}/array`, { format: 'bytes', gzip: true })), sum(RANDOM))
})

check('paths', { works: ['files.write', 'files.read', 'files.list'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const name = at.replace('/home/user/', '')
  assert.equal((await sbx.files.write(`${name}/deep/er/still.txt`, 'made its parents')).path, `${at}/deep/er/still.txt`)
  const odd = ['with space', 'quote\'s', 'ünï', 'percent%20', 'plus+and&', '-dash', 'semi;colon']
  for (const file of odd) {
    await sbx.files.write(`${at}/${file}`, file)
    assert.equal(await sbx.files.read(`${at}/${file}`), file)
  }
  const listed = (await sbx.files.list(at)).filter((e) => e.type === FileType.FILE).map((e) => e.name)
  assert.deepEqual(listed.sort(), [...odd].sort())
})

check('many files', { works: ['files.write_files'], fails: ['files.write_files'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const files = Array.from({ length: 30 }, (_, n) => ({ path: `${at}/many/${n}`, data: `number ${n}` }))
  assert.deepEqual((await sbx.files.writeFiles(files)).map((w) => w.path), files.map((f) => f.path))
  assert.equal(await sbx.files.read(`${at}/many/29`), 'number 29')
  assert.deepEqual(await sbx.files.writeFiles([]), [])
  await refuses(sbx.files.writeFiles([{ path: `${at}/ok`, data: 'x' }, { path: at, data: 'is a folder' }]), SandboxError)
})

check('metadata', { works: ['files.write', 'files.get_info', 'files.list'], fails: ['files.write'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const metadata = { origin: 'a test', version: '1' }
  assert.deepEqual((await sbx.files.write(`${at}/m`, 'x', { metadata })).metadata, metadata)
  assert.deepEqual((await sbx.files.getInfo(`${at}/m`)).metadata, metadata)
  assert.deepEqual((await sbx.files.list(at))[0].metadata, metadata)
  await refuses(sbx.files.write(`${at}/m`, 'x', { metadata: { 'a b': 'x' } }), InvalidArgumentError)
})

check('where the user has no right', { works: ['files.write', 'files.read', 'files.make_dir', 'files.rename', 'files.remove'] }, async () => {
  const sbx = await shared()
  const at = `/srv/${crypto.randomUUID()}`
  assert.equal((await sbx.files.write(`${at}/deep/f`, 'mine')).path, `${at}/deep/f`)
  assert.equal(await sbx.files.makeDir(`${at}/d`), true)
  for (const name of ['', '/deep', '/deep/f', '/d']) assert.equal((await sbx.files.getInfo(at + name)).owner, 'user', name)
  await sbx.files.write('/root/closed/f', "root's", { user: 'root' })
  await sbx.commands.run('chmod 700 /root/closed', { user: 'root' })
  assert.equal(await sbx.files.read('/root/closed/f'), "root's")
  assert.equal((await sbx.files.rename('/root/closed/f', `${at}/moved`)).path, `${at}/moved`)
  for (const path of ['/root/closed', at]) {
    await sbx.files.remove(path)
    assert.equal(await sbx.files.exists(path), false)
  }
})

check('what cannot be read or written', { fails: ['files.read', 'files.write'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  for (const format of ['text', 'bytes', 'stream']) await refuses(sbx.files.read(`${at}/none`, { format }), FileNotFoundError)
  await refuses(sbx.files.read(at), InvalidArgumentError)
  await refuses(sbx.files.read('/etc/hostname', { user: 'nobody-here' }), AuthenticationError)
  await refuses(sbx.files.write(at, 'is a folder'), SandboxError)
  await refuses(sbx.files.write(`${at}/x`, 'x', { user: 'nobody-here' }), AuthenticationError)
})

check('folders', {
  works: ['files.list', 'files.make_dir', 'files.exists', 'files.get_info', 'files.rename', 'files.remove'],
  fails: ['files.list', 'files.make_dir', 'files.exists', 'files.get_info', 'files.rename', 'files.remove'],
}, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  assert.equal(await sbx.files.makeDir(`${at}/d1/d11`), true)
  assert.equal(await sbx.files.makeDir(`${at}/d1/d11`), false)
  await sbx.files.write(`${at}/f`, '12345')
  await sbx.commands.run('ln -s f link; chmod 640 f', { cwd: at })
  const one = Object.fromEntries((await sbx.files.list(at)).map((e) => [e.name, e]))
  assert.deepEqual(Object.keys(one).sort(), ['d1', 'f', 'link'])
  assert.deepEqual([one.d1.type, one.d1.permissions, one.d1.owner], [FileType.DIR, 'drwxr-xr-x', 'user'])
  assert.deepEqual([one.f.type, one.f.size, one.f.permissions], [FileType.FILE, 5, '-rw-r-----'])
  assert.equal(one.link.symlinkTarget, `${at}/f`)
  assert.equal((await sbx.files.list(at, { depth: 2 })).length, 4)
  assert.ok(Math.abs(Date.now() - one.f.modifiedTime.getTime()) < 60_000)
  assert.equal(await sbx.files.exists(`${at}/f`), true)
  assert.equal(await sbx.files.exists(`${at}/none`), false)
  const entry = await sbx.files.rename(`${at}/f`, `${at}/g`)
  assert.deepEqual([entry.name, entry.path], ['g', `${at}/g`])
  await sbx.files.remove(`${at}/d1`)
  assert.equal(await sbx.files.exists(`${at}/d1`), false)
  await sbx.files.remove(`${at}/never-was`)
  await refuses(sbx.files.list(`${at}/none`), FileNotFoundError)
  await refuses(sbx.files.list(at, { depth: 0 }), InvalidArgumentError)
  await refuses(sbx.files.makeDir(`${at}/g`), InvalidArgumentError)
  await refuses(sbx.files.getInfo(`${at}/none`), FileNotFoundError)
  await refuses(sbx.files.rename(`${at}/none`, `${at}/other`), FileNotFoundError)
  await refuses(sbx.files.exists(at, { user: 'nobody-here' }), AuthenticationError)
  await refuses(sbx.files.remove(at, { user: 'nobody-here' }), AuthenticationError)
})

check('watch', { works: ['files.watch_dir', 'watch.stop'], fails: ['files.watch_dir'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const events = []
  const exits = []
  const watch = await sbx.files.watchDir(at, (event) => void events.push(event), { recursive: true, includeEntry: true, onExit: (err) => void exits.push(err) })
  const sees = (type, name) =>
    until(() => `${type} ${name}, not only ${JSON.stringify(events.map((e) => [e.type, e.name]))}`, () => events.find((e) => e.type === type && e.name === name))
  await sbx.files.write(`${at}/f`, 'x')
  assert.equal((await sees(FilesystemEventType.WRITE, 'f')).entry.path, `${at}/f`)
  await sbx.files.makeDir(`${at}/new/deeper`)
  await sees(FilesystemEventType.CREATE, 'new')
  await sbx.files.write(`${at}/new/deeper/g`, 'x')
  await sees(FilesystemEventType.WRITE, 'new/deeper/g')
  await sbx.files.rename(`${at}/f`, `${at}/h`)
  await sees(FilesystemEventType.RENAME, 'f')
  await sbx.files.remove(`${at}/h`)
  await sees(FilesystemEventType.REMOVE, 'h')
  await watch.stop()
  await until('the watch told its end', () => exits.length)
  await refuses(sbx.files.watchDir(`${at}/none`, () => {}), FileNotFoundError)
  await refuses(sbx.files.watchDir('/etc/hostname', () => {}), SandboxError)
})

const form = (name, text) => {
  const body = `--cut\r\nContent-Disposition: form-data; name="file"; filename="${name}"\r\nContent-Type: application/octet-stream\r\n\r\n${text}\r\n--cut--\r\n`
  return { method: 'POST', body, headers: { 'Content-Type': 'multipart/form-data; boundary=cut', 'Content-Length': Buffer.byteLength(body) } }
}
const send = (url, sbx, opts = {}) => fetchRaw(url, { ...opts, headers: { ...opts.headers, ...routed(sbx) } })

check('signed addresses', { works: ['Sandbox.upload_url', 'Sandbox.download_url'], fails: ['Sandbox.upload_url', 'Sandbox.download_url'] }, async () => {
  const [sbx, at] = [await shared(), await newFolder()]
  const up = await sbx.uploadUrl(`${at}/up`, { useSignatureExpiration: 60 })
  assert.equal((await send(up, sbx, form('up', 'by url'))).status, 200)
  const down = await sbx.downloadUrl(`${at}/up`)
  assert.deepEqual([(await send(down, sbx)).status, (await send(down, sbx)).text], [200, 'by url'])
  assert.equal((await send(down.split('&signature=')[0], sbx)).status, 401)
  assert.equal((await send(down + 'x', sbx)).status, 401)
  assert.equal((await send(await sbx.downloadUrl(`${at}/up`, { useSignatureExpiration: -10 }), sbx)).status, 401)
  assert.equal((await send(down, sbx, form('up', 'y'))).status, 401)
  const late = await sbx.uploadUrl(`${at}/up`, { useSignatureExpiration: -10 })
  assert.equal((await send(late, sbx, form('up', 'y'))).status, 401)
  assert.equal(await sbx.files.read(`${at}/up`), 'by url')
})

check('signed addresses through the edge', { works: ['Sandbox.upload_url', 'Sandbox.download_url'] }, async () => {
  const sbx = await shared()
  const url = process.env.E2B_SANDBOX_URL
  delete process.env.E2B_SANDBOX_URL
  try {
    const same = await Sandbox.connect(sbx.sandboxId, { domain: DOMAIN })
    const up = await same.uploadUrl('/home/user/by-edge', { useSignatureExpiration: 60 })
    assert.ok(up.startsWith(`https://49983-${sbx.sandboxId}.`), up)
    assert.equal((await fetchRaw(up, { ...form('x', 'through the edge'), edge: true })).status, 200)
    const down = await same.downloadUrl('/home/user/by-edge')
    assert.equal((await fetchRaw(down, { edge: true })).text, 'through the edge')
    assert.equal((await fetchRaw(down.split('&signature')[0], { edge: true })).status, 401)
  } finally {
    process.env.E2B_SANDBOX_URL = url
  }
})
