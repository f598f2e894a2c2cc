// uWebSockets.js. node uws.js PORT
//
//   /sub/TOPIC  gets what is published in the topic
//   /pub/TOPIC  publishes what it sends
//   /all        one room with everybody in it: each message goes to all, the sender too
//   others      echo
const uWS = require("@trufflesuite/uws-js-unofficial");
const app = uWS.App();
app.ws("/*", {
  compression: uWS.DISABLED,
  idleTimeout: 0,
  maxPayloadLength: 1 << 20,
  maxBackpressure: 1 << 20,
  upgrade(response, request, context) {
    const [, kind, topic] = request.getUrl().split("/");
    response.upgrade(
      { kind, topic: topic ?? "all" },
      request.getHeader("sec-websocket-key"),
      request.getHeader("sec-websocket-protocol"),
      request.getHeader("sec-websocket-extensions"),
      context,
    );
  },
  open(socket) {
    const { kind, topic } = socket.getUserData();
    if (kind === "sub" || kind === "all") socket.subscribe(topic);
  },
  message(socket, message, isBinary) {
    const { kind, topic } = socket.getUserData();
    if (kind === "pub" || kind === "all") app.publish(topic, message, isBinary);
    else socket.send(message, isBinary, false);
  },
});
app.listen("127.0.0.1", Number(process.argv[2]), (listening) => {
  if (!listening) {
    console.error("cannot listen");
    process.exit(1);
  }
});
