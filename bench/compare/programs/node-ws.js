// node with ws, rooms as a chat of twenty lines has them. node node-ws.js PORT
//
//   /sub/TOPIC  gets what is published in the topic
//   /pub/TOPIC  publishes what it sends
//   /all        one room with everybody in it: each message goes to all, the sender too
//   others      echo
const { WebSocketServer } = require("ws");
const topics = new Map();
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  backlog: 65535,
  perMessageDeflate: false,
  clientTracking: false,
});
server.on("connection", (socket, request) => {
  const [, kind, topic = "all"] = request.url.split("/");
  socket.on("error", () => {});
  if (kind === "sub" || kind === "all") {
    if (!topics.has(topic)) topics.set(topic, new Set());
    topics.get(topic).add(socket);
    socket.on("close", () => topics.get(topic).delete(socket));
  }
  socket.on("message", (message, binary) => {
    if (kind === "pub" || kind === "all") {
      for (const member of topics.get(topic) ?? []) member.send(message, { binary });
    } else {
      socket.send(message, { binary });
    }
  });
});
