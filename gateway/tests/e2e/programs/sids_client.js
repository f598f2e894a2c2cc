// Clients of socketio_server.js that bring nothing but their `sid`: no cookie, a TCP connection for
// each request: node sids_client.js URL COUNT. Each transport in turn, all clients at once. Prints
// how many of each got through, and which servers they were at.
'use strict';
const http = require('http');
const { io } = require('socket.io-client');

const [url, count] = [process.argv[2], Number(process.argv[3])];
const modes = {
  default: undefined, // Polling, then the upgrade.
  polling: ['polling'],
};

const once = (emitter, event) =>
  new Promise((resolve, reject) => {
    emitter.once(event, resolve);
    emitter.once('connect_error', reject);
    emitter.once('disconnect', (reason) => reject(new Error(`${event}: ${reason}`)));
  });

// Listens from the first moment on: an upgrade that has failed is not told again.
const upgrade = (socket) =>
  new Promise((resolve, reject) => {
    socket.once('disconnect', (reason) => reject(new Error(`upgrade: ${reason}`)));
    socket.once('connect_error', reject);
    socket.io.once('open', () => {
      socket.io.engine.once('upgrade', resolve);
      socket.io.engine.once('upgradeError', reject);
    });
  });

async function client(transports, number) {
  const agent = new http.Agent({ keepAlive: false });
  const socket = io(url, { transports, agent, forceNew: true, reconnection: false });
  try {
    const named = once(socket, 'name');
    const upgraded = upgrade(socket);
    // Awaited below; neither must fail unheard before.
    [named, upgraded].forEach((promise) => promise.catch(() => {}));
    await once(socket, 'connect');
    const name = await named;
    if (!transports) await upgraded;
    for (let round = 0; round < 5; round += 1) {
      const echoed = socket.timeout(60_000).emitWithAck('echo', number);
      if ((await Promise.race([echoed, once(socket, 'disconnect')])) !== number) {
        throw new Error('not what was said');
      }
    }
    return name;
  } finally {
    socket.removeAllListeners();
    socket.disconnect();
    agent.destroy();
  }
}

async function main() {
  for (const [mode, transports] of Object.entries(modes)) {
    const numbers = [...Array(count).keys()];
    const ends = await Promise.allSettled(numbers.map((number) => client(transports, number)));
    const good = ends.filter((end) => end.status === 'fulfilled').map((end) => end.value);
    const bad = ends.find((end) => end.status === 'rejected');
    if (bad) console.error(bad.reason);
    console.log(`${mode} ${good.length} ${[...new Set(good)].sort().join(' ')}`);
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
