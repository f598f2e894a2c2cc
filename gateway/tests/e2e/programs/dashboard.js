// The dashboard in headless Chromium, while clients on the npm package `ws` keep the gateway busy.
//
//   node dashboard.js http://ADMIN TOKEN ws://GATEWAY HOSTILE_ROUTE PROFILE_DIRECTORY PICTURES_DIRECTORY
//
// It prints `kill it` and `start it` when the gateway is to be killed and to be started again.
'use strict';
const assert = require('assert');
const path = require('path');
const { once } = require('events');
const WebSocket = require('ws');
const browser = require('./browser');

const [admin, token, gateway, hostile, profile, pictures] = process.argv.slice(2);
const CLIENTS_PER_PATH = 20;
const PATIENCE_MS = 90_000;

// ---- Load

const clients = [];
// A client that always has one message under way.
async function keepBusy(target, first) {
  const finishRequest = (request) => {
    // As it is: in a URL it would be escaped.
    request.path = target;
    request.end();
  };
  const client = new WebSocket(gateway, { perMessageDeflate: false, finishRequest });
  client.on('error', () => {});
  await once(client, 'open');
  client.on('message', () => setImmediate(() => client.readyState === WebSocket.OPEN && client.send(first)));
  client.send(first);
  clients.push(client);
}
async function load(hostilePath) {
  for (let index = 0; index < CLIENTS_PER_PATH; index++) {
    await keepBusy('/echo', Buffer.alloc(64));
    await keepBusy('/app', Buffer.alloc(300));
    await keepBusy(hostilePath, Buffer.alloc(10));
  }
  // Two that leave, for the causes.
  for (const [code, count] of [[1000, 3], [undefined, 2]]) {
    for (let index = 0; index < count; index++) {
      const client = new WebSocket(`${gateway}/echo`);
      client.on('error', () => {});
      await once(client, 'open');
      if (code) client.close(code);
      else client.terminate();
      await once(client, 'close');
    }
  }
}

// ---- Pages

const problems = [];
const expected = [];
let context;

// What the page was told last, by path; problems go to `problems`.
async function open(options = {}) {
  const page = await context.newPage();
  page.heard = {};
  page.asked = [];
  page.hearing = [];
  page.on('request', (request) => page.asked.push(new URL(request.url()).pathname));
  page.on('response', (response) => {
    const { pathname } = new URL(response.url());
    if (!pathname.startsWith('/api/') || !response.ok()) return;
    const heard = response.json().then((json) => { page.heard[pathname.split('/').pop()] = json; });
    // The gateway was killed, or the page is gone.
    page.hearing.push(heard.catch(() => {}));
  });
  page.on('pageerror', (error) => problems.push(`error: ${error.stack}`));
  page.on('dialog', (dialog) => { problems.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on('console', (message) => {
    const text = message.text();
    if (message.type() !== 'error' || expected.some((it) => it.test(text))) return;
    problems.push(`console: ${text} (${message.location().url})`);
  });
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  });
  if (options.token) await page.addInitScript((it) => sessionStorage.setItem('penstock-token', it), options.token);
  if (options.media) await page.emulateMedia(options.media);
  if (options.width) await page.setViewportSize({ width: options.width, height: 900 });
  if (options.before) await options.before(page);
  await page.goto(options.path || `${admin}/`);
  return page;
}
const when = (page, condition, argument) => page.waitForFunction(condition, argument, { timeout: PATIENCE_MS });
const polled = async (page, times = 1) => {
  const before = await page.evaluate(() => Number(document.body.dataset.polls || 0));
  await when(page, (wanted) => Number(document.body.dataset.polls || 0) >= wanted, before + times);
};
const text = (page, selector) => page.locator(selector).first().innerText();
const whole = (n) => Math.round(n).toLocaleString('en-US');
// `12.3 k`, `4.5 MiB` and the like as numbers.
function amount(words) {
  const [, number, unit] = /^\s*([\d.,]+)\s*([kKMG]i?B?|B)?/.exec(words) || [];
  assert.ok(number, `a number in ${words}`);
  const factor = { k: 1e3, M: 1e6, G: 1e9, KiB: 1024, MiB: 2 ** 20, GiB: 2 ** 30, B: 1 }[unit] || 1;
  return Number(number.replaceAll(',', '')) * factor;
}
const near = (got, want, what) => assert.ok(Math.abs(got - want) <= Math.max(.06 * want, .1), `${what}: ${got} instead of ${want}`);

// ---- What is seen

async function askedForTheToken() {
  expected.push(/status of 401/);
  const page = await open();
  await page.locator('dialog[open]').waitFor();
  assert.deepStrictEqual(page.asked.filter((it) => it.startsWith('/api/')), ['/api/v1/status'], 'one question, and then a prompt');
  await page.fill('#token', 'a-guess-of-some-length');
  await page.keyboard.press('Enter');
  await page.locator('#ask-fault:visible').waitFor();
  await page.fill('#token', token);
  await page.keyboard.press('Enter');
  await page.locator('#state[data-is=serving]').waitFor();
  assert.ok(!(await page.locator('dialog').isVisible()));
  // For this tab, and for as long as it is open.
  await page.reload();
  await page.locator('#state[data-is=serving]').waitFor();
  assert.strictEqual(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  await page.click('#forget');
  await page.locator('dialog[open]').waitFor();
  await page.close();
  expected.pop();
}

async function numbersAreTheirs(page) {
  await when(page, () => document.querySelector('#heat .plot canvas').dataset.cells > 3);
  // Held still, so that what it was told last is what it shows.
  await page.click('#pause');
  await when(page, () => document.querySelector('#state').dataset.is === 'paused');
  await when(page, () => !busy);
  await Promise.all(page.hearing);
  const heard = page.heard;
  const all = await page.evaluate(() => ({ last: data.history.at(-1), count: data.history.length }));
  const last = all.last;
  assert.strictEqual(heard.history.intervals.at(-1)?.unix_ms ?? last.unix_ms, last.unix_ms);
  const per = (count) => count / ((last.length_ms || 5000) / 1000);
  assert.strictEqual(await text(page, '#tile-clients span'), whole(heard.status.clients));
  assert.strictEqual(heard.status.clients, 3 * CLIENTS_PER_PATH);
  assert.strictEqual(await text(page, '#tile-upstream span'), whole(heard.status.upstreams));
  assert.ok(last.messages_in > 0 && last.messages_out > 0, JSON.stringify(last));
  near(amount(await text(page, '#tile-rates span')), per(last.messages_in + last.messages_out), 'messages');
  near(amount(await text(page, '#tile-received')), per(last.received_bytes), 'received');
  near(amount(await text(page, '#tile-resident')), heard.memory.rss_bytes, 'resident');
  assert.strictEqual(await text(page, '#tile-behind span'), whole(last.slow_consumers));
  const facts = await text(page, '#facts');
  for (const fact of [heard.status.version, `configuration ${heard.status.config_generation}`, `pid ${heard.status.pid}`]) assert.ok(facts.includes(fact), facts);

  const rows = (id) => page.locator(`#${id} tbody tr`);
  assert.strictEqual(await rows('shards').count(), heard.shards.shards.length);
  for (const it of heard.shards.shards) {
    assert.ok((await rows('shards').nth(it.shard).innerText()).includes(whole(it.clients)), `shard ${it.shard}`);
  }
  assert.strictEqual(await rows('upstreams').count(), heard.upstreams.upstreams.length);
  for (const [index, it] of heard.upstreams.upstreams.entries()) {
    const words = await rows('upstreams').nth(index).innerText();
    for (const word of [it.url, it.backend, it.state.replace('_', ' '), whole(it.connections)]) assert.ok(words.includes(word), `${word} in ${words}`);
  }
  for (const it of heard.routes.routes) {
    const words = await page.locator('#routes tr', { hasText: it.route }).first().innerText();
    assert.ok(words.includes(whole(it.clients)), words);
  }
  const closes = heard.closes.closes;
  assert.ok(closes.length >= 5);
  assert.strictEqual(await rows('closes').count(), Math.min(60, closes.length));
  assert.ok((await rows('closes').first().innerText()).includes(closes[0].cause));
  const components = heard.memory.components;
  assert.strictEqual(await page.locator('#memory .memory li').count(), components.length);
  for (const it of components) {
    const words = await page.locator('#memory .memory li', { has: page.getByText(it.name, { exact: true }) }).locator('b').innerText();
    near(amount(words), it.bytes, it.name);
  }
  // Causes are counted over all intervals, and one of them can be singled out.
  const sum = await page.evaluate(() => data.history.reduce((sum, it) => sum + (it.closed.client_close || 0), 0));
  const cause = page.locator('#causes button', { hasText: 'client_close' });
  assert.strictEqual(sum, 3);
  assert.match(await cause.innerText(), /3 · /);
  await cause.click();
  assert.strictEqual(await rows('closes').count(), closes.filter((it) => it.cause === 'client_close').length);
  await cause.click();

  // The table behind a chart has the same numbers.
  await page.locator('#messages summary').click();
  const cells = await page.locator('#messages details tbody tr').first().locator('td').allInnerTexts();
  near(amount(cells[1]), per(last.messages_in), 'from clients');
  near(amount(cells[2]), per(last.messages_out), 'to clients');
  assert.strictEqual(await page.locator('#messages details tbody tr').count(), all.count);
}

async function routesCanBeChosen(page) {
  const names = await page.locator('#route option').allInnerTexts();
  assert.ok(names.length >= 3, names.join());
  for (const name of names) {
    await page.selectOption('#route', name);
    for (const direction of ['to_client', 'to_upstream']) {
      await page.selectOption('#direction', direction);
      const it = await page.evaluate((wanted) => data.history.at(-1).routes.find((one) => one.route === wanted), name);
      const shown = await page.locator('#latency .legend b').allInnerTexts();
      if (!it || it[direction].count === 0) { assert.deepStrictEqual(shown, ['–', '–', '–']); continue; }
      for (const [index, field] of ['p50_us', 'p99_us', 'p999_us'].entries()) {
        const us = parseFloat(shown[index].replaceAll(',', '')) * { µs: 1, ms: 1e3, s: 1e6 }[shown[index].split(' ')[1]];
        near(us, it[direction][field], `${name} ${direction} ${field}`);
      }
    }
  }
  // A row of the table chooses as well.
  await page.locator('#routes .link', { hasText: '/app' }).click();
  assert.match(await page.inputValue('#route'), /\/app$/);
}

async function cellsSayWhatTheyAre(page) {
  const canvas = page.locator('#heat .plot canvas');
  assert.ok(Number(await canvas.getAttribute('data-cells')) > 3);
  const painted = await canvas.evaluate((it) => it.getContext('2d').getImageData(0, 0, it.width, it.height).data.some((byte) => byte > 0));
  assert.ok(painted, 'something is painted');
  // Where the most messages of the last interval are.
  const want = await page.evaluate(() => {
    const it = data.history.at(-1), row = it.latency.indexOf(Math.max(...it.latency));
    return { count: it.latency[row], x: heat.x(it.unix_ms) - 1, y: heat.y(row) + heat.high / 2 };
  });
  await page.locator('#heat .reach').hover({ position: { x: want.x, y: want.y } });
  const words = await text(page, '#heat .readout');
  assert.ok(words.includes(`${whole(want.count)} message`), `${want.count} in ${words}`);
  // By keys, and as the screen reader is told.
  const reach = page.locator('#heat .reach');
  await reach.focus();
  await page.keyboard.press('End');
  await page.keyboard.press('ArrowUp');
  assert.match(await text(page, '#heat .readout'), /message/);
  assert.match(await reach.getAttribute('aria-valuetext'), /^\d\d:\d\d:\d\d: .* messages?$/);
  await page.keyboard.press('Escape');
  // Each picture has words.
  for (const label of await page.locator('[role=img]').evaluateAll((all) => all.map((it) => it.getAttribute('aria-label')))) assert.ok(label && label.length > 20, label);
  assert.ok(await page.locator('[role=img]').count() >= 9);
}

async function namesAreText(page) {
  assert.ok((await page.locator('#routes').innerText()).includes(hostile));
  const foreign = () => page.evaluate(() => document.querySelectorAll('main img, main b b, main script, main style').length + (window.owned ? 100 : 0));
  assert.strictEqual(await foreign(), 0);
  assert.deepStrictEqual(await page.evaluate(() => window.violations), []);
}

// An answer in which every word is markup.
async function answersAreText() {
  const evil = '<img src=x onerror="window.owned=1"><b>x</b>';
  const spoil = (value) => {
    if (typeof value === 'string') return value + evil;
    if (Array.isArray(value)) return value.map(spoil);
    if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([key, it]) => [key, key === 'closed' ? Object.fromEntries(Object.entries(it).map(([cause, count]) => [cause + evil, count])) : spoil(it)]));
    return value;
  };
  const page = await open({
    token,
    before: (page) => page.route('**/api/v1/**', async (route) => {
      const answer = await route.fetch();
      await route.fulfill({ response: answer, json: spoil(await answer.json()) });
    }),
  });
  await polled(page);
  await when(page, () => document.querySelectorAll('#closes tbody tr').length > 0);
  for (const id of ['facts', 'routes', 'upstreams', 'causes', 'closes', 'memory', 'route']) {
    assert.ok((await page.locator(`#${id}`).textContent()).includes(evil), id);
  }
  assert.strictEqual(await page.locator('main img, header img').count(), 0);
  assert.deepStrictEqual(await page.evaluate(() => [window.owned, window.violations]), [undefined, []]);
  // And if something did get in, it would not run: the policy is in force.
  expected.push(/Content Security Policy/);
  const ran = await page.evaluate(() => {
    const script = document.createElement('script');
    script.textContent = 'window.owned = 1';
    document.body.append(script);
    const other = document.createElement('b');
    other.setAttribute('onclick', 'window.owned = 1');
    document.body.append(other);
    other.click();
    return window.owned;
  });
  assert.strictEqual(ran, undefined);
  await when(page, () => window.violations.length >= 2);
  await page.close();
  expected.pop();
}

async function fitsAndIsDark() {
  const seen = {};
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [360, 390, 768, 1440]) {
      const page = await open({ token, width, media: { colorScheme, reducedMotion: 'reduce' } });
      await when(page, () => document.querySelector('#heat .plot canvas').dataset.cells > 0);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} > ${width}`);
      if (width === 1440) {
        seen[colorScheme] = await page.evaluate(() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, colour(.5)]);
        // Three panels beside each other.
        assert.ok((await page.locator('#shards').boundingBox()).width < 500);
      }
      if (width === 360) assert.ok((await page.locator('#shards').boundingBox()).width > 300);
      await page.screenshot({ path: path.join(pictures, `dashboard-${width}-${colorScheme}.png`), fullPage: true });
      assert.deepStrictEqual(await page.evaluate(() => window.violations), []);
      await page.close();
    }
  }
  for (const [index, light] of seen.light.entries()) assert.notStrictEqual(light, seen.dark[index]);
}

// Time is the test's own here, so that nothing is waited for that should not happen.
async function restsWhileNobodyLooks() {
  const page = await open({ token, before: (page) => page.clock.install() });
  await polled(page);
  const look = (state) => page.evaluate((it) => {
    Object.defineProperty(document, 'visibilityState', { value: it, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, state);
  await look('hidden');
  const before = page.asked.length;
  await page.clock.runFor(120_000);
  assert.strictEqual(page.asked.length, before, 'it asks nothing');
  await look('visible');
  await when(page, () => Number(document.body.dataset.polls) > 1);
  assert.ok(page.asked.length > before);
  await page.close();
}

async function outlivesTheGateway(page) {
  await page.click('#pause');
  await page.locator('#state[data-is=serving]').waitFor();
  const pid = page.heard.status.pid;
  const before = await page.evaluate(() => data.history.at(-1).unix_ms);
  expected.push(/ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/);
  console.log('kill it');
  await page.locator('#state[data-is=lost]').waitFor({ timeout: PATIENCE_MS });
  assert.match(await text(page, '#state'), /^no answer since \d\d:\d\d:\d\d$/);
  assert.match(await page.title(), /no answer/);
  console.log('start it');
  await page.locator('#state[data-is=serving]').waitFor({ timeout: PATIENCE_MS });
  await when(page, (it) => data.history.at(-1).unix_ms > it && data.history.some((one) => one.unix_ms <= it), before);
  expected.pop();
  assert.notStrictEqual(page.heard.status.pid, pid);
  // What was before is still there, and where it ended is marked.
  assert.ok((await page.locator('#connections svg text', { hasText: 'restart' }).count()) === 1);
  assert.deepStrictEqual(await page.evaluate(() => window.violations), []);
}

async function main() {
  context = await browser.launch(profile);
  context.setDefaultTimeout(PATIENCE_MS);
  await load(hostile.slice(hostile.indexOf('/')));
  await askedForTheToken();
  const page = await open({ token, path: `${admin}/dashboard`, width: 1440 });
  await numbersAreTheirs(page);
  await routesCanBeChosen(page);
  await cellsSayWhatTheyAre(page);
  await namesAreText(page);
  await answersAreText();
  await fitsAndIsDark();
  await restsWhileNobodyLooks();
  await outlivesTheGateway(page);
  assert.deepStrictEqual(problems, []);
  clients.forEach((client) => client.terminate());
  await context.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error, problems);
    process.exit(1);
  },
);
