// Two windows of headless Chromium on the demo page chat with each other.
//
//   node page.js http://HOST:PORT PROFILE_DIRECTORY [SCREENSHOT.png]
'use strict';
const assert = require('assert');
const browser = require('./browser');

const [url, profile, screenshot] = process.argv.slice(2);

async function main() {
  const context = await browser.launch(profile);
  const problems = [];
  const open = async (user) => {
    const page = await context.newPage();
    page.on('pageerror', (error) => problems.push(`${user}: ${error}`));
    page.on('console', (message) => {
      if (message.type() === 'error') problems.push(`${user}: ${message.text()}`);
    });
    await page.goto(`${url}/?user=${user}&room=tea&join=1`);
    return page;
  };
  const shows = (page, selector, text) =>
    page.locator(selector, { hasText: text }).first().waitFor({ timeout: 30_000 });

  const ada = await open('ada');
  await shows(ada, '#members', 'ada');
  const grace = await open('grace');
  for (const page of [ada, grace]) {
    await shows(page, '#members', 'ada');
    await shows(page, '#members', 'grace');
  }

  const say = async (page, text) => {
    await page.fill('#text', text);
    await page.click('#send');
  };
  await say(ada, 'Is anybody <b>here</b>?');
  await shows(grace, '#messages', 'Is anybody <b>here</b>?');
  await say(grace, 'I am. Grüße!');
  for (const page of [ada, grace]) {
    await shows(page, '#messages', 'Is anybody <b>here</b>?');
    await shows(page, '#messages', 'I am. Grüße!');
  }
  // What people write is text, never markup.
  assert.strictEqual(await grace.locator('#messages b', { hasText: /^here$/ }).count(), 0);
  if (screenshot) await ada.screenshot({ path: screenshot });
  assert.deepStrictEqual(problems, []);
  await context.close();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
