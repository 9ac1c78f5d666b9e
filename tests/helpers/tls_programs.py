"""TLS clients that are not ours, each told in its own words what to do. All of them verify the server."""

import contextlib
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.tls_pki import Identity, TlsPki, listening_socket

NAME = "localhost"
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
VERSIONS = {ssl.TLSVersion.TLSv1_1: "1.1", ssl.TLSVersion.TLSv1_2: "1.2", ssl.TLSVersion.TLSv1_3: "1.3"}
Offer = tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What a program is to do. `sni` None: no server name at all; `resumes`: connect again, with the same session."""

    port: int
    version: ssl.TLSVersion | None = None
    device: Identity | None = None
    sni: str | None = NAME
    alpn: Offer = ()
    trusts_server: bool = True
    resumes: bool = False


@dataclass(frozen=True)
class Program:
    """A client program: its name in FOREIGN, and how it is called. It sends REQUEST, or (curl) one of its own."""

    needs: str
    command: Callable[[Asked, TlsPki, Path], list[str]]

    def run(self, asked: Asked, pki: TlsPki, folder: Path) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end, which the server's end of stream brings."""
        return subprocess.run(
            self.command(asked, pki, folder),
            cwd=folder,
            input=REQUEST,
            capture_output=True,
            timeout=30,
            check=False,
        )


def s_client(asked: Asked, pki: TlsPki, folder: Path) -> list[str]:
    """`openssl s_client`. It keeps a session in a file, if it gets one: a second run in the same folder offers it."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{asked.port}", "-verify_return_error", "-ign_eof"]
    command += ["-CAfile", str(_root(asked, pki))]
    command += ["-servername", asked.sni, "-verify_hostname", NAME] if asked.sni else ["-noservername"]
    if asked.version:
        command.append("-tls" + VERSIONS[asked.version].replace(".", "_"))
    if asked.alpn:
        command += ["-alpn", ",".join(asked.alpn)]
    if asked.device:
        file = str(asked.device.write(folder / "device.pem"))
        command += ["-cert", file, "-key", file]
        if above := asked.device.chain[1:]:
            chain = folder / "above.pem"
            chain.write_bytes(Identity(above, asked.device.key).pem_chain)
            command += ["-cert_chain", str(chain)]
    if asked.resumes:
        session = folder / "session.pem"
        command += ["-sess_in" if session.exists() else "-sess_out", str(session)]
    return command


def gnutls(asked: Asked, pki: TlsPki, folder: Path) -> list[str]:
    """`gnutls-cli`."""
    command = ["gnutls-cli", "--port", str(asked.port), "--verify-hostname", NAME]
    command += ["--x509cafile", str(_root(asked, pki))]
    command += ["--sni-hostname", asked.sni] if asked.sni else ["--disable-sni"]
    if asked.version:
        command += ["--priority", f"NORMAL:-VERS-ALL:+VERS-TLS{VERSIONS[asked.version]}"]
    command += [f"--alpn={protocol}" for protocol in asked.alpn]
    if asked.device:
        file = str(asked.device.write(folder / "device.pem"))
        command += ["--x509certfile", file, "--x509keyfile", file]
    if asked.resumes:
        command += ["--resume", "--waitresumption"]
    return [*command, "127.0.0.1"]


def curl(asked: Asked, pki: TlsPki, folder: Path) -> list[str]:
    """`curl`, for a server that speaks HTTP. Its ALPN is what the HTTP versions that it may speak make of it."""
    command = ["curl", "--silent", "--show-error", "--verbose", "--max-time", "20"]
    command += ["--cacert", str(_root(asked, pki))]
    command += ["--resolve", f"{asked.sni}:{asked.port}:127.0.0.1"] if asked.sni else []
    if asked.version:
        command += [f"--tlsv{VERSIONS[asked.version]}", "--tls-max", VERSIONS[asked.version]]
    command.append({(): "--no-alpn", ("h2", "http/1.1"): "--http2", ("http/1.1",): "--http1.1"}.get(asked.alpn, "-0"))
    if asked.device:
        command += ["--cert", str(asked.device.write(folder / "device.pem"))]
    url = f"https://{asked.sni or '127.0.0.1'}:{asked.port}/"
    return [*command, "--header", "Connection: close", *[url] * (2 if asked.resumes else 1)]


PROGRAMS = {
    "openssl": Program("openssl", s_client),
    "gnutls": Program("gnutls-cli", gnutls),
    "curl": Program("curl", curl),
}


class ResumingServer:
    """The standard library's server, which does resume: what a test of resumption must see there."""

    def __init__(self, pki: TlsPki, *, tickets: bool) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        file = pki.folder / "resuming-server.pem"
        context.load_cert_chain(pki.server.write(file))
        if not tickets:
            context.options |= ssl.OP_NO_TICKET
        self._context = context
        self._sock = listening_socket()
        self._sock.settimeout(0.2)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port: int = self._sock.getsockname()[1]
        self.resumed: list[bool] = []

    def _serve(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(OSError):
                tcp, _ = self._sock.accept()
                tcp.settimeout(10)
                with self._context.wrap_socket(tcp, server_side=True) as sock:
                    self.resumed.append(bool(sock.session_reused))
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    with contextlib.suppress(OSError):
                        sock.unwrap()

    def __enter__(self) -> "ResumingServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._sock.close()


def _root(asked: Asked, pki: TlsPki) -> Path:
    return pki.root_file if asked.trusts_server else pki.stranger_file
