// Clients of large_server.js, unmodified, through the gateway: node large_client.js URL
// A message of 5 MB and back over each transport, and an upload of 25 MB, by its length and in chunks.
'use strict';
const assert = require('assert');
const crypto = require('crypto');
const http = require('http');
const { io } = require('socket.io-client');

const url = process.argv[2];
const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

async function message(transport, bytes) {
  const socket = io(url, { transports: [transport], forceNew: true, reconnection: false });
  await new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('connect_error', reject);
  });
  const gone = new Promise((_, reject) => {
    socket.once('disconnect', (reason) => reject(new Error(`${transport}: ${reason}`)));
  });
  const answer = new Promise((resolve) => {
    socket.emit('large', bytes, (...all) => resolve(all));
  });
  const [length, hash, back] = await Promise.race([answer, gone]);
  assert.equal(length, bytes.length);
  assert.equal(hash, digest(bytes));
  assert(bytes.equals(Buffer.from(back)));
  gone.catch(() => {});
  socket.close();
}

function upload(bytes, headers) {
  return new Promise((resolve, reject) => {
    const request = http.request(`${url}/upload`, { method: 'POST', headers }, (response) => {
      let text = '';
      response.on('data', (part) => (text += part));
      response.on('end', () => resolve([response.statusCode, text]));
    });
    request.on('error', reject);
    request.end(bytes);
  });
}

(async () => {
  const bytes = crypto.randomBytes(25_000_000);
  for (const transport of ['websocket', 'polling']) {
    await message(transport, bytes.subarray(0, 5_000_000));
    console.log(transport);
  }
  const want = [200, `${bytes.length} ${digest(bytes)}`];
  assert.deepEqual(await upload(bytes, { 'Content-Length': bytes.length }), want);
  assert.deepEqual(await upload(bytes, { 'Transfer-Encoding': 'chunked' }), want);
  console.log('upload');
  process.exit();
})();
