// What may leave a sandbox and what may come in. OUTSIDE are addresses that stand for the internet.
import { OUTSIDE, NAME, assert, check, e2b, differs, edgeUrl, fetchRaw, make, notHere, refuses } from '../lane.mjs'

const { CommandExitError, SandboxError } = e2b

async function reaches(sandbox, address, port = 80) {
  try {
    await sandbox.commands.run(`timeout 2 bash -c '</dev/tcp/${address}/${port}'`)
    return true
  } catch (error) {
    if (error instanceof CommandExitError) return false
    throw error
  }
}
const both = (sandbox) => Promise.all(OUTSIDE.slice(0, 2).map((address) => reaches(sandbox, address)))
const needsOutside = () => OUTSIDE.length > 1 || notHere('no network could be made that stands for the internet')

check('egress rules', { works: ['Sandbox.create', 'Sandbox.update_network', 'Sandbox.get_info'] }, async () => {
  needsOutside()
  assert.deepEqual(await both(await make({ allowInternetAccess: false })), [false, false])
  const sandbox = await make({ network: { denyOut: [e2b.ALL_TRAFFIC], allowOut: [OUTSIDE[0]] } })
  assert.deepEqual(await both(sandbox), [true, false])
  await sandbox.updateNetwork({ denyOut: [OUTSIDE[0]] })
  assert.deepEqual(await both(sandbox), [false, true])
  assert.deepEqual((await sandbox.getInfo()).network.denyOut, [OUTSIDE[0]])
  await sandbox.updateNetwork({ allowInternetAccess: false })
  assert.deepEqual(await both(sandbox), [false, false])
  await sandbox.updateNetwork({})
  assert.deepEqual(await both(sandbox), [true, true])
})

check('an update of rules', { works: ['Sandbox.update_network', 'Sandbox.get_info'], fails: ['Sandbox.update_network'] }, async () => {
  const sandbox = await make()
  await sandbox.updateNetwork({ denyOut: ['203.0.113.0/24'], allowOut: ['203.0.113.7'] })
  const { network } = await sandbox.getInfo()
  assert.deepEqual([network.denyOut, network.allowOut], [['203.0.113.0/24'], ['203.0.113.7']])
  await refuses(sandbox.updateNetwork({ denyOut: ['nonsense'] }), SandboxError, /400: /)
})

check('options of the egress proxy', { works: ['Sandbox.create'] }, async () => {
  for (const [name, network] of [
    ['rules', { rules: { 'api.example': [{ transform: { headers: { 'X-Key': 'v' } } }] }, allowOut: ['api.example'], denyOut: [e2b.ALL_TRAFFIC] }],
    ['egressProxy', { egressProxy: { address: 'proxy.example:1080' } }],
  ]) {
    try {
      await make({ network })
    } catch (error) {
      assert.match(error.message, new RegExp(`400: .*${name}`))
      differs('Sandbox.create', `network option ${name} is refused`)
    }
  }
})

async function serve(sandbox, port) {
  await sandbox.files.write('/tmp/web.mjs', `
import { createServer } from 'node:http'
createServer((req, res) => res.end('host ' + req.headers.host)).listen(${port}, '127.0.0.1')`)
  await sandbox.commands.run('node /tmp/web.mjs', { background: true, timeoutMs: 0 })
  await sandbox.commands.run(`for i in $(seq 80); do ss -Htln sport = :${port} | grep -q . && exit 0; sleep 0.1; done; exit 1`)
}
const edge = (host, headers) => fetchRaw(edgeUrl(host), { headers, edge: true })

check('a port through the edge', { works: ['Sandbox.get_host'], fails: ['Sandbox.get_host'] }, async () => {
  const sandbox = await make()
  await serve(sandbox, 8080)
  const host = sandbox.getHost(8080)
  assert.equal(host, `8080-${sandbox.sandboxId}.${sandbox.sandboxDomain}`)
  const res = await edge(host)
  assert.deepEqual([res.status, res.text], [200, `host ${host}`])
  const closed = await edge(sandbox.getHost(8081))
  assert.deepEqual([closed.status, closed.json().message], [502, 'The sandbox is running but port is not open'])
  await sandbox.kill()
  const gone = await edge(host)
  assert.deepEqual([gone.status, gone.json()], [502, { sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 }])
})

check('traffic needs a token, and the host is masked', { works: ['Sandbox.create', 'Sandbox.get_host'] }, async () => {
  const sandbox = await make({ network: { allowPublicTraffic: false, maskRequestHost: 'masked.example:${PORT}' } })
  assert.ok(sandbox.trafficAccessToken)
  await serve(sandbox, 8080)
  const host = sandbox.getHost(8080)
  assert.equal((await edge(host)).status, 403)
  const res = await edge(host, { 'e2b-traffic-access-token': sandbox.trafficAccessToken })
  assert.deepEqual([res.status, res.text], [200, 'host masked.example:8080'])
})
