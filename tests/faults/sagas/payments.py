"""A payment service on the loopback, as such services are: slow, now and then down, and faithful to its keys."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from typing_extensions import override

DECLINED_CENTS: Final = 666
"""What nobody's card is good for."""
_DOWN: Final = 0.1
"""How often it answers 503: as often before it has charged as after."""


class PaymentService:
    """What was charged, by key. It answers one key always the same."""

    def __init__(self, slowest: float) -> None:
        self.slowest = slowest
        """Seconds that it thinks at most."""
        self.url = ""
        self._charges: dict[str, tuple[str, str]] = {}
        """Number and order, by key."""
        self._lock = threading.Lock()

    def charges(self) -> Counter[str]:
        """Return how often each order was charged."""
        with self._lock:
            return Counter(order for _, order in self._charges.values())

    def charge(self, key: str, order: str, cents: int) -> tuple[int, dict[str, str]]:
        """Return status and answer of one request."""
        time.sleep(random.uniform(0, self.slowest))  # on purpose: such services take their time
        fate = random.random()
        if fate < _DOWN:
            return 503, {}
        if cents == DECLINED_CENTS:
            return 402, {"reason": "card stolen"}
        with self._lock:
            number, _ = self._charges.setdefault(key, (f"ch_{len(self._charges)}", order))
        return (503, {}) if fate > 1 - _DOWN else (200, {"id": number})


@contextmanager
def payment_service(slowest: float = 0.25) -> Iterator[PaymentService]:
    """Run a payment service at a free port until the end of the block."""
    service = PaymentService(slowest)

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = service.charge(self.headers["Idempotency-Key"], body["order"], body["cents"])
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        @override
        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of a caller that was killed."""

    with Server(("127.0.0.1", 0), Answer) as server:
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
