// Bun's own server. bun run bun.js PORT
//
//   /sub/TOPIC  gets what is published in the topic
//   /pub/TOPIC  publishes what it sends
//   /all        one room with everybody in it: each message goes to all, the sender too
//   others      echo
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  fetch(request, server) {
    const [, kind, topic] = new URL(request.url).pathname.split("/");
    const data = { kind, topic: topic ?? "all" };
    return server.upgrade(request, { data }) ? undefined : new Response("WebSocket only\n");
  },
  websocket: {
    idleTimeout: 0,
    perMessageDeflate: false,
    open(socket) {
      const { kind, topic } = socket.data;
      if (kind === "sub" || kind === "all") socket.subscribe(topic);
    },
    message(socket, message) {
      const { kind, topic } = socket.data;
      if (kind === "pub" || kind === "all") server.publish(topic, message);
      else socket.send(message);
    },
  },
});
