// One lane: one installed release of the package, driven through the tests of a folder. Every call of a test on the package goes
// through a probe that counts it, and each test writes a line of JSON to LANE_RESULTS.
import assert from 'node:assert/strict'
import { appendFileSync, readFileSync } from 'node:fs'
import { request as plain } from 'node:http'
import { request as secure } from 'node:https'
import { join } from 'node:path'
import test, { after } from 'node:test'
import { pathToFileURL } from 'node:url'

const env = process.env
export const NAME = env.LANE_NAME ?? 'unnamed'
export const RUN = env.LANE_RUN ?? `run${process.pid}`
export const TEMPLATE = env.LANE_TEMPLATE ?? 'base'
export const MARK = { lane: NAME, run: RUN }
export const DOMAIN = env.LANE_DOMAIN ?? ''
export const OUTSIDE = (env.LANE_OUTSIDE ?? '').split(' ').filter(Boolean)
export const NOBODY = 'i' + '0'.repeat(20)
export const OTHER_KEY = 'e2b_' + '0'.repeat(40)
const TEST_MS = 120_000

const PACKAGE = env.LANE_PACKAGE ?? 'e2b'
const folder = { e2b: 'e2b', 'code-interpreter': '@e2b/code-interpreter' }[PACKAGE]
const home = join(env.LANE_MODULES, folder)
const manifest = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8'))
export const e2b = await import(pathToFileURL(join(home, manifest.module ?? manifest.main)))

const rows = JSON.parse(readFileSync(env.LANE_REGISTER, 'utf8')).rows.filter(
  (row) => (row.package ?? 'e2b') === PACKAGE && row.js
)
const names = new Map(rows.map((row) => [row.id, row.js]))
const methods = new Set(names.values())

// What an object of a class is called in methods.json. A part is reached as an attribute of a sandbox.
const KINDS = {
  Sandbox: 'Sandbox',
  CommandHandle: 'CommandHandle',
  WatchHandle: 'WatchHandle',
  SandboxPaginator: 'SandboxPaginator',
  SnapshotPaginator: 'SnapshotPaginator',
  SecretPaginator: 'SecretPaginator',
  Volume: 'volume',
}
const PARTS = new Set(['commands', 'files', 'pty', 'git'])

let record = { calls: {}, differs: [] }
const bare = new WeakMap()

const kind = (value) => KINDS[value?.constructor?.name?.replace(/^_|\d+$/g, '')]

/** Stands for a class or object of the package: the same, but its methods are counted. */
export function probe(target, prefix) {
  const wrap = (out) => {
    if (Array.isArray(out)) return out.map(wrap)
    return out && typeof out === 'object' && kind(out) ? probe(out, kind(out)) : out
  }
  const made = new Proxy(target, {
    get(object, key) {
      const value = Reflect.get(object, key, object)
      if (PARTS.has(key) && typeof value === 'object') return probe(value, key)
      const method = `${prefix}.${String(key)}`
      if (typeof value !== 'function' || typeof key === 'symbol' || key === 'constructor') return value
      return (...args) => {
        if (methods.has(method)) record.calls[method] = (record.calls[method] ?? 0) + 1
        const out = value.apply(object, args.map(strip))
        return out instanceof Promise ? out.then(wrap) : wrap(out)
      }
    },
  })
  bare.set(made, target)
  return made
}

function strip(value) {
  if (bare.has(value)) return bare.get(value)
  if (value && value.constructor === Object) {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, strip(item)]))
  }
  return value
}

export const Sandbox = probe(e2b.Sandbox, 'Sandbox')
export const Template = e2b.Template && probe(e2b.Template, 'Template')
export const Volume = e2b.Volume && probe(e2b.Volume, 'Volume')
export const Secret = e2b.Secret && probe(e2b.Secret, 'Secret')

function write(line) {
  if (env.LANE_RESULTS) appendFileSync(env.LANE_RESULTS, JSON.stringify(line) + '\n')
}
write({ kind: 'lane', lane: NAME, package: PACKAGE, version: manifest.version, engine: `Node ${process.versions.node.split('.')[0]}` })

/** Writes every public method of the classes, as Class.method; protected ones of the package's types are left out. */
export function surface(classes, hidden = []) {
  const found = new Set()
  for (const [prefix, list] of Object.entries(classes)) {
    for (const object of list) {
      for (const [key, property] of Object.entries(Object.getOwnPropertyDescriptors(object))) {
        if (typeof property.value === 'function' && key !== 'constructor') {
          found.add(`${prefix}.${key}`)
        }
      }
    }
  }
  for (const name of hidden) found.delete(name)
  write({ kind: 'surface', methods: [...found].sort() })
}

/** Ends the test as not yet: it starts to count once the server offers this. */
class Skip extends Error {}
export const notYet = (reason) => {
  throw new Skip(`not yet: ${reason}`)
}
export const notHere = (reason) => {
  throw new Skip(`n/a: ${reason}`)
}
/** The method does what it should except for this. */
export const differs = (row, note) => record.differs.push({ row, note })

/** A test about rows of methods.json: works are used as meant, fails so that they fail. */
export function check(name, { works = [], fails = [], quick = false }, body) {
  if (env.LANE_QUICK === '1' && !quick) return
  const about = [...works, ...fails]
  const unknown = about.filter((id) => !names.has(id))
  if (unknown.length) throw new Error(`${name} names rows that are not in methods.json: ${unknown}`)
  test(name, { timeout: TEST_MS + 5000 }, async (t) => {
    record = { calls: {}, differs: [] }
    const mine = record
    const line = { kind: 'test', name, outcome: 'pass', reason: '', works, fails }
    try {
      await before(body(t), TEST_MS, 'the test took too long')
      const idle = about.filter((id) => !mine.calls[names.get(id)])
      assert.deepEqual(idle, [], 'the test says it is about methods that it never calls')
    } catch (error) {
      line.outcome = error instanceof Skip ? 'skip' : 'fail'
      line.reason = error instanceof Skip ? error.message : String(error).split('\n')[0]
      if (!(error instanceof Skip)) throw error
      t.skip(error.message)
    } finally {
      write({ ...line, calls: mine.calls, differs: mine.differs })
    }
  })
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms))

/** The promise, or an error when it takes longer. */
export function before(promise, ms, what) {
  let timer
  const late = new Promise((_, refuse) => {
    timer = setTimeout(() => refuse(new Error(`${what}: ${ms} ms`)), ms)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Polls until ask gives something true, and gives that back. */
export async function until(what, ask, ms = 60_000) {
  const end = Date.now() + ms
  for (;;) {
    const value = await ask()
    if (value) return value
    if (Date.now() > end) throw new assert.AssertionError({ message: `not within ${ms} ms: ${typeof what === 'function' ? what() : what}` })
    await pause(100)
  }
}

/** The promise must be refused with this class, and a message like this. */
export async function refuses(promise, type, message) {
  let error
  try {
    await promise
  } catch (caught) {
    error = caught
  }
  assert.ok(error, `expected ${type.name}, but nothing was refused`)
  assert.ok(error instanceof type, `expected ${type.name}, got ${error?.name}: ${error?.message}`)
  if (message) assert.match(error.message, message)
  return error
}

const made = []
/** A sandbox that is killed when the file's tests are over. */
export async function make(opts = {}, template = TEMPLATE) {
  const sandbox = await Sandbox.create(template, { timeoutMs: 120_000, ...opts, metadata: { ...MARK, ...opts.metadata } })
  made.push(sandbox)
  return sandbox
}
let one
/** A sandbox that the tests of a file share. */
export const shared = () => (one ??= make({ timeoutMs: 900_000 }))
after(async () => {
  await Promise.allSettled(made.map((sandbox) => sandbox.kill()))
})

let folders = 0
/** A new folder in the shared sandbox. */
export async function newFolder() {
  const path = `/home/user/folder${folders++}`
  await (await shared()).files.makeDir(path)
  return path
}

/** A request without the package: for what an SDK cannot say. */
export function fetchRaw(url, { method = 'GET', headers = {}, body, edge = false } = {}) {
  const at = new URL(url)
  const [host, port] = edge ? env.LANE_EDGE.split(':') : [at.hostname, at.port]
  const opts = { host, port, method, path: at.pathname + at.search, headers: { Host: at.host, ...headers }, timeout: 60_000 }
  if (edge) Object.assign(opts, { servername: at.hostname, ca: env.LANE_CA ? readFileSync(env.LANE_CA) : undefined })
  return new Promise((done, refuse) => {
    const req = (edge ? secure : plain)(opts, (res) => {
      const parts = []
      res.on('data', (part) => parts.push(part))
      res.on('end', () => {
        const text = Buffer.concat(parts).toString()
        done({ status: res.statusCode, headers: res.headers, text, json: () => JSON.parse(text) })
      })
    })
    req.on('error', refuse)
    req.on('timeout', () => req.destroy(new Error('no answer in 60 s')))
    req.end(body)
  })
}

export const api = (method, path, body) =>
  fetchRaw(env.E2B_API_URL + path, {
    method,
    headers: { 'X-API-KEY': env.E2B_API_KEY, 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
  })

/** Ends the test as not yet when the server has no such route. The request is one that changes nothing. */
export async function landed(method, path, body) {
  const res = await api(method, path, body)
  const gone = res.status === 404 && /no route/.test(res.text)
  if (gone || res.status === 405 || res.status === 501) notYet(`\`${method} ${path.split('?')[0].replace(/(?<=\/)(i0{20}|no-such-[a-z]+)/, '{id}')}\` is not served`)
}

export const edgeUrl = (host) => {
  if (!env.LANE_EDGE) notYet('the edge does not listen')
  return `https://${host}/`
}
export const routed = (sandbox, port = 49983) => ({ 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) })
export { assert }
