// Echoes each message after a fixed time. node waiting.js PORT MILLISECONDS
const { WebSocketServer } = require("ws");
const [port, milliseconds] = process.argv.slice(2).map(Number);
const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false });
server.on("connection", (socket) => {
  socket.on("message", (message, binary) => {
    setTimeout(() => socket.send(message, { binary }), milliseconds);
  });
});
