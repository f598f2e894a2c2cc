// A chat on Socket.IO, as it might stand behind the gateway: acknowledgements, rooms, binary, a
// namespace: node socketio_server.js NAME [REDIS]. With the URL of a Redis it is one of several that
// share their rooms. It prints `listening PORT`, and when it is told to end what it has served.
'use strict';
const http = require('http');
const { Server } = require('socket.io');

const [name, redis] = process.argv.slice(2);
const server = http.createServer();
const io = new Server(server, { cors: { origin: 'http://page.test', credentials: true } });
let connections = 0;
let unknown = 0;

// "Session ID unknown" is code 1: a request that came to the wrong server.
io.engine.on('connection_error', (error) => {
  if (error.code === 1) unknown += 1;
});

function serve(socket) {
  connections += 1;
  socket.emit('name', name);
  socket.on('echo', (value, acknowledge) => acknowledge(value));
  socket.on('join', (room, acknowledge) => {
    socket.join(room);
    acknowledge();
  });
  socket.on('unknown', (acknowledge) => acknowledge(unknown));
  socket.on('crash', () => process.kill(process.pid, 'SIGKILL'));
  socket.on('say', (room, text) => socket.nsp.to(room).emit('said', text));
}
io.on('connection', serve);
io.of('/admin').on('connection', serve);

async function share() {
  const { createAdapter } = require('@socket.io/redis-adapter');
  const { createClient } = require('redis');
  const [publisher, subscriber] = [createClient({ url: redis }), createClient({ url: redis })];
  await Promise.all([publisher.connect(), subscriber.connect()]);
  io.adapter(createAdapter(publisher, subscriber));
}

(redis ? share() : Promise.resolve()).then(() => {
  server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
});
process.on('SIGTERM', () => {
  console.log(`served ${connections} unknown ${unknown}`);
  process.exit();
});
