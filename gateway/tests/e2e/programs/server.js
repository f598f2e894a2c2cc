// An ordinary server on the npm package `ws`, as it might stand behind the gateway.
//
// It prints `listening PORT`, and `closed PATH CODE REASON` for every connection that has ended.
// What it does depends on the path of the request:
//   /refuse     answers 401 with a body and a header of its own
//   /headers    its first message is the request's headers and URL, as JSON
//   /pings      as an echo; prints `pinged` and `ponged behind COUNT` (of messages) for those frames
//   otherwise   an echo; a text `close CODE REASON` asks it to close
'use strict';
const http = require('http');
const { WebSocketServer } = require('ws');

const server = http.createServer((request, response) => response.writeHead(426).end());
const sockets = new WebSocketServer({
  noServer: true,
  perMessageDeflate: { threshold: 0 },
  maxPayload: 64 << 20,
  // Messages of 65,536 fragments are among what is tested.
  maxFragments: 0,
  maxBufferedChunks: 0,
  handleProtocols: (offered) => (offered.has('chat.v2') ? 'chat.v2' : false),
});

server.on('upgrade', (request, socket, head) => {
  if (request.url === '/refuse') {
    const body = 'who are you?';
    const lines = [
      'HTTP/1.1 401 Unauthorized',
      'WWW-Authenticate: Bearer realm="penstock"',
      'Content-Type: text/plain',
      `Content-Length: ${body.length}`,
      'Connection: close',
    ];
    socket.end(`${lines.join('\r\n')}\r\n\r\n${body}`);
    return;
  }
  sockets.handleUpgrade(request, socket, head, (client) => serve(client, request));
});

function serve(client, request) {
  if (request.url.startsWith('/headers')) {
    const { headers, url, rawHeaders } = request;
    client.send(JSON.stringify({ headers, url, rawHeaders }));
  }
  let messages = 0;
  if (request.url === '/pings') {
    client.on('ping', () => console.log('pinged'));
    client.on('pong', () => console.log(`ponged behind ${messages}`));
  }
  client.on('message', (data, isBinary) => {
    messages += 1;
    const match = !isBinary && data.length < 200 && /^close (\d+) (.*)$/.exec(data.toString());
    if (match) client.close(Number(match[1]), match[2]);
    else client.send(data, { binary: isBinary });
  });
  client.on('error', () => {}); // A `close` event follows.
  client.on('close', (code, reason) => console.log(`closed ${request.url} ${code} ${reason}`));
}

server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, () => {
  console.log(`listening ${server.address().port}`);
});
