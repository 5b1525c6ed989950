"""An HTTP/1.1 server behind the HTTP/2 cases: a short answer to everything, and a late one below /slow."""
import http.server
import ssl
import sys
import time

PORT, CERTIFICATE, KEY = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ANSWER = b"hello, this is the far side\n"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            self.rfile.read(size + 2)
        while self.rfile.readline().strip():
            pass

    def do_GET(self):
        self.body()
        if self.path == "/slow":
            time.sleep(0.5)
        self.send_response(200)
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(ANSWER)

    do_HEAD = do_POST = do_GET


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def finish_request(self, request, address):
        # The handshake in the connection's own thread: one who says nothing keeps nobody waiting.
        try:
            super().finish_request(TLS.wrap_socket(request, server_side=True), address)
        except (OSError, ValueError):
            pass


TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
TLS.load_cert_chain(CERTIFICATE, KEY)
Server(("127.0.0.1", PORT), Handler).serve_forever()
