// Clients of the embedded rooms on the npm package `ws`, by docs/ROOMS.md.
//
//   tour URL            every operation and event, and what goes wrong
//   crowd URL COUNT     COUNT members of one room, all publishing: each message once, in order
'use strict';
const assert = require('assert');
const { once } = require('events');
const WebSocket = require('ws');

const [scenario, url, ...more] = process.argv.slice(2);

class Client {
  static async open(user, protocols = []) {
    const client = new Client();
    client.socket = new WebSocket(user === undefined ? url : `${url}?user=${user}`, protocols);
    client.inbox = [];
    client.requests = 0;
    client.socket.on('message', (data, isBinary) => {
      assert.ok(!isBinary);
      const message = JSON.parse(data);
      if (message.event === 'ping') return;
      client.inbox.push(message);
      client.socket.emit('arrived');
    });
    client.ended = once(client.socket, 'close').then(([code, reason]) => {
      client.over = code;
      client.socket.emit('arrived');
      return { code, reason: reason.toString() };
    });
    await once(client.socket, 'open');
    client.socket.on('error', () => {});
    client.welcome = await client.next('welcome');
    return client;
  }

  send(request) {
    this.socket.send(JSON.stringify(request));
  }

  // The first message that `wanted` fits: the name of an event, or a function.
  async next(wanted) {
    const fits = typeof wanted === 'function' ? wanted : (message) => message.event === wanted;
    for (;;) {
      const index = this.inbox.findIndex(fits);
      if (index >= 0) return this.inbox.splice(index, 1)[0];
      if (this.over !== undefined) throw new Error(`closed with ${this.over}, before ${wanted}`);
      await once(this.socket, 'arrived');
    }
  }

  // Sends a request and returns its answer, whichever it is.
  async ask(request) {
    const id = ++this.requests;
    this.send({ ...request, id });
    return this.next((message) => message.ack === id || (message.error && message.id === id));
  }

  async close() {
    this.socket.close(1000);
    assert.strictEqual((await this.ended).code, 1000);
  }
}

const scenarios = {
  async tour() {
    const ann = await Client.open('ann', ['penstock.rooms.v1']);
    assert.strictEqual(ann.socket.protocol, 'penstock.rooms.v1');
    assert.strictEqual(ann.welcome.protocol, 'penstock.rooms.v1');
    assert.strictEqual(ann.welcome.user, 'ann');
    const guest = await Client.open();
    assert.match(guest.welcome.user, /^guest-/);

    // Joining, and seeing others come.
    const joined = await ann.ask({ op: 'join', room: 'lobby', presence: true });
    assert.strictEqual(joined.op, 'join');
    assert.strictEqual(joined.offset, 0);
    assert.deepStrictEqual(joined.users, ['ann']);
    const bob = await Client.open('bob');
    await bob.ask({ op: 'join', room: 'lobby' });
    const came = await ann.next('join');
    assert.deepStrictEqual([came.user, came.room, came.user_count], ['bob', 'lobby', 2]);

    // Publishing: the sender's own copy comes before its answer.
    const data = { text: 'grüße', deep: [[1.50, null]] };
    const before = Date.now();
    const published = await ann.ask({ op: 'publish', room: 'lobby', data });
    assert.strictEqual(published.offset, 1);
    assert.ok(Math.abs(published.time - before) < 60_000, 'a wall clock in milliseconds');
    assert.strictEqual(ann.inbox[0].event, 'message');
    for (const member of [ann, bob]) {
      const message = await member.next('message');
      assert.deepStrictEqual(message.data, data);
      assert.deepStrictEqual([message.user, message.room, message.offset], ['ann', 'lobby', 1]);
    }

    const presence = await bob.ask({ op: 'presence', room: 'lobby' });
    assert.deepStrictEqual(presence.users.sort(), ['ann', 'bob']);
    assert.deepStrictEqual([presence.user_count, presence.connection_count], [2, 2]);

    // History, and resuming after a lost connection.
    for (const text of ['two', 'three']) await bob.ask({ op: 'publish', room: 'lobby', data: text });
    const history = await ann.ask({ op: 'history', room: 'lobby', after: 1, limit: 10 });
    assert.deepStrictEqual(history.messages.map((message) => message.data), ['two', 'three']);
    assert.deepStrictEqual([history.gap, history.more, history.offset], [false, false, 3]);
    bob.socket.terminate();
    await bob.ended;
    await ann.ask({ op: 'publish', room: 'lobby', data: 'four' });
    const again = await Client.open('bob');
    const resume = { epoch: joined.epoch, offset: 3 };
    const resumed = await again.ask({ op: 'join', room: 'lobby', resume });
    assert.strictEqual(resumed.recovered, true);
    assert.deepStrictEqual(resumed.messages.map((message) => message.data), ['four']);
    const stale = await Client.open('bob');
    const lost = { epoch: '0123456789abcdef', offset: 3 };
    const unresumed = await stale.ask({ op: 'join', room: 'lobby', resume: lost });
    assert.strictEqual(unresumed.recovered, false);
    assert.deepStrictEqual(unresumed.messages, []);

    // Direct messages reach every connection of a user.
    const direct = await ann.ask({ op: 'direct', to: 'bob', data: 'psst' });
    assert.strictEqual(direct.reached, 2);
    for (const connection of [again, stale]) {
      const { user, data: whisper } = await connection.next('direct');
      assert.deepStrictEqual([user, whisper], ['ann', 'psst']);
    }

    // Leaving: no message follows.
    await again.ask({ op: 'leave', room: 'lobby' });
    await ann.ask({ op: 'publish', room: 'lobby', data: 'five' });
    assert.strictEqual((await stale.next((m) => m.data === 'five')).offset, 5);
    const ping = again.requests + 1;
    again.requests = ping;
    again.send({ op: 'ping', id: ping });
    assert.strictEqual((await again.next('pong')).ack, ping);
    assert.ok(!again.inbox.some((message) => message.event === 'message'));

    // Errors name their request and leave the connection open.
    const refusals = [
      [{ op: 'publish', room: 'elsewhere', data: 1 }, 'not_member'],
      [{ op: 'join', room: 'lobby' }, 'already_member'],
      [{ op: 'join', room: '' }, 'bad_room'],
      [{ op: 'dance' }, 'unknown_op'],
      [{ op: 'join' }, 'bad_request'],
      [{ op: 'join', room: 'x', colour: 'red' }, 'bad_request'],
      [{ op: 'direct', to: 'nobody', data: 1 }, 'no_such_user'],
    ];
    for (const [request, code] of refusals) {
      const answer = await ann.ask(request);
      assert.strictEqual(answer.error && answer.error.code, code, JSON.stringify(answer));
    }
    ann.socket.send('{"op":');
    assert.strictEqual((await ann.next((m) => m.error)).error.code, 'bad_json');
    const nested = `${'['.repeat(200)}${']'.repeat(200)}`;
    ann.socket.send(`{"op":"publish","room":"lobby","data":${nested},"id":"deep"}`);
    assert.strictEqual((await ann.next((m) => m.id === 'deep')).error.code, 'too_deep');

    // Binary messages are not spoken here.
    guest.socket.send(Buffer.from([1, 2, 3]));
    assert.strictEqual((await guest.ended).code, 1003);
    for (const client of [ann, again, stale]) await client.close();
  },

  async crowd(count) {
    const each = 25;
    const members = await Promise.all(
      Array.from({ length: Number(count) }, (_, index) => Client.open(`user${index}`)),
    );
    await Promise.all(members.map((member) => member.ask({ op: 'join', room: 'crowd' })));
    await Promise.all(members.map(async (member, index) => {
      for (let n = 0; n < each; n++) {
        member.send({ op: 'publish', room: 'crowd', data: [index, n] });
      }
    }));
    const total = members.length * each;
    const seen = await Promise.all(members.map(async (member) => {
      const messages = [];
      while (messages.length < total) messages.push(await member.next('message'));
      return messages;
    }));
    for (const messages of seen) {
      messages.forEach(({ offset }, index) => assert.strictEqual(offset, index + 1));
      assert.deepStrictEqual(messages.map((m) => m.data), seen[0].map((m) => m.data));
    }
    // Of each sender all its messages, in the order it sent them.
    for (let sender = 0; sender < members.length; sender++) {
      const numbers = seen[0].filter((m) => m.data[0] === sender).map((m) => m.data[1]);
      assert.deepStrictEqual(numbers, Array.from({ length: each }, (_, n) => n));
    }
    // Whoever got a message twice has it waiting now, before this answer.
    await Promise.all(members.map(async (member) => {
      member.send({ op: 'ping', id: 'last' });
      await member.next('pong');
      assert.deepStrictEqual(member.inbox, []);
      await member.close();
    }));
  },
};

scenarios[scenario](...more).then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
