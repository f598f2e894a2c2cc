// Clients of socketio_server.js, unmodified, through the gateway: node socketio_client.js URL COUNT
// Each transport in turn, all clients at once. Fails on the first thing that is not as it should be.
'use strict';
const assert = require('assert');
const { io } = require('socket.io-client');

const [url, count] = [process.argv[2], Number(process.argv[3])];
const modes = {
  default: undefined, // Polling, then the upgrade.
  websocket: ['websocket'],
  polling: ['polling'],
};

function open(transports, number, namespace = '') {
  // Who the client is; the gateway has nothing else to bring its requests together by.
  const query = { user: `${number}` };
  return io(url + namespace, { transports, query, forceNew: true, reconnection: false });
}

const once = (socket, event) =>
  new Promise((resolve, reject) => {
    socket.once(event, resolve);
    socket.once('connect_error', reject);
    socket.once('disconnect', (reason) => reject(new Error(`${event}: ${reason}`)));
  });

async function client(mode, number) {
  const socket = open(modes[mode], number);
  const named = once(socket, 'name');
  await once(socket, 'connect');
  const name = await named;
  if (mode === 'default') {
    const { engine } = socket.io;
    if (engine.transport.name !== 'websocket') {
      await new Promise((resolve) => engine.once('upgrade', resolve));
    }
    assert.equal(engine.transport.name, 'websocket');
  }
  assert.deepEqual(await socket.emitWithAck('echo', { n: number, list: [1, 'two'] }), {
    n: number,
    list: [1, 'two'],
  });
  const bytes = Buffer.alloc(20_000, number & 0xff);
  assert(bytes.equals(Buffer.from(await socket.emitWithAck('echo', bytes))));
  const room = `room-${mode}-${number}`;
  await socket.emitWithAck('join', room);
  const said = once(socket, 'said');
  socket.emit('say', room, 'hello');
  assert.equal(await said, 'hello');
  socket.removeAllListeners('disconnect');
  socket.disconnect();
  return name;
}

async function main() {
  for (const mode of Object.keys(modes)) {
    const numbers = [...Array(count).keys()];
    const names = await Promise.all(numbers.map((number) => client(mode, number)));
    console.log(`${mode} ${[...new Set(names)].sort().join(' ')}`);
  }
  // A namespace shares the connection of the first.
  const socket = open(undefined, 1, '/admin');
  assert.equal(await socket.timeout(10_000).emitWithAck('echo', 'admin'), 'admin');
  socket.disconnect();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
