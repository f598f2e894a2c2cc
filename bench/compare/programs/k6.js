// Closed loop with a pause: each virtual user sends a message, waits for it, and sends the next a
// tenth of a second later. Its clock has milliseconds.
import { Trend } from "k6/metrics";
import { WebSocket } from "k6/experimental/websockets";

const roundTrip = new Trend("round_trip_ms");
const users = 20;
export const options = { vus: users, iterations: users, summaryTrendStats: ["count", "med"] };

export default function () {
  const socket = new WebSocket(__ENV.URL);
  let sent = 0;
  let count = 0;
  const send = () => {
    sent = Date.now();
    socket.send("k6");
  };
  socket.onopen = send;
  socket.onmessage = () => {
    roundTrip.add(Date.now() - sent);
    count += 1;
    if (count === Number(__ENV.MESSAGES)) {
      socket.close();
    } else {
      setTimeout(send, 100);
    }
  };
}
