// Clients of socketio_server.js from many addresses: node socketio_chat.js URL COUNT redis|alone
// In each transport all at once; then one of the three servers crashes. Fails on the first thing that
// is not as it should be; prints how long things took, for a person to read.
'use strict';
const assert = require('assert');
const http = require('http');
const { io } = require('socket.io-client');

const [url, count, adapter] = [process.argv[2], Number(process.argv[3]), process.argv[4]];
const modes = {
  default: undefined, // Polling, then the upgrade.
  websocket: ['websocket'],
  polling: ['polling'],
};
// Of the clients; nginx's ip_hash looks at the first three bytes only.
const agents = [...Array(60).keys()].map(
  (net) => new http.Agent({ localAddress: `127.1.${net}.1`, keepAlive: true }),
);
// Members of a room, each from another address.
const ROOM = 5;

const once = (socket, event) => new Promise((resolve) => socket.once(event, resolve));
const milliseconds = (since) => Number(process.hrtime.bigint() - since) / 1e6;

// A client that is connected, in the transport that it is to end up in.
async function open(mode, number, more) {
  const agent = agents[number % agents.length];
  const options = { transports: modes[mode], agent, forceNew: true, reconnection: false };
  const socket = io(url, { ...options, ...more });
  socket.on('name', (name) => (socket.server = name));
  await new Promise((resolve, reject) => {
    socket.once('name', resolve);
    socket.once('connect_error', (error) => reject(new Error(`${mode} ${number}: ${error}`)));
  });
  const { engine } = socket.io;
  if (mode === 'default' && engine.transport.name !== 'websocket') await once(engine, 'upgrade');
  assert.equal(engine.transport.name, mode === 'polling' ? 'polling' : 'websocket');
  socket.broken = (reason) => {
    console.error(`${mode} ${number} of ${socket.server}: ${reason}`);
    process.exit(1);
  };
  socket.once('disconnect', socket.broken);
  return socket;
}

async function close(sockets) {
  for (const socket of sockets) {
    socket.off('disconnect', socket.broken);
    socket.disconnect();
  }
}

const names = (sockets) => [...new Set(sockets.map((socket) => socket.server))].sort().join(' ');

// Everybody acknowledges, a few at a time; returns the times of the round trips.
async function echo(sockets, rounds) {
  const times = [];
  const waiting = [...sockets];
  const worker = async () => {
    for (let socket; (socket = waiting.pop()) !== undefined; ) {
      for (let round = 0; round < rounds; round++) {
        const begun = process.hrtime.bigint();
        const value = { round, list: [1, 'zwölf'] };
        assert.deepEqual(await socket.emitWithAck('echo', value), value);
        times.push(milliseconds(begun));
      }
      const bytes = Buffer.alloc(20_000, sockets.length & 0xff);
      assert(bytes.equals(Buffer.from(await socket.emitWithAck('echo', bytes))));
    }
  };
  await Promise.all([...Array(10)].map(worker));
  return times.sort((a, b) => a - b);
}

// Each room hears everything that is said in it, once; with Redis wherever its members are.
async function rooms(sockets, prefix) {
  const size = adapter === 'redis' ? ROOM : 1;
  for (let first = 0; first + size <= sockets.length; first += size) {
    const members = sockets.slice(first, first + size);
    const room = `${prefix}-${first}`;
    await Promise.all(members.map((member) => member.emitWithAck('join', room)));
    const heard = Promise.all(members.map((member) => once(member, 'said')));
    members[0].emit('say', room, room);
    assert.deepEqual(await heard, Array(size).fill(room));
  }
}

async function unknown(sockets) {
  const one = new Map(sockets.map((socket) => [socket.server, socket]));
  const counts = await Promise.all([...one.values()].map((socket) => socket.emitWithAck('unknown')));
  return counts.reduce((sum, each) => sum + each, 0);
}

async function main() {
  for (const mode of Object.keys(modes)) {
    const begun = process.hrtime.bigint();
    const numbers = [...Array(count).keys()];
    const sockets = await Promise.all(numbers.map((number) => open(mode, number)));
    const connected = milliseconds(begun);
    assert.equal(names(sockets), 'a b c');
    const times = await echo(sockets, 10);
    await rooms(sockets, mode);
    // A namespace shares the connection of the first.
    const admin = sockets[0].io.socket('/admin');
    assert.equal(await admin.emitWithAck('echo', 'admin'), 'admin');
    assert.equal(await unknown(sockets), 0, 'Session ID unknown');
    const [p50, p99] = [0.5, 0.99].map((part) => times[Math.floor(times.length * part)].toFixed(1));
    console.log(
      `${mode}: ${count} connected in ${connected.toFixed(0)} ms, ` +
        `${times.length} round trips p50 ${p50} ms p99 ${p99} ms, session unknown 0`,
    );
    await close(sockets);
  }
  await crash();
}

// One server is gone: its clients come back elsewhere, the others notice nothing.
async function crash() {
  const more = { reconnection: true, reconnectionDelay: 50, reconnectionDelayMax: 500 };
  const numbers = [...Array(Math.min(count, 90)).keys()];
  const by = (number) => Object.keys(modes)[Math.floor(number / 30)];
  const sockets = await Promise.all(numbers.map((number) => open(by(number), number, more)));
  const lost = sockets.filter((socket) => socket.server === 'b');
  const begun = process.hrtime.bigint();
  const back = lost.map(async (socket) => {
    socket.off('disconnect', socket.broken);
    await once(socket, 'disconnect');
    await once(socket, 'name');
  });
  lost[0].emit('crash');
  await Promise.all(back);
  const time = milliseconds(begun);
  assert.equal(names(sockets), 'a c');
  await echo(sockets, 1);
  await rooms(sockets, 'after');
  console.log(`crash: ${lost.length} of ${sockets.length} back in ${time.toFixed(0)} ms`);
  await close(sockets);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
