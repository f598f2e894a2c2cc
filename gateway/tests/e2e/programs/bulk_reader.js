// Reads much, and says whether it is whole: node bulk_reader.js client URL COUNT, or server COUNT.
//
// The n-th message is 65,536 bytes: n in eight bytes, then what the test's `frames` makes. It prints
// `listening PORT` (as a server), `open`, and `whole COUNT` when so many have come, each as expected.
'use strict';
const { WebSocket, WebSocketServer } = require('ws');

const [role, ...rest] = process.argv.slice(2);
const count = Number(rest[rest.length - 1]);
const want = Buffer.alloc(65_536);
for (let index = 0; index < want.length; index += 1) want[index] = index * 7 + Math.floor(index / 256);

function read(socket) {
  let number = 0;
  socket.on('message', (data) => {
    want.writeBigUInt64BE(BigInt(number));
    if (!want.equals(data)) throw new Error(`message ${number} is not what was sent`);
    number += 1;
    if (number === count) {
      console.log(`whole ${number}`);
      process.exit(0);
    }
  });
  socket.on('close', (code) => {
    throw new Error(`closed with ${code} after ${number} messages`);
  });
}

if (role === 'client') {
  const socket = new WebSocket(rest[0], { perMessageDeflate: false });
  read(socket);
  socket.on('open', () => console.log('open'));
} else {
  const server = new WebSocketServer({ host: '127.0.0.1', port: 0 });
  server.on('listening', () => console.log(`listening ${server.address().port}`));
  server.on('connection', (socket) => {
    read(socket);
    console.log('open');
  });
}
