// Running code in a kernel: output, results, errors, contexts.
import { MARK, Sandbox, assert, check, e2b, refuses, surface } from '../lane.mjs'
import { after } from 'node:test'

const { InvalidArgumentError, TimeoutError } = e2b
const own = Object.getOwnPropertyDescriptors(e2b.Sandbox.prototype)
surface({ Sandbox: [Object.create(null, own)] }, ['Sandbox.handleRequestError', 'Sandbox.getJupyterRequestUrl'])

const sbx = await Sandbox.create('code-interpreter', { metadata: MARK, timeoutMs: 600_000 })
after(() => sbx.kill())

check('output and result', { works: ['code.run_code'] }, async () => {
  const out = []
  const done = await sbx.runCode("print('hello'); 6*7", { onStdout: (message) => void out.push(message.line) })
  assert.equal(done.logs.stdout.join(''), 'hello\n')
  assert.equal(done.text, '42')
  assert.equal(out.join(''), 'hello\n')
})

check('errors', { fails: ['code.run_code'] }, async () => {
  const done = await sbx.runCode('1/0')
  assert.equal(done.error.name, 'ZeroDivisionError')
  await refuses(sbx.runCode('import time; time.sleep(30)', { timeoutMs: 1000 }), TimeoutError)
  assert.equal((await sbx.runCode("'goes on'")).text, "'goes on'")
})

check('contexts', {
  works: ['code.create_code_context', 'code.list_code_contexts', 'code.restart_code_context', 'code.remove_code_context'],
  fails: ['code.create_code_context', 'code.list_code_contexts', 'code.restart_code_context', 'code.remove_code_context'],
}, async () => {
  const context = await sbx.createCodeContext({ cwd: '/tmp', language: 'python' })
  assert.ok((await sbx.listCodeContexts()).some((c) => c.id === context.id))
  await sbx.runCode('mine = 1', { context })
  assert.equal((await sbx.runCode('mine', { context })).text, '1')
  await sbx.restartCodeContext(context)
  assert.equal((await sbx.runCode('mine', { context })).error.name, 'NameError')
  await refuses(sbx.runCode('1', { context, language: 'python' }), InvalidArgumentError)
  await sbx.removeCodeContext(context)
  await refuses(sbx.removeCodeContext('no-such-context'), Error)
  await refuses(sbx.restartCodeContext('no-such-context'), Error)
  await refuses(sbx.createCodeContext({ language: 'no-such-language' }), Error)
  const other = await Sandbox.create('code-interpreter', { metadata: MARK, timeoutMs: 60_000 })
  await other.kill()
  await refuses(other.listCodeContexts(), Error)
})
