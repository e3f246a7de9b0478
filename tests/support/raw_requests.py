"""Unusual and malformed HTTP requests as bytes, and the expected answers.

Each case is the bytes that a client sends, and the statuses of the answers in order. `CLOSED` means that the connection
is closed without another answer; without it, the connection may stay open.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CLOSED = 0
JSON = b'{"argv":["true"]}'
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(JSON), JSON)

Case = tuple[bytes, tuple[int, ...]]


def cases(key: str, sandbox: str) -> Mapping[str, Case]:
    """All cases, by name, for a service with this key; commands run in this sandbox."""
    authorization = b"Authorization: Bearer " + key.encode()
    exec_path = f"/v1/sandbox/{sandbox}/exec".encode()
    running = f"/v1/sandbox/{sandbox}/running".encode()

    def get(target: bytes = b"/health", *more: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
        line = method + b" " + target + b" " + version
        return b"\r\n".join([line, b"Host: h", authorization, *more, b"", b""])

    def post(*more: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
        return get(exec_path, *more, method=b"POST", version=version) + body

    def sized(length: bytes) -> bytes:
        return post(b"Content-Length: " + length, body=JSON)

    healthy = get()
    length = b"Content-Length: %d" % len(JSON)
    good = post(length, body=JSON)
    return MappingProxyType(
        {
            # methods and targets
            "a method of another route": (get(method=b"PUT"), (405,)),
            "HEAD": (get(method=b"HEAD"), (405,)),
            "OPTIONS": (get(method=b"OPTIONS"), (405,)),
            "OPTIONS of all": (get(b"*", method=b"OPTIONS"), (404,)),
            "TRACE": (get(method=b"TRACE"), (405,)),
            "CONNECT": (get(b"h:80", method=b"CONNECT"), (404,)),
            "a method in small letters": (get(method=b"get"), (405,)),
            "a method that is no token": (get(method=b"G\xc3T"), (400, CLOSED)),
            "an unknown path": (get(b"/nothing"), (404,)),
            "a path without a slash": (get(b"health"), (404,)),
            "two slashes": (get(b"//health"), (404,)),
            "a query alone": (get(b"?x=1"), (404,)),
            "an address": (get(b"http://h/health"), (200,)),
            "an address with a query": (get(b"HTTPS://h:1/health?unknown=1"), (400,)),
            "an address without a path": (get(b"http://h"), (404,)),
            "an address of another kind": (get(b"ftp://h/health"), (404,)),
            "an address in the path": (get(b"/http://h/health"), (404,)),
            "an address of a bad name": (get(b"http://h/v1/sandbox/%ff/running"), (422,)),
            "a space in the target": (get(b"/hea lth"), (400, CLOSED)),
            "NUL in the target": (get(b"/\0"), (400, CLOSED)),
            "bytes in the target": (get(b"/\xff"), (400, CLOSED)),
            "escapes that are none": (get(b"/v1/sandbox/%zz/running"), (422,)),
            "NUL in a name": (get(b"/v1/sandbox/%00/running"), (422,)),
            "no UTF-8 in a name": (get(b"/v1/sandbox/%ff/running"), (422,)),
            "an escaped slash in a name": (get(b"/v1/sandbox/a%2fb/running"), (404,)),
            "a long target": (get(b"/" + b"a" * 60_000), (404,)),
            "a target that is too long": (get(b"/" + b"a" * 1_000_000), (431, CLOSED)),
            "very many parameters": (get(b"/health?" + b"&".join(b"a%d" % n for n in range(9000))), (400,)),
            # versions and other protocols
            "HTTP/1.0": (get(version=b"HTTP/1.0"), (200, CLOSED)),
            "HTTP/1.0 with a body": (post(length, body=JSON, version=b"HTTP/1.0"), (200, CLOSED)),
            "HTTP/1.0 in chunks": (post(CHUNKED, body=CHUNKS, version=b"HTTP/1.0"), (200, CLOSED)),
            "HTTP/0.9": (b"GET /health\r\n\r\n", (400, CLOSED)),
            "HTTP/2.0": (get(version=b"HTTP/2.0"), (400, CLOSED)),
            "another name than HTTP": (get(version=b"http/1.1"), (400, CLOSED)),
            "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), (400, CLOSED)),
            "the hello of TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(300), (400, CLOSED)),
            "an upgrade to HTTP/2": (get(b"/health", b"Connection: Upgrade", b"Upgrade: h2c"), (200,)),
            "an upgrade to a web socket": (
                get(running, b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
                (200,),
            ),
            "a line that is no request": (b"SSH-2.0-OpenSSH_9\r\n", (408, CLOSED)),
            "half a header": (b"GET / HTTP/1.1\r\nX-Slow: ", (408, CLOSED)),
            "carriage returns alone": (healthy.replace(b"\r\n", b"\r"), (408, CLOSED)),
            "nothing": (b"", (CLOSED,)),
            # headers
            "no host": (b"GET /health HTTP/1.1\r\n\r\n", (400, CLOSED)),
            "two hosts": (get(b"/health", b"Host: b"), (400, CLOSED)),
            "two keys": (get(running, authorization), (401,)),
            "bytes for a key": (b"GET /ready HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer \xff\r\n\r\n", (401,)),
            "a header of a megabyte": (get(b"/health", b"X: " + b"a" * 1_000_000), (431, CLOSED)),
            "very many headers": (get(b"/health", *(b"X-%d: 1" % n for n in range(30_000))), (431, CLOSED)),
            "NUL in a header": (get(b"/health", b"X: a\0b"), (400, CLOSED)),
            "a carriage return in a header": (get(b"/health", b"X: a\rb"), (400, CLOSED)),
            "a header without a name": (get(b"/health", b": a"), (400, CLOSED)),
            "a header without a colon": (get(b"/health", b"X"), (400, CLOSED)),
            "a space in a header's name": (get(b"/health", b"X : a"), (400, CLOSED)),
            "bytes in a header": (get(b"/health", b"X: \xff\xfe", b"X-Request-Id: \xff\"<script>"), (200,)),
            "a folded header": (get(b"/health", b"X: a\r\n b"), (200,)),
            "a fold before all headers": (b"GET /health HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n", (400, CLOSED)),
            "line feeds alone": (healthy.replace(b"\r\n", b"\n"), (200,)),
            # lengths
            "a length with a sign": (sized(b"+17"), (400, CLOSED)),
            "a length below 0": (sized(b"-1"), (400, CLOSED)),
            "a length in hexadecimal": (sized(b"0x11"), (400, CLOSED)),
            "two words for a length": (sized(b"1 7"), (400, CLOSED)),
            "no number for a length": (sized(b""), (400, CLOSED)),
            "a raised digit": (sized(b"\xb2"), (400, CLOSED)),
            "a length of thirty digits": (sized(b"9" * 30), (400, CLOSED)),
            "a length beyond the limit": (sized(b"9" * 12), (413,)),
            "equal lengths": (post(length, length, body=JSON), (200,)),
            "different lengths": (post(length, b"Content-Length: 5", body=JSON), (400, CLOSED)),
            "no body": (post(), (400,)),
            "a body without a length": (post(body=JSON), (400, 408, CLOSED)),
            "half a body": (post(length, body=JSON[:5]), (408,)),
            "a body where none is taken": (get(b"/health", b"Content-Length: 2") + b"xx", (400,)),
            # transfer codings
            "a length beside a coding": (post(length, CHUNKED, body=CHUNKS + healthy), (400, CLOSED)),
            "a coding that is none": (post(b"Transfer-Encoding: xchunked", body=JSON), (400, CLOSED)),
            "two codings": (post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS), (400, CLOSED)),
            "a coding twice": (post(CHUNKED, CHUNKED, body=CHUNKS), (400, CLOSED)),
            "a space before the colon": (post(b"Transfer-Encoding : chunked", body=CHUNKS), (400, CLOSED)),
            "a vertical tab": (post(b"Transfer-Encoding:\x0bchunked", body=CHUNKS), (400, CLOSED)),
            "chunks": (post(CHUNKED, body=CHUNKS), (200,)),
            "chunks with extensions": (post(CHUNKED, body=CHUNKS.replace(b"\r\n", b';a="b"\r\n', 1)), (200,)),
            "chunks with trailers": (post(CHUNKED, body=CHUNKS[:-2] + b"Authorization: x\r\n\r\n"), (200,)),
            "an extension that does not end": (post(CHUNKED, body=b"5;" + b"a" * 400_000), (431, CLOSED)),
            "a trailer that is none": (post(CHUNKED, body=CHUNKS[:-2] + b"no colon\r\n\r\n"), (400, CLOSED)),
            "no size of a chunk": (post(CHUNKED, body=b"\r\n" + CHUNKS), (400, CLOSED)),
            "a size that is no number": (post(CHUNKED, body=b"zz" + CHUNKS), (400, CLOSED)),
            "a size below 0": (post(CHUNKED, body=b"-1\r\n" + CHUNKS), (400, CLOSED)),
            "a size in another notation": (post(CHUNKED, body=b"0x" + CHUNKS), (400, CLOSED)),
            "a size that is too small": (post(CHUNKED, body=b"5" + CHUNKS[2:]), (400, CLOSED)),
            "a size beyond all measure": (post(CHUNKED, body=b"f" * 16 + CHUNKS[2:]), (408,)),
            "a bad chunk without a key": (
                post(CHUNKED, body=b"zz\r\n").replace(authorization, b"X-None: 1"), (400, CLOSED)
            ),
            # expectations, and several requests on a connection
            "an expectation": (post(length, b"Expect: 100-continue", body=JSON), (200,)),
            "an expectation that is refused": (get(b"/no", length, b"Expect: 100-continue", method=b"POST"), (404,)),
            "an expectation of too much": (post(b"Content-Length: 99999999", b"Expect: 100-continue"), (413,)),
            "requests in a row": (healthy + get(b"/nothing") + good + healthy, (200, 404, 200, 200)),
            "nonsense after a request": (healthy + b"nonsense\r\n\r\n", (200, 400, CLOSED)),
            "a request after a refusal": (post(b"Content-Length: 1", body=b"{") + healthy, (400, 200)),
            "an end that is announced": (get(b"/health", b"Connection: \x80, close, ;"), (200, CLOSED)),
            # kinds of bodies
            "a body of another kind": (post(length, b"Content-Type: text/plain", body=JSON), (200,)),
            "a body of no kind": (post(length, b"Content-Type: \xff", body=JSON), (200,)),
            "a byte order mark": (post(b"Content-Length: 20", body=b"\xef\xbb\xbf" + JSON), (400,)),
        }
    )  # fmt: skip
