// An echo on the npm package `ws`, plain or secured, with or without compression.
//
// Its one argument is JSON: `key` and `cert` (PEM) for TLS, `tls` for further options of that, and
// `deflate` for `perMessageDeflate`. It prints `listening PORT`, then a line of JSON for each
// connection: the extensions agreed to, and whether its TLS session was resumed. It ends when its
// input does.
'use strict';
const http = require('http');
const https = require('https');
const { WebSocketServer } = require('ws');

const { key, cert, tls, deflate } = JSON.parse(process.argv[2]);
const server = key ? https.createServer({ key, cert, ...tls }) : http.createServer();
const sockets = new WebSocketServer({
  server,
  perMessageDeflate: deflate || false,
  maxPayload: 64 << 20,
});
sockets.on('connection', (client, request) => {
  const resumed = key ? request.socket.isSessionReused() : null;
  const alpn = key ? request.socket.alpnProtocol : null;
  const name = key ? request.socket.servername : null;
  console.log(JSON.stringify({ extensions: client.extensions, resumed, alpn, name }));
  client.on('message', (data, isBinary) => client.send(data, { binary: isBinary }));
  client.on('error', () => {}); // A `close` event follows.
});
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
process.stdin.on('end', () => process.exit(0)).resume();
