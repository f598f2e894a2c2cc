// Topics on node's ws: /sub/TOPIC listens, what is sent to /pub/TOPIC goes to all who do.
const { WebSocketServer } = require('ws');

const topics = new Map();
const server = new WebSocketServer({ host: '127.0.0.1', port: 0, perMessageDeflate: false });
server.on('listening', () => console.log(`listening on ${server.address().port}`));
server.on('connection', (socket, request) => {
  const [, verb, topic] = request.url.split('/');
  if (!topics.has(topic)) topics.set(topic, new Set());
  const listeners = topics.get(topic);
  if (verb === 'sub') {
    listeners.add(socket);
    socket.on('close', () => listeners.delete(socket));
  } else if (verb === 'pub') {
    socket.on('message', (data, binary) => {
      for (const listener of listeners) listener.send(data, { binary });
      socket.send('published'); // As some servers do.
    });
  } else {
    socket.close(1008);
  }
});
