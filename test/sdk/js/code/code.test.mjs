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
  assert.equal((await sbx.runCode("'goes on'")).text, 'goes on')
  const errors = []
  await sbx.runCode("raise ValueError('mine')", { onError: (e) => void errors.push([e.name, e.value]) })
  assert.deepEqual(errors, [['ValueError', 'mine']])
})

check('a client that leaves stops its code', { fails: ['code.run_code'] }, async () => {
  for (const envs of [undefined, { GIVEN: '1' }]) {
    await refuses(sbx.runCode('kept = 1\nimport time\nfor n in range(6000): time.sleep(0.1)\nkept = 2', { timeoutMs: 2000, envs }), TimeoutError)
    const began = performance.now()
    assert.equal((await sbx.runCode('kept')).text, '1') // the kernel lives, and its code was stopped
    assert.ok(performance.now() - began < 60_000)
  }
})

check('every form of result', { works: ['code.run_code'] }, async () => {
  const shown = []
  const done = await sbx.runCode(`
from IPython.display import display, HTML, Markdown, SVG, Latex, JSON, Javascript
display(HTML('<b>bold</b>')); display(Markdown('*m*')); display(Latex('$x$')); display(Javascript('1+1')); display(JSON({'a': [1]}))
display(SVG('<svg xmlns="http://www.w3.org/2000/svg"></svg>'))
display({'application/x-own': 'mine', 'text/plain': 'own'}, raw=True)
'the last'`, { onResult: (r) => void shown.push(r) })
  const of = (form) => done.results.map((r) => r[form]).filter(Boolean)
  assert.deepEqual([of('html'), of('markdown'), of('latex'), of('javascript'), of('json')], [['<b>bold</b>'], ['*m*'], ['$x$'], ['1+1'], [{ a: [1] }]])
  assert.ok(of('svg')[0].startsWith('<svg'))
  assert.equal(done.text, 'the last')
  assert.equal(shown.length, 8)
  const drawn = await sbx.runCode("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nimport pandas as pd\npd.DataFrame({'a': [1, 2]})")
  assert.equal(Buffer.from(drawn.results[0].png, 'base64').subarray(1, 4).toString(), 'PNG')
  assert.deepEqual(drawn.results.at(-1).data, { a: [1, 2] })
  const first = (await sbx.runCode('1')).executionCount
  assert.equal((await sbx.runCode('1', { language: 'python', envs: { A: 'b' } })).executionCount, first + 1)
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
