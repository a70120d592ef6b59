"""HTTP to one server."""

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from skyrl_vllm.client import Client

IDLE_S = 0.2
"""After which the server closes a connection."""


class Impatient(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_no_request_is_lost_with_a_connection_that_the_server_closed_meanwhile() -> None:
    """A trainer in the same process computes, and its event loop stands still."""

    async def use() -> None:
        client = Client(f"http://127.0.0.1:{server.server_port}")
        for _ in range(3):
            assert await client.ask("POST", "/x", {}, timeout_s=5, queues=True) == {}
            time.sleep(3 * IDLE_S)
        await client.close()

    with ThreadingHTTPServer(("127.0.0.1", 0), Impatient) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            asyncio.run(use())
        finally:
            server.shutdown()
            thread.join()
