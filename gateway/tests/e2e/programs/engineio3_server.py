"""A server of Engine.IO 3 (python-engineio 3). With the argument `compress` it compresses every answer to
clients that take that."""

import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import engineio


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Handler(WSGIRequestHandler):
    def log_message(self, *_):
        pass


compress = "compress" in sys.argv[1:]
eio = engineio.Server(
    async_mode="threading",
    cookie=None,
    http_compression=compress,
    compression_threshold=0,
)
server = make_server("127.0.0.1", 0, engineio.WSGIApp(eio), Server, Handler)
print(f"listening {server.server_port}", flush=True)
server.serve_forever()
