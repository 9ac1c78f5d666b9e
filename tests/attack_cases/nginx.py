"""An nginx in front of the daemon, as a balancer would stand there: one for each test, on unix sockets of its own.

It keeps its connections to the daemon alive, so that what the two see differently would show in the next request; and
it writes down every request that it handed on, so that the two can be compared.
"""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.daemon import Daemon, eventually

__all__ = ["NGINX", "Nginx", "running_nginx"]

NGINX = "/usr/sbin/nginx"

_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 128; }}
http {{
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  log_format seen escape=json '{{"to":"$upstream_addr","status":"$upstream_status","uri":"$request_uri"}}';
  access_log {folder}/seen.log seen;
  upstream plain {{ server 127.0.0.1:{http}; keepalive 4; }}
  upstream secured {{ server 127.0.0.1:{https}; keepalive 4; }}
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host localhost;
  proxy_bind {source};
  proxy_request_buffering {buffering};
  proxy_next_upstream off;
  proxy_read_timeout 10s;
  proxy_ssl_verify on;
  proxy_ssl_trusted_certificate {root};
  proxy_ssl_name localhost;
  proxy_ssl_server_name on;
  server {{ listen unix:{folder}/plain; location / {{ proxy_pass http://plain; }} }}
  server {{ listen unix:{folder}/secured; location / {{ proxy_pass https://secured; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx: the socket that leads to the plain listener, and the one to https."""

    folder: Path
    plain: str
    secured: str

    def handed_on(self) -> list[dict[str, str]]:
        """Every request that it sent to the daemon, by its own word."""
        lines = (self.folder / "seen.log").read_text().splitlines()
        return [found for line in lines if (found := json.loads(line))["to"] not in ("", "-")]


@contextlib.contextmanager
def running_nginx(daemon: Daemon, source: str, *, buffering: bool) -> Iterator[Nginx]:
    """nginx, until the block ends. `source` is the address from which it speaks to the daemon."""
    # A socket's path must be short, and that of a test's folder is not.
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        folder = Path(name)
        configuration = folder / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder,
                http=daemon.http_port,
                https=daemon.https_port,
                source=source,
                root=daemon.root,
                buffering="on" if buffering else "off",
            )
        )
        process = subprocess.Popen(
            [NGINX, "-c", str(configuration), "-p", name, "-e", str(folder / "error.log")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def listens() -> bool | None:
            assert process.poll() is None, (folder / "error.log").read_text(errors="replace")
            return True if (folder / "secured").exists() and (folder / "seen.log").exists() else None

        try:
            eventually(listens, what="nginx listens")
            yield Nginx(folder, str(folder / "plain"), str(folder / "secured"))
        finally:
            process.terminate()
            process.wait(30)
