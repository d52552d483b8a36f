// Network options that our own services carry out. The web server outside answers with the host and headers of each request.
import { NAME, RUN, Secret, assert, check, e2b, make, notHere, refuses } from '../lane.mjs'

const { CommandExitError, SandboxError } = e2b
const { LANE_SITE: SITE, LANE_WEB: WEB, LANE_SOCKS: address, LANE_SOCKS_USER: username, LANE_SOCKS_PASSWORD: password } = process.env
const here = () => {
  if (!SITE) notHere('no network could be made that stands for the internet')
}

// The releases have no dnsServers: the client is told where the names of the test are.
async function ask(sandbox, host, scheme = 'https') {
  const there = `--resolve ${host}:443:${WEB} --resolve ${host}:80:${WEB}`
  const { stdout } = await sandbox.commands.run(`curl -sS --fail-with-body --max-time 20 ${there} ${scheme}://${host}/`, { timeoutMs: 40_000 })
  return JSON.parse(stdout)
}
const rule = (headers) => ({ [`api.${SITE}`]: [{ transform: { headers } }] })

check('headers with secrets and identity tokens', { works: ['Sandbox.create', 'Secret.create', 'Secret.fill', 'Secret.iam_token', 'Sandbox.get_info'] }, async () => {
  here()
  const name = `key-${RUN}-${NAME}`.toLowerCase()
  const secret = await Secret.create(name, 'value-of-the-secret')
  try {
    const token = Secret.iamToken({ audience: 'sts.example', tokenType: 'JWT-SVID' })
    const fill = Secret.fill(name)
    const sandbox = await make({
      iam: { tokens: { svc: token } },
      network: {
        rules: { [`api.${SITE}`]: [{ transform: ({ iam }) => ({ headers: { Authorization: `Bearer ${fill}`, 'X-Identity': iam.tokens.svc } }) }] },
      },
    })
    const got = await ask(sandbox, `api.${SITE}`)
    assert.deepEqual(got.headers.Authorization, ['Bearer value-of-the-secret'])
    const claims = JSON.parse(Buffer.from(got.headers['X-Identity'][0].split('.')[1], 'base64url'))
    assert.deepEqual(claims.aud, ['sts.example'])
    assert.ok(claims.sub.endsWith(`/sandbox/${sandbox.sandboxId}`))
    const { network } = await sandbox.getInfo()
    assert.equal(network.rules[`api.${SITE}`][0].transform.headers.Authorization, `Bearer ${fill}`)
    await refuses(ask(sandbox, `other.${SITE}`), CommandExitError)
  } finally {
    await Secret.destroy(secret.secretId)
  }
})

check('an egress proxy', { works: ['Sandbox.create', 'Sandbox.update_network', 'Sandbox.get_info'] }, async () => {
  here()
  const egressProxy = { address, username, password }
  const sandbox = await make({ network: { rules: rule({ 'X-Key': 'v' }), egressProxy } })
  assert.deepEqual((await ask(sandbox, `api.${SITE}`)).headers['X-Key'], ['v'])
  const shown = (await sandbox.getInfo()).network.egressProxy
  assert.equal(shown.address, address)
  assert.equal(shown.password, undefined)
  await sandbox.updateNetwork({ egressProxy: { ...egressProxy, password: 'wrong' } })
  await refuses(ask(sandbox, `api.${SITE}`, 'http'), CommandExitError)
  await sandbox.updateNetwork({})
  assert.equal((await ask(sandbox, `api.${SITE}`, 'http')).host, `api.${SITE}`)
})

check('network options that cannot be', { fails: ['Sandbox.create', 'Sandbox.update_network'] }, async () => {
  here()
  const sandbox = await make()
  for (const network of [
    { egressProxy: { address: '127.0.0.1:1080' } },
    { rules: rule({ Host: 'x' }) },
    { rules: rule({ X: '${e2b.nothing}' }) },
  ]) {
    await refuses(make({ network }), SandboxError, /400: /)
    await refuses(sandbox.updateNetwork(network), SandboxError, /400: /)
  }
})
