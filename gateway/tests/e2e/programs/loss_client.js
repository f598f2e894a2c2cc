// Clients that talk and come back: node loss_client.js URL COUNT VICTIM.
//
// It opens COUNT clients, each of which is told the name of its upstream, and then has a message echoed
// twice a second. It prints
//   open {"NAME":COUNT,..}   when all are open
//   back JSON                when all clients of the upstream VICTIM were closed and all are open again
//   end JSON                 the same figures, a second later: what came since
// A client that is closed with the reason `retry-after=MS` comes back after that time.
//
// The figures: `closes` by upstream and code; `closedAt` and `backAt` of each (milliseconds since
// 1970), `hints`, `over` (how much longer than its hint a client took to be back), `refused` (attempts
// to come back that failed), `errors` (whatever else went wrong), `slowest` (the longest echo of a
// client that was not closed).
'use strict';
const WebSocket = require('ws');

const [url, wanted, victim] = process.argv.slice(2);
const count = Number(wanted);
const OPENING_MAX = 100;
const figures = {
  closes: {}, codes: {}, closedAt: [], backAt: [], hints: [], over: [], places: {},
  refused: 0, errors: 0, slowest: 0,
};
const open = {};
let opened = 0;
let begun = 0;
let away = 0;
let ended = false;

function begin() {
  if (begun < count) connect(begun++, null);
}

function connect(number, absence) {
  const socket = new WebSocket(url, { perMessageDeflate: false });
  let name = null;
  let asked = 0;
  let timer = null;
  socket.on('message', (data) => {
    if (name === null) {
      name = data.toString();
      open[name] = (open[name] ?? 0) + 1;
      timer = setInterval(() => {
        // One at a time: what is late is seen in the time of that one.
        if (asked === 0 && socket.readyState === WebSocket.OPEN) {
          asked = Date.now();
          socket.send(`${number} ${asked}`);
        }
      }, 400 + Math.random() * 200);
      absence === null ? first() : returned(absence, name);
      return;
    }
    if (data.toString() !== `${number} ${asked}`) figures.errors += 1;
    const took = Date.now() - asked;
    if (absence === null && name !== victim && took > figures.slowest) figures.slowest = took;
    asked = 0;
  });
  socket.on('error', () => {}); // A `close` event follows.
  socket.on('close', (code, reason) => {
    clearInterval(timer);
    if (ended) return;
    if (name === null) {
      if (absence === null) {
        figures.errors += 1;
      } else {
        figures.refused += 1;
        setTimeout(() => connect(number, absence), 100);
      }
      return;
    }
    open[name] -= 1;
    away += 1;
    const at = Date.now();
    const hint = /^retry-after=(\d+)$/.exec(reason.toString());
    const key = `${name} ${code}`;
    figures.closes[key] = (figures.closes[key] ?? 0) + 1;
    figures.closedAt.push(at);
    if (hint === null) figures.errors += 1;
    const wait = hint === null ? 100 : Number(hint[1]);
    figures.hints.push(wait);
    setTimeout(() => connect(number, { at, wait }), wait);
  });
}

function first() {
  opened += 1;
  if (opened === count) console.log(`open ${JSON.stringify(open)}`);
  begin();
}

let told = false;
function returned({ at, wait }, name) {
  away -= 1;
  const now = Date.now();
  figures.backAt.push(now);
  figures.over.push(now - at - wait);
  figures.places[name] = (figures.places[name] ?? 0) + 1;
  if (away === 0 && open[victim] === 0 && !told) {
    told = true;
    console.log(`back ${JSON.stringify(figures)}`);
    setTimeout(() => {
      ended = true;
      console.log(`end ${JSON.stringify(figures)}`);
      process.exit(0);
    }, 1000);
  }
}

for (let index = 0; index < Math.min(count, OPENING_MAX); index += 1) begin();
