// A chat on Socket.IO that takes large messages, and uploads beside it: node large_server.js
// It prints `listening PORT`.
'use strict';
const crypto = require('crypto');
const http = require('http');
const { Server } = require('socket.io');

const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

// Answers an upload with its length and digest.
const server = http.createServer((request, response) => {
  const hash = crypto.createHash('sha256');
  let length = 0;
  request.on('data', (bytes) => {
    hash.update(bytes);
    length += bytes.length;
  });
  request.on('end', () => response.end(`${length} ${hash.digest('hex')}`));
});
const io = new Server(server, { maxHttpBufferSize: 1e8 });
io.on('connection', (socket) => {
  socket.on('large', (bytes, acknowledge) => acknowledge(bytes.length, digest(bytes), bytes));
});
server.listen(0, '127.0.0.1', () => console.log(`listening ${server.address().port}`));
