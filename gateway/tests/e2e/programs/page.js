// Two windows of headless Chromium on the demo page, as somebody sees it for the first time.
//
//   node page.js http://HOST:PORT PROFILE_DIRECTORY DIRECTORY_FOR_PICTURES
//
// Prints "stop it" and "start it" when the gateway is to do so, at the same address.
'use strict';
const assert = require('assert');
const path = require('path');
const browser = require('./browser');

const [url, profile, pictures] = process.argv.slice(2);
const LINES_MAX = 200;

const shows = (page, selector, text) =>
  page.locator(selector, { hasText: text }).first().waitFor({ timeout: 30_000 });

async function say(page, text) {
  await page.fill('#text', text);
  await page.press('#text', 'Enter');
}

async function main() {
  const context = await browser.launch(profile);
  const problems = [];
  context.on('page', (page) => {
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('console', (message) => {
      // What Chromium says of every WebSocket that cannot be opened: the gateway is down for a while.
      const isOutage = /WebSocket connection to .* failed/.test(message.text());
      if (message.type() === 'error' && !isOutage) problems.push(message.text());
    });
  });
  const open = async (query) => {
    const page = await context.newPage();
    await page.goto(`${url}/${query}`);
    await page.locator('#state[data-state=joined]').waitFor({ timeout: 30_000 });
    return page;
  };
  const picture = (page, name) => page.screenshot({ path: path.join(pictures, `${name}.png`) });

  // At once in the lobby under a guest's name, and told what to do, until somebody else is there.
  const first = await open('');
  await shows(first, '#messages', /You are guest-\S+ in lobby/);
  assert.ok(await first.locator('#hint').isVisible());
  await picture(first, 'page-first');
  const [second] = await Promise.all([context.waitForEvent('page'), first.click('#second')]);
  await second.locator('#state[data-state=joined]').waitFor({ timeout: 30_000 });
  await shows(first, '#messages', /guest-\S+ came in/);
  assert.ok(!(await first.locator('#hint').isVisible()));
  for (const page of [first, second]) assert.strictEqual(await page.locator('#members li').count(), 2);

  await say(first, 'Is anybody <b>here</b>?');
  await shows(second, '#messages', 'Is anybody <b>here</b>?');
  await say(second, 'I am. Grüße!');
  for (const page of [first, second]) {
    await shows(page, '#messages', 'Is anybody <b>here</b>?');
    await shows(page, '#messages', 'I am. Grüße!');
    // Of one's own message: how long it took.
    await shows(page, '#messages .own small', /^\d+\.\d ms · #\d+$/);
    assert.strictEqual(await page.locator('#messages .waits').count(), 0);
  }
  // What people write is text, never markup.
  assert.strictEqual(await second.locator('#messages b', { hasText: /^here$/ }).count(), 0);

  await accessible(first);
  await byKeyboard(context);
  await inAllLooks(first, picture);

  // A restart of the gateway: a line says so, and both are back.
  console.log('stop it');
  for (const page of [first, second]) await shows(page, '#messages', 'connection to the gateway is lost');
  await picture(first, 'page-lost');
  console.log('start it');
  for (const page of [first, second]) {
    await shows(page, '#messages', /Connected again: the gateway was restarted.* You are guest-\S+ in lobby/);
    // Once for the outage, not for each attempt.
    assert.strictEqual(await page.locator('#messages li', { hasText: 'is lost. This page' }).count(), 1);
  }
  await say(second, 'Still there?');
  await shows(first, '#messages', 'Still there?');

  // As many lines as the page keeps.
  await first.evaluate((count) => {
    for (let line = 0; line < count; line++) note(`line ${line}`);
  }, LINES_MAX + 50);
  assert.strictEqual(await first.locator('#messages li').count(), LINES_MAX);
  await shows(first, '#messages li:last-child', `line ${LINES_MAX + 49}`);

  const ada = await open('?user=ada&room=tea');
  await shows(ada, '#members', 'ada (you)');
  await refusedName(context);
  assert.deepStrictEqual(problems, []);
  await context.close();
}

// What a screen reader is told.
async function accessible(page) {
  const log = page.getByRole('log', { name: 'Messages' });
  assert.strictEqual(await log.getAttribute('aria-live'), 'polite');
  for (const [role, name] of [['textbox', 'Name'], ['textbox', 'Room'], ['textbox', 'Message'],
    ['button', 'Join'], ['button', 'Send'], ['main', 'Conversation'], ['complementary', 'Members']]) {
    assert.strictEqual(await page.getByRole(role, { name, exact: true }).count(), 1, `${role} ${name}`);
  }
  assert.strictEqual(await page.getByRole('status').count(), 1);
  assert.strictEqual(await page.evaluate(() => document.documentElement.lang), 'en');
}

// Another name and room with nothing but keys.
async function byKeyboard(context) {
  const page = await context.newPage();
  await page.goto(url);
  await page.locator('#state[data-state=joined]').waitFor({ timeout: 30_000 });
  await page.focus('#name');
  await page.keyboard.type('keys');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Control+A');
  await page.keyboard.type('quiet');
  await page.keyboard.press('Enter');
  await shows(page, '#messages', 'You are keys in quiet');
  const focused = () => page.evaluate(() => document.activeElement.id);
  const seen = [];
  for (let presses = 0; presses < 8; presses++) {
    seen.push(await focused());
    if (seen.at(-1) === 'text') break;
    await page.keyboard.press('Tab');
  }
  assert.deepStrictEqual(seen, ['room', 'join', 'second', 'messages', 'text']);
  await page.keyboard.type('by hand');
  await page.keyboard.press('Enter');
  await shows(page, '#messages .own', 'by hand');
  await page.close();
}

// A phone and a desk, by day and by night: nothing sticks out, and there is room for messages.
async function inAllLooks(page, picture) {
  for (const [width, height] of [[390, 844], [1280, 800]]) {
    await page.setViewportSize({ width, height });
    const backgrounds = new Set();
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      await picture(page, `page-${width}-${colorScheme}`);
      const seen = await page.evaluate(() => ({
        background: getComputedStyle(document.body).backgroundColor,
        width: document.documentElement.scrollWidth,
        height: document.documentElement.scrollHeight,
        messages: document.getElementById('messages').clientHeight,
        send: document.getElementById('send').getBoundingClientRect().bottom,
      }));
      backgrounds.add(seen.background);
      assert.ok(seen.width <= width && seen.height <= height, JSON.stringify(seen));
      assert.ok(seen.messages > height / 3 && seen.send <= height, JSON.stringify(seen));
    }
    assert.strictEqual(backgrounds.size, 2);
  }
}

// A gateway that takes no names: the page is let in as a guest, and says so.
async function refusedName(context) {
  const page = await context.newPage();
  await page.addInitScript(() => {
    const Original = window.WebSocket;
    window.WebSocket = class extends Original {
      // Nobody listens on a port that browsers do not even try.
      constructor(at) { super(new URL(at).search ? 'ws://127.0.0.1:1/' : at); }
    };
  });
  await page.goto(`${url}/?user=mallory`);
  await shows(page, '#messages', 'The gateway did not take that name');
  await shows(page, '#messages', /You are guest-\S+ in lobby/);
  await page.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
