// An upstream that can be killed: node loss_server.js NAME HOST PORT.
//
// It prints `listening PORT`. Its first message to a client is its name; then it is an echo.
'use strict';
const { WebSocketServer } = require('ws');

const [name, host, port] = process.argv.slice(2);
const server = new WebSocketServer({ host, port: Number(port), backlog: 4096 });
server.on('listening', () => console.log(`listening ${server.address().port}`));
server.on('connection', (client) => {
  client.send(name);
  client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
  client.on('error', () => {}); // A `close` event follows.
});
