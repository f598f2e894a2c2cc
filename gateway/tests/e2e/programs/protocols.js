// Clients that people use, each with its own server behind the gateway: node protocols.js NAME URL
// Ends with 0 when everything was as it should be.
'use strict';
const assert = require('assert');
const { once } = require('events');
const WebSocket = require('ws');

const [name, url] = process.argv.slice(2);

// Texts that a proxy might get wrong: empty, not ASCII, longer than a frame's short lengths.
const texts = ['', 'grüße', 'x'.repeat(126), 'y'.repeat(20_000)];

const protocols = {
  async graphql() {
    const { createClient } = require('graphql-ws');
    const client = createClient({ url, webSocketImpl: WebSocket, retryAttempts: 0, lazy: false });
    const all = async (query, variables) => {
      const got = [];
      for await (const result of client.iterate({ query, variables })) got.push(result);
      return got;
    };
    // Two at once on one connection.
    const count = 'subscription ($to: Int!) { count(to: $to) }';
    const [short, long] = await Promise.all([all(count, { to: 5 }), all(count, { to: 500 })]);
    assert.deepEqual(short.map((event) => event.data.count), [1, 2, 3, 4, 5]);
    assert.deepEqual(long.map((event) => event.data.count), [...Array(500).keys()].map((n) => n + 1));
    const hello = 'query ($name: String!) { hello(name: $name) }';
    for (const text of texts) {
      assert.deepEqual(await all(hello, { name: text }), [{ data: { hello: `hello ${text}` } }]);
    }
    const [error] = (await all('{ hello(name: 1) }').catch((errors) => [errors])).flat();
    assert.match(error.message, /String/);
    // The client completes; the server's generator then ends, which the test sees.
    let events = 0;
    for await (const event of client.iterate({ query: 'subscription { forever }' })) {
      events += 1;
      assert.equal(event.data.forever, events);
      if (events === 20) break;
    }
    await client.dispose();
  },

  async signalr() {
    const { HubConnectionBuilder, HttpTransportType, LogLevel } = require('@microsoft/signalr');
    for (const transport of ['WebSockets', 'ServerSentEvents', 'LongPolling']) {
      const hub = new HubConnectionBuilder()
        .withUrl(`${url.replace('ws:', 'http:')}`, { transport: HttpTransportType[transport] })
        .configureLogging(LogLevel.Error)
        .build();
      hub.keepAliveIntervalInMilliseconds = 50;
      const said = [];
      let arrived;
      hub.on('said', (text) => {
        said.push(text);
        arrived?.();
      });
      await hub.start();
      assert(hub.connectionId, 'negotiate names the connection');
      for (const text of texts) assert.equal(await hub.invoke('Echo', text), text);
      await assert.rejects(hub.invoke('Fail'), /no good/);
      for (const text of texts) await hub.send('Say', text);
      while (said.length < texts.length) await new Promise((resolve) => (arrived = resolve));
      assert.deepEqual(said, texts);
      const counted = [];
      await new Promise((complete, error) => {
        hub.stream('Count', 100).subscribe({ next: (n) => counted.push(n), complete, error });
      });
      assert.deepEqual(counted, [...Array(100).keys()]);
      await hub.stop();
      console.log(transport);
    }
  },

  async mqtt() {
    const mqtt = require('mqtt');
    const options = { reconnectPeriod: 0, wsOptions: { perMessageDeflate: false } };
    const open = async (more) => {
      const client = await mqtt.connectAsync(url, { ...options, ...more }, false);
      client.inbox = [];
      client.on('message', (topic, payload, packet) => {
        client.inbox.push({ topic, payload, qos: packet.qos, retain: packet.retain });
        client.emit('arrived');
      });
      return client;
    };
    const receive = async (client) => {
      while (client.inbox.length === 0) await once(client, 'arrived');
      return client.inbox.shift();
    };
    const [reader, writer] = [await open({}), await open({ protocolVersion: 4 })];
    await reader.subscribeAsync('room/+', { qos: 1 });
    for (const qos of [0, 1]) {
      for (const text of texts) {
        await writer.publishAsync('room/one', text, { qos });
        const got = await receive(reader);
        assert.deepEqual(got, { topic: 'room/one', payload: Buffer.from(text), qos, retain: false });
      }
    }
    const binary = Buffer.from([...Array(300_000).keys()].map((n) => n & 0xff));
    await writer.publishAsync('room/two', binary, { qos: 1 });
    assert(binary.equals((await receive(reader)).payload));
    await writer.publishAsync('kept/one', 'last words', { qos: 1, retain: true });
    const late = await open({});
    // By its name: RabbitMQ keeps none for wildcards.
    await late.subscribeAsync('kept/one', { qos: 1 });
    const kept = await receive(late);
    assert.deepEqual(kept, {
      topic: 'kept/one', payload: Buffer.from('last words'), qos: 1, retain: true,
    });
    await Promise.all([reader, writer, late].map((client) => client.endAsync()));
  },

  async xmpp() {
    globalThis.WebSocket = WebSocket;
    const { client, xml } = require('@xmpp/client');
    const account = { domain: 'localhost', username: 'alice' };
    const wrong = client({ service: url, ...account, password: 'wrong' });
    wrong.reconnect.stop();
    wrong.on('error', () => {});
    await assert.rejects(wrong.start(), /not-authorized/);
    await wrong.stop();
    const alice = client({ service: url, ...account, resource: 'one', password: 'secret' });
    alice.reconnect.stop();
    const address = await alice.start();
    assert.equal(`${address}`, 'alice@localhost/one');
    for (const text of texts) {
      const got = new Promise((resolve, reject) => {
        alice.once('error', reject);
        alice.on('stanza', (stanza) => stanza.is('message') && resolve(stanza));
      });
      await alice.send(xml('message', { to: `${address}`, type: 'chat' }, xml('body', {}, text)));
      const stanza = await got;
      assert.equal(stanza.attrs.from, `${address}`);
      assert.equal(stanza.getChildText('body'), text);
    }
    await alice.stop();
  },

  async nats() {
    globalThis.WebSocket = WebSocket;
    const { wsconnect, headers } = require('@nats-io/nats-core');
    const connect = () => wsconnect({ servers: url, reconnect: false });
    const [reader, writer] = await Promise.all([connect(), connect()]);
    const inbox = reader.subscribe('room.*')[Symbol.asyncIterator]();
    reader.subscribe('ask', {
      callback: (_, message) => message.respond(`answer ${message.string()}`),
    });
    await reader.flush();
    for (const text of [...texts, 'z'.repeat(500_000)]) {
      const more = headers();
      more.set('kind', 'test');
      writer.publish('room.one', text, { headers: more });
      const { value } = await inbox.next();
      assert.equal(value.string(), text);
      assert.equal(value.headers.get('kind'), 'test');
    }
    const answers = await Promise.all(
      [...Array(100).keys()].map((n) => writer.request('ask', `${n}`, { timeout: 60_000 })),
    );
    answers.forEach((answer, n) => assert.equal(answer.string(), `answer ${n}`));
    await assert.rejects(writer.request('nobody', ''), /no responders/);
    await Promise.all([reader.drain(), writer.drain()]);
  },

  async stomp() {
    globalThis.WebSocket = WebSocket;
    const { Client } = require('@stomp/stompjs');
    const client = new Client({
      brokerURL: url,
      connectHeaders: { login: 'guest', passcode: 'guest', host: '/' },
      reconnectDelay: 0,
    });
    await new Promise((resolve, reject) => {
      client.onConnect = resolve;
      client.onStompError = (frame) => reject(new Error(frame.headers.message));
      client.onWebSocketClose = () => reject(new Error('closed'));
      client.activate();
    });
    const inbox = [];
    let arrived;
    client.subscribe('/topic/room', (message) => {
      inbox.push(message);
      message.ack();
      arrived?.();
    }, { ack: 'client', receipt: 'subscribed' });
    await new Promise((resolve) => client.watchForReceipt('subscribed', resolve));
    for (const text of texts) {
      client.publish({ destination: '/topic/room', body: text, headers: { kind: 'test' } });
      while (inbox.length === 0) await new Promise((resolve) => (arrived = resolve));
      const message = inbox.shift();
      assert.equal(message.body, text);
      assert.equal(message.headers.kind, 'test');
    }
    await client.deactivate();
  },

  async sockjs() {
    const SockJS = require('sockjs-client');
    for (const transport of ['websocket', 'xhr-streaming', 'xhr-polling']) {
      const client = new SockJS(url.replace('ws:', 'http:'), null, { transports: transport });
      const closed = new Promise((resolve) => (client.onclose = resolve));
      const failed = closed.then((event) => Promise.reject(new Error(`${transport} ${event.reason}`)));
      failed.catch(() => {});
      await Promise.race([new Promise((resolve) => (client.onopen = resolve)), failed]);
      assert.equal(client.transport, transport);
      for (const text of texts) {
        const got = new Promise((resolve) => (client.onmessage = resolve));
        client.send(text);
        assert.equal((await Promise.race([got, failed])).data, text);
      }
      client.close(1000, 'done');
      assert.equal((await closed).code, 1000);
      console.log(transport);
    }
  },
};

protocols[name]().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
