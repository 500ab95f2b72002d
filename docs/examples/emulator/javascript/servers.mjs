// cumulet emulator -- node servers.mjs
// Plain fetch, no package: what any program does that knows no more than the URL.
import assert from 'node:assert/strict'

const url = process.env.CUMULET_EMULATOR_URL

async function send(method, target, { token, body } = {}) {
  const answer = await fetch(target, {
    method,
    headers: { 'Content-Type': 'application/json', ...(token && { 'X-Auth-Token': token }) },
    body: body && JSON.stringify(body),
  })
  const text = await answer.text()
  return { status: answer.status, headers: answer.headers, body: text && JSON.parse(text) }
}

const emulator = (method, path, body) => send(method, `${url}/emulator${path}`, { body })

async function logIn(name, password, project) {
  const user = { name, password, domain: { id: 'default' } }
  const auth = {
    identity: { methods: ['password'], password: { user } },
    scope: { project: { name: project, domain: { id: 'default' } } },
  }
  const answer = await send('POST', `${url}/identity/v3/auth/tokens`, { body: { auth } })
  assert.equal(answer.status, 201)
  const endpoints = Object.fromEntries(answer.body.token.catalog.map((s) => [s.type, s.endpoints[0].url]))
  return { token: answer.headers.get('x-subject-token'), endpoints }
}

/** The program under test: asks again when the service is away for a moment. */
async function createServer({ token, endpoints }, name) {
  const first = async (service, path, key) =>
    (await send('GET', endpoints[service] + path, { token })).body[key][0].id
  const server = {
    name,
    imageRef: await first('image', '/v2/images?name=cirros', 'images'),
    flavorRef: '1',
    networks: [{ uuid: await first('network', '/v2.0/networks?name=private', 'networks') }],
  }
  for (let left = 5; left > 0; left--) {
    const answer = await send('POST', endpoints.compute + '/servers', { token, body: { server } })
    if (answer.status !== 503) return answer
    await new Promise((done) => setTimeout(done, 20))
  }
  throw new Error('the compute service is away')
}

await emulator('POST', '/reset')
const demo = await logIn('demo', 'secret', 'demo')
await emulator('POST', '/faults', { status: 503, service: 'compute', method: 'POST', path: '/servers', times: 2 })
await emulator('POST', '/faults', { delay: 'boot', seconds: 600 })

const made = await createServer(demo, 'web')
assert.equal(made.status, 202)
const { requests } = (await emulator('GET', '/requests')).body
assert.equal(requests.filter((r) => r.method === 'POST' && r.path.endsWith('/servers')).length, 3)

const status = async () => {
  await emulator('POST', '/settle')
  const answer = await send('GET', `${demo.endpoints.compute}/servers/${made.body.server.id}`, { token: demo.token })
  return answer.body.server.status
}
assert.equal(await status(), 'BUILD')
await emulator('POST', '/clock', { advance: 600 }) // ten minutes, at once
assert.equal(await status(), 'ACTIVE')
console.log('all is well')
