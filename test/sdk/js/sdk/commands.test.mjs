// Commands and terminals: output, codes, users, places, input, time, handles, job control.
import { Sandbox, assert, check, e2b, make, pause, refuses, shared, until } from '../lane.mjs'

const { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, SandboxError, SandboxNotFoundError, TimeoutError } = e2b
const NO_PID = 999_999

check('run', { works: ['commands.run'], fails: ['commands.run'], quick: true }, async () => {
  const sbx = await shared()
  const done = await sbx.commands.run('echo "Hello, $((40+2))"; echo oops >&2')
  assert.deepEqual([done.exitCode, done.stdout, done.stderr, done.error], [0, 'Hello, 42\n', 'oops\n', undefined])
  const failed = await refuses(sbx.commands.run('echo out; echo err >&2; exit 7'), CommandExitError)
  assert.deepEqual([failed.exitCode, failed.stdout, failed.stderr], [7, 'out\n', 'err\n'])
})

check('not found, and killed', { fails: ['commands.run'] }, async () => {
  const sbx = await shared()
  const missing = await refuses(sbx.commands.run('no-such-program-at-all'), CommandExitError)
  assert.equal(missing.exitCode, 127)
  const killed = await refuses(sbx.commands.run('echo before; kill -KILL $$'), CommandExitError)
  assert.notEqual(killed.exitCode, 0)
  assert.match(killed.error, /killed/)
  assert.equal(killed.stdout, 'before\n')
})

check('output as it is', { works: ['commands.run'] }, async () => {
  const sbx = await shared()
  for (const TEXT of ['!@#$%^&*()_+[]{};\'<>?/|~', 'two\nlines', 'ünïcödé 漢字 🜏', 'tab\tand  spaces']) {
    assert.equal((await sbx.commands.run('printf %s "$TEXT"', { envs: { TEXT } })).stdout, TEXT)
  }
  assert.equal((await sbx.commands.run("printf '\\342'; sleep 0.2; printf '\\202\\254'")).stdout, '€')
  const much = await sbx.commands.run('seq 1 200000')
  assert.equal(much.stdout.length, 1_288_895)
  assert.ok(much.stdout.endsWith('\n200000\n'))
})

check('callbacks', { works: ['commands.run'] }, async () => {
  const out = []
  const err = []
  const done = await (await shared()).commands.run('for i in 1 2 3; do echo out$i; echo err$i >&2; sleep 0.1; done', {
    onStdout: (text) => void out.push(text),
    onStderr: (text) => void err.push(text),
  })
  assert.equal(out.join(''), 'out1\nout2\nout3\n')
  assert.equal(err.join(''), done.stderr)
  assert.ok(out.length > 1)
})

check('environment, user, place', { works: ['commands.run'], fails: ['commands.run'] }, async () => {
  const sbx = await shared()
  const run = async (cmd, opts) => (await sbx.commands.run(cmd, opts)).stdout
  assert.equal(await run('echo "$A|$HOME|$USER"; pwd', { envs: { A: 'b c' } }), 'b c|/home/user|user\n/home/user\n')
  assert.equal(await run('whoami; echo $HOME', { user: 'root' }), 'root\n/root\n')
  assert.equal(await run('pwd', { cwd: '/usr/lib' }), '/usr/lib\n')
  await refuses(sbx.commands.run('true', { user: 'nobody-here' }), AuthenticationError, /invalid username: 'nobody-here'/)
  await refuses(sbx.commands.run('true', { cwd: '/no/such/place' }), InvalidArgumentError, /cwd '\/no\/such\/place' does not exist/)
})

check('time is up', { fails: ['commands.run'], works: ['commands.list'] }, async () => {
  const sbx = await shared()
  const mark = 'marker-of-time-is-up'
  await refuses(sbx.commands.run(`sleep 30 # ${mark}`, { timeoutMs: 1000 }), TimeoutError)
  await until('the command ended with its time', async () => !(await sbx.commands.list()).some((p) => p.args.some((a) => a.includes(mark))))
})

check('background, list, kill', {
  works: ['commands.run', 'commands.list', 'commands.kill', 'handle.kill'], fails: ['handle.wait', 'handle.kill', 'commands.kill'],
}, async () => {
  const sbx = await shared()
  const handle = await sbx.commands.run('sleep 600', { background: true, envs: { MINE: 'yes' }, cwd: '/tmp', timeoutMs: 0 })
  const [listed] = (await sbx.commands.list()).filter((p) => p.pid === handle.pid)
  assert.deepEqual([listed.cmd, listed.args, listed.cwd, listed.envs.MINE], ['/bin/bash', ['-l', '-c', 'sleep 600'], '/tmp', 'yes'])
  assert.equal(await handle.kill(), true)
  const end = await refuses(handle.wait(), CommandExitError)
  assert.match(end.error, /killed/)
  assert.equal(await handle.kill(), false)
  const other = await sbx.commands.run('sleep 600', { background: true, timeoutMs: 0 })
  assert.equal(await sbx.commands.kill(other.pid), true)
  assert.equal(await sbx.commands.kill(NO_PID), false)
  await refuses(other.wait(), CommandExitError)
})

check('leave and come back', { works: ['commands.connect', 'handle.disconnect', 'handle.wait'], fails: ['commands.connect', 'handle.wait'] }, async () => {
  const sbx = await shared()
  const handle = await sbx.commands.run('sleep 1; for i in 1 2 3 4 5 6 7 8; do echo n$i; sleep 0.2; done', { background: true, timeoutMs: 0 })
  await handle.disconnect()
  const same = await Sandbox.connect(sbx.sandboxId)
  const done = await (await same.commands.connect(handle.pid)).wait()
  assert.ok(done.exitCode === 0 && done.stdout.endsWith('n8\n'))
  const short = await sbx.commands.run('exit 5', { background: true })
  await refuses(short.wait(), CommandExitError)
  const late = await refuses((await sbx.commands.connect(short.pid)).wait(), CommandExitError)
  assert.equal(late.exitCode, 5)
  await refuses(sbx.commands.connect(NO_PID), NotFoundError)
})

check('input', {
  works: ['commands.send_stdin', 'commands.close_stdin', 'handle.send_stdin', 'handle.close_stdin'],
  fails: ['commands.send_stdin', 'commands.close_stdin', 'handle.send_stdin', 'handle.close_stdin'],
}, async () => {
  const sbx = await shared()
  const handle = await sbx.commands.run('cat; echo end', { background: true, stdin: true })
  await sbx.commands.sendStdin(handle.pid, 'first line\n')
  await handle.sendStdin(new TextEncoder().encode('bytes 🜏\n'))
  await sbx.commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'first line\nbytes 🜏\nend\n')
  await refuses(handle.sendStdin('too late'), SandboxError)
  await refuses(handle.closeStdin(), SandboxError)
  const other = await sbx.commands.run('wc -c', { background: true, stdin: true })
  await other.sendStdin('12345')
  await other.closeStdin()
  assert.equal((await other.wait()).stdout.trim(), '5')
  await refuses(sbx.commands.sendStdin(NO_PID, 'x'), NotFoundError)
  await refuses(sbx.commands.closeStdin(NO_PID), NotFoundError)
})

check('on a dead sandbox', { fails: ['commands.list', 'commands.run'] }, async () => {
  const sandbox = await make()
  await sandbox.kill()
  await refuses(sandbox.commands.list(), TimeoutError)
  await refuses(sandbox.commands.run('true'), SandboxNotFoundError)
})

check('twenty at once', { works: ['commands.run'] }, async () => {
  const sbx = await shared()
  const done = await Promise.all(Array.from({ length: 20 }, (_, n) => sbx.commands.run(`echo ${n}`)))
  assert.deepEqual(done.map((d) => d.stdout), done.map((_, n) => `${n}\n`))
})

/** A terminal whose output is collected. */
async function terminal(sandbox, opts = {}) {
  const term = { text: '' }
  const decoder = new TextDecoder()
  const onData = (data) => void (term.text += decoder.decode(data, { stream: true }))
  term.handle = opts.pid
    ? await sandbox.pty.connect(opts.pid, { onData, timeoutMs: 60_000 })
    : await sandbox.pty.create({ cols: 80, rows: 24, timeoutMs: 60_000, onData, ...opts })
  term.type = (text) => sandbox.pty.sendInput(term.handle.pid, new TextEncoder().encode(text))
  term.sees = (text) => until(() => `${JSON.stringify(text)} in the terminal, which has ${JSON.stringify(term.text.slice(-300))}`, () => term.text.includes(text))
  return term
}

check('a terminal', { works: ['pty.create', 'pty.send_stdin', 'pty.kill', 'handle.wait'] }, async () => {
  const sbx = await shared()
  const term = await terminal(sbx, { cwd: '/tmp', envs: { MINE: 'yes it is' } })
  await term.type('echo "result: $((6*7)) $MINE" $TERM $PWD\n')
  await term.sees('result: 42 yes it is xterm-256color /tmp')
  await term.type('exit\n')
  assert.equal((await term.handle.wait()).exitCode, 0)
  assert.equal(await sbx.pty.kill(term.handle.pid), false)
})

check('its size, and interrupts', { works: ['pty.create', 'pty.resize', 'pty.kill'] }, async () => {
  const sbx = await shared()
  const term = await terminal(sbx, { rows: 30, cols: 100 })
  await term.type('stty size\n')
  await term.sees('30 100')
  await sbx.pty.resize(term.handle.pid, { rows: 41, cols: 121 })
  await term.type('stty size\n')
  await term.sees('41 121')
  await term.type('sleep 1002\n')
  await until('sleep runs', async () => (await sbx.commands.run("pgrep -xf 'sleep 1002' || true")).stdout.trim())
  await term.type('\x03')
  await term.type('echo back with $?\n')
  await term.sees('back with 130')
  assert.equal(await sbx.pty.kill(term.handle.pid), true)
  await refuses(term.handle.wait(), CommandExitError)
})

check('leave a terminal and come back', { works: ['pty.connect', 'handle.disconnect', 'pty.kill'] }, async () => {
  const sbx = await shared()
  const term = await terminal(sbx)
  await term.type('VALUE=kept\n')
  await term.sees('VALUE=kept')
  await term.handle.disconnect()
  const again = await terminal(await Sandbox.connect(sbx.sandboxId), { pid: term.handle.pid })
  await again.type('echo it is $VALUE now\n')
  await again.sees('it is kept now')
  assert.equal(await sbx.pty.kill(term.handle.pid), true)
  await refuses(again.handle.wait(), CommandExitError)
})

check('terminals refused', { fails: ['pty.create', 'pty.connect', 'pty.send_stdin', 'pty.resize', 'pty.kill'] }, async () => {
  const sbx = await shared()
  const opts = { cols: 80, rows: 24, onData: () => {} }
  await refuses(sbx.pty.create({ ...opts, cwd: '/no/such/place' }), InvalidArgumentError)
  await refuses(sbx.pty.create({ ...opts, user: 'nobody-here' }), AuthenticationError)
  await refuses(sbx.pty.connect(NO_PID, { onData: () => {} }), NotFoundError)
  await refuses(sbx.pty.sendInput(NO_PID, new Uint8Array([120])), NotFoundError)
  await refuses(sbx.pty.resize(NO_PID, { cols: 1, rows: 1 }), NotFoundError)
  assert.equal(await sbx.pty.kill(NO_PID), false)
})
