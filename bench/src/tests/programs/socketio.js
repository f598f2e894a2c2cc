// Rooms on Socket.IO, with short pings so that they happen. `except` as an argument: a publisher
// does not get its own messages, and what is delivered names its room.
const { Server } = require('socket.io');
const http = require('http').createServer();

const except = process.argv[2] === 'except';
const io = new Server(http, { transports: ['websocket'], serveClient: false, pingInterval: 50 });
io.on('connection', (socket) => {
  socket.emit('news', { of: 'no interest' });
  socket.on('sub', (room, done) => {
    socket.join(room);
    if (done) done('ok');
  });
  socket.on('pub', (room, data) => {
    if (except) socket.to(room).emit('m', room, data);
    else io.to(room).emit('m', data);
  });
});
http.listen(0, '127.0.0.1', () => console.log(`listening on ${http.address().port}`));
