// Headless Chromium, for the programs beside this.
'use strict';
const { chromium } = require('playwright-core');

// A browser with a profile of its own, and further options on its command line.
exports.launch = (profile, args = []) => chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  headless: true,
  // It may run as root, without a graphics card, and has nobody to talk to but us.
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', ...args,
  ],
});
