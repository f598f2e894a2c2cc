// A page of another site, in headless Chromium that reaches the admin interface over TCP and, through a
// forwarder, at its Unix socket: nothing that the page tries has an effect or shows an answer.
//
//   node foreign.js ADMIN_PORT FORWARDED_PORT PROFILE_DIRECTORY
'use strict';
const assert = require('assert');
const http = require('http');
const browser = require('./browser');

const [admin, forwarded, profile] = process.argv.slice(2);

// Runs in the page: everything that a page can send to another place, and what it learns of it.
async function attack(base) {
  const learnt = [];
  const reads = ['/api/v1/status', '/metrics', '/api/v1/connections', '/api/v1/health/live', '/'];
  for (const path of reads) {
    try {
      const answer = await fetch(base + path);
      learnt.push(`${path}: ${answer.status} ${(await answer.text()).slice(0, 40)}`);
    } catch { /* As it should be. */ }
  }
  const orders = ['/api/v1/drain', '/api/v1/connections/close?all=true', '/api/v1/reload'];
  for (const path of orders) {
    for (const type of ['text/plain', 'application/x-www-form-urlencoded']) {
      await fetch(base + path, {
        method: 'POST', mode: 'no-cors', body: 'x', headers: { 'Content-Type': type },
      }).catch(() => {});
    }
    navigator.sendBeacon(base + path, 'x');
    // With the header it takes a preflight, which nobody answers.
    await fetch(base + path, { method: 'POST', headers: { 'Penstock-Order': 'yes' } })
      .then((answer) => learnt.push(`${path}: ${answer.status}`), () => {});
    const form = document.body.appendChild(document.createElement('form'));
    const frame = document.body.appendChild(document.createElement('iframe'));
    frame.name = `frame-${path}`;
    form.method = 'POST';
    form.action = base + path;
    form.target = frame.name;
    const loaded = new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 2000); });
    form.submit();
    await loaded;
  }
  return learnt;
}

async function main() {
  const site = http.createServer((request, response) => {
    response.setHeader('Content-Type', 'text/html');
    response.end('<!doctype html><title>another site</title><body>');
  });
  await new Promise((resolve) => { site.listen(0, '127.0.0.1', resolve); });
  // A name of another site that suddenly leads here.
  const rule = '--host-resolver-rules=MAP *.example.org 127.0.0.1';
  const context = await browser.launch(profile, [rule]);
  const page = await context.newPage();
  await page.goto(`http://evil.example.org:${site.address().port}/`);
  for (const port of [admin, forwarded]) {
    for (const host of ['127.0.0.1', 'localhost', 'gateway.example.org']) {
      assert.deepStrictEqual(await page.evaluate(attack, `http://${host}:${port}`), []);
    }
  }
  // As the page's own name, the answers are its to read, and say nothing.
  for (const port of [admin, forwarded]) {
    for (const path of ['/api/v1/status', '/metrics', '/api/v1/health/live']) {
      const answer = await page.goto(`http://evil.example.org:${port}${path}`);
      assert.strictEqual(answer.status(), 403, `${port} ${path}`);
      assert.match(await answer.text(), /^\{"faults":\[/);
    }
  }
  // The operator's own browser still has the dashboard, and over the socket its data.
  for (const port of [admin, forwarded]) {
    const answer = await page.goto(`http://localhost:${port}/`);
    assert.strictEqual(answer.status(), 200);
    const status = await page.evaluate(async () => (await fetch('/api/v1/status')).status);
    assert.strictEqual(status, port === admin ? 401 : 200);
  }
  await context.close();
  site.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
