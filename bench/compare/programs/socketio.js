// Socket.IO. node socketio.js PORT
//
//   "sub" TOPIC       joins, and is acknowledged
//   "pub" TOPIC DATA  goes to all who joined, as "m" DATA
const { Server } = require("socket.io");
const http = require("node:http").createServer();
const io = new Server(http, {
  transports: ["websocket"],
  perMessageDeflate: false,
  serveClient: false,
});
io.on("connection", (socket) => {
  socket.on("sub", (topic, acknowledge) => {
    socket.join(topic);
    if (acknowledge) acknowledge(1);
  });
  socket.on("pub", (topic, message) => io.to(topic).emit("m", message));
});
http.listen(Number(process.argv[2]), "127.0.0.1", 65535);
