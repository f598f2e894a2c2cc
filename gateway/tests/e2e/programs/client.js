// A client on the npm package `ws`. Ends with 0 when everything was as it should be.
//
//   exchange URL COUNT      COUNT clients at once: texts and binaries, several in flight, all back
//   large URL COUNT BYTES   COUNT clients, each a few messages of BYTES
//   negotiate URL           subprotocol and compression, as the server behind has chosen
//   headers URL             what the server sees of a request
//   refused URL             an HTTP answer instead of an upgrade
//   closes URL              close codes and reasons, both ways
//   echo URL                fragments, pings, close codes against our own echo
//   crash URL               waits until it is closed, whose code must be 1012
'use strict';
const assert = require('assert');
const crypto = require('crypto');
const { once } = require('events');
const WebSocket = require('ws');

const [scenario, url, ...more] = process.argv.slice(2);
const options = { maxPayload: 64 << 20, perMessageDeflate: false };

async function connect(target = url, protocols = [], extra = {}) {
  const client = new WebSocket(target, protocols, { ...options, ...extra });
  // Listening from the start: the first message may come with the 101.
  client.inbox = [];
  client.on('message', (data, isBinary) => {
    client.inbox.push({ data, isBinary });
    client.emit('arrived');
  });
  client.ended = new Promise((resolve) => {
    client.on('close', (code, reason) => {
      client.over = `${code} ${reason}`;
      client.emit('arrived');
      resolve({ code, reason: reason.toString() });
    });
  });
  await once(client, 'open');
  client.on('error', () => {});
  return client;
}

async function receive(client) {
  while (client.inbox.length === 0) {
    if (client.over !== undefined) throw new Error(`closed instead of a message: ${client.over}`);
    await once(client, 'arrived');
  }
  return client.inbox.shift();
}

async function close(client, code = 1000, reason = '') {
  client.close(code, reason);
  const ended = await client.ended;
  assert.strictEqual(ended.code, code);
}

// Sends `messages` with up to `window` in flight and expects each back, in order.
async function exchange(client, messages, window) {
  let sent = 0;
  for (let got = 0; got < messages.length; got++) {
    for (; sent < messages.length && sent - got < window; sent++) {
      const { data, isBinary } = messages[sent];
      client.send(data, { binary: isBinary });
    }
    const { data, isBinary } = await receive(client);
    const want = messages[got];
    assert.strictEqual(isBinary, want.isBinary, `kind of message ${got}`);
    assert.ok(data.equals(want.data), `bytes of message ${got} (${want.data.length})`);
  }
}

// Letters and umlauts for a text, anything for a binary; no two alike.
function message(bytes, isBinary) {
  if (isBinary) return { data: crypto.randomBytes(bytes), isBinary };
  const letters = crypto.randomBytes(Math.ceil(bytes / 2)).toString('hex').slice(0, bytes);
  const text = bytes < 2 ? letters : `ä${letters.slice(2)}`;
  return { data: Buffer.from(text), isBinary };
}

const scenarios = {
  async exchange(count) {
    const clients = [];
    // Opened in groups: a backlog is not what is tested here.
    for (let index = 0; index < Number(count); index += 50) {
      const group = Math.min(50, Number(count) - index);
      clients.push(...(await Promise.all(Array.from({ length: group }, () => connect()))));
    }
    const sizes = [0, 1, 125, 126, 127, 65535, 65536];
    await Promise.all(clients.map(async (client, index) => {
      const messages = [];
      for (let round = 0; round < 14; round++) {
        const bytes = sizes[(index + round) % sizes.length];
        // The largest of all clients at once would only test this machine's memory.
        const fits = bytes < 1000 || (index + round) % 10 === 0;
        messages.push(message(fits ? bytes : round, (index + round) % 2 === 0));
      }
      await exchange(client, messages, 4);
    }));
    await Promise.all(clients.map((client) => close(client)));
    console.log(`${count} clients`);
  },

  async large(count, bytes) {
    await Promise.all(Array.from({ length: Number(count) }, async () => {
      const client = await connect();
      await exchange(client, [message(+bytes, true), message(+bytes, false), message(3, false)], 2);
      await close(client);
    }));
  },

  async negotiate() {
    const client = await connect(url, ['chat.v1', 'chat.v2'], { perMessageDeflate: { threshold: 0 } });
    assert.strictEqual(client.protocol, 'chat.v2');
    assert.match(client.extensions, /permessage-deflate/);
    const messages = [message(0, false), message(10_000, false), message(300_000, true)];
    await exchange(client, [...messages, ...messages], 3);
    await close(client);
    const plain = await connect();
    assert.strictEqual(plain.protocol, '');
    assert.strictEqual(plain.extensions, '');
    await close(plain);
  },

  async headers() {
    const headers = {
      Cookie: 'session=1; theme=dark',
      'X-Custom': 'as it was',
      'X-Forwarded-For': '203.0.113.9',
      Authorization: 'Bearer token',
      Origin: 'https://example.org',
    };
    const client = await connect(`${url}/headers/ä?room=a%20b&x=1`, [], { headers });
    const seen = JSON.parse((await receive(client)).data);
    assert.strictEqual(seen.headers.cookie, headers.Cookie);
    assert.strictEqual(seen.headers['x-custom'], headers['X-Custom']);
    assert.strictEqual(seen.headers.authorization, headers.Authorization);
    assert.strictEqual(seen.headers.origin, headers.Origin);
    assert.strictEqual(seen.headers['x-forwarded-for'], '127.0.0.1', 'the address, not the claim');
    assert.strictEqual(seen.headers.host, new URL(url).host);
    assert.strictEqual(seen.url, '/headers/%C3%A4?room=a%20b&x=1');
    const names = seen.rawHeaders.filter((_, index) => index % 2 === 0);
    const lower = names.map((name) => name.toLowerCase());
    assert.strictEqual(new Set(lower).size, lower.length, `twice in ${names}`);
    await close(client);
  },

  async refused() {
    const client = new WebSocket(`${url}/refuse`, options);
    const [, response] = await once(client, 'unexpected-response');
    assert.strictEqual(response.statusCode, 401);
    assert.strictEqual(response.headers['www-authenticate'], 'Bearer realm="penstock"');
    let body = '';
    for await (const part of response) body += part;
    assert.strictEqual(body, 'who are you?');
  },

  async closes() {
    for (const [code, reason] of [[1000, ''], [3001, 'done'], [4999, 'grüße '.repeat(15)]]) {
      const client = await connect(`${url}/by-client`);
      await close(client, code, reason);
    }
    for (const [code, reason] of [[1001, 'moving on'], [4000, ''], [1013, 'later']]) {
      const client = await connect(`${url}/by-server`);
      client.send(`close ${code} ${reason}`);
      assert.deepStrictEqual(await client.ended, { code, reason });
    }
    // Without a code.
    const client = await connect(`${url}/no-code`);
    client.close();
    assert.deepStrictEqual(await client.ended, { code: 1005, reason: '' });
  },

  async echo() {
    const client = await connect();
    const sizes = [0, 1, 125, 126, 127, 65535, 65536, 1 << 20];
    const messages = sizes.flatMap((bytes) => [message(bytes, true), message(bytes, false)]);
    await exchange(client, messages, 4);
    // A message in three frames, with a Ping between them.
    client.send('frag', { fin: false });
    client.ping('between');
    const [pong] = await once(client, 'pong');
    assert.strictEqual(pong.toString(), 'between');
    client.send('ment', { fin: false });
    client.send('s', { fin: true });
    assert.strictEqual((await receive(client)).data.toString(), 'fragments');
    await close(client, 4321, 'bye');
  },

  async crash() {
    const client = await connect();
    await exchange(client, [message(10, false)], 1);
    console.log('connected');
    const { code } = await client.ended;
    assert.strictEqual(code, 1012);
  },
};

scenarios[scenario](...more).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
