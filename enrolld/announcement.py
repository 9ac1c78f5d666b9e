"""What `serve` prints when it is ready: where it listens, whom to trust, and a first enrollment, right as pasted."""

from collections.abc import Callable

from enrolld.config_file import FILE_NAME
from enrolld.daemon import Started
from enrolld.running import RunState
from enrolld.unlock import CREDENTIAL, NOTICE

__all__ = ["text"]

_ALL = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound
_LOOPBACK = ("127.0.0.1", "::1", *_ALL)


def text(started: Started, directory: str, command: Callable[[str], str]) -> str:
    """The lines; `command` makes a command line of ours that works in any folder."""
    state = started.state
    parts = [f"enrolld {state.version} serves {directory}\n\n{_where(state)}"]
    if started.unlock_key is not None:
        parts.append(NOTICE.format(path=started.unlock_key, credential=CREDENTIAL))
    if state.demo:
        parts.append(
            "DEMO: this server has no name yet. Its certificate covers this machine only, and issued certificates end\n"
            f"after 7 days. When it has a name in DNS, put it into {directory}/{FILE_NAME} and start again."
        )
    if started.reads_des and state.http:
        named = ", ".join(started.reads_des)
        parts.append(
            f"LEGACY: SCEP requests in single DES are read (realms: {named}). Some stock clients send nothing else,\n"
            "and whoever records such a request can find out its secret. 'enrolld status' counts them; when none of\n"
            "your devices needs it, set 'read_des = false' under [scep] with 'realm export' and 'realm apply'."
        )
    if state.https:
        parts.append(_first_certificate(state, started.free_device, command))
    return "\n\n".join(parts) + "\n"


def colons(fingerprint: str) -> str:
    """A fingerprint as openssl shows it, to compare by eye."""
    return ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2)).upper()


def _where(state: RunState) -> str:
    lines = [("EST", f"{_base(state, 'https')}/.well-known/est")] if state.https else []
    lines += [("SCEP", f"{_base(state, 'http')}/scep")] if state.http else []
    lines += [("CRL, CA certificates", f"{_base(state, 'http')}/pki/")] if state.http else []
    lines += [("health", f"{url}/readyz") for url in state.admin]
    lines += [("realm", state.realm), ("its root, SHA-256", colons(state.ca_fingerprint_sha256))]
    return "\n".join(f"  {name:<21} {value}" for name, value in lines)


def _first_certificate(state: RunState, device: str, command: Callable[[str], str]) -> str:
    base = _base(state, "https")
    host, _, port = base.removeprefix("https://").rpartition(":")
    near = _near(state)
    # DNS may not know the name yet, and this machine may not reach itself by its public address.
    resolve = f" --resolve {host}:{port}:{near}" if state.names and ":" not in host else ""
    return f"""A first certificate, in another terminal:

  {command("ca export --realm default")} > root.pem
  secret=$({command(f"device add {device} --json")} | sed 's/.*"secret":"\\([^"]*\\)".*/\\1/')
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {device}.key \\
    -subj /CN={device} -outform DER | base64 > {device}.p10
  printf 'user = "{device}:%s"\\n' "$secret" | curl -sS --fail-with-body -K - --cacert root.pem{resolve} \\
    -H 'Content-Type: application/pkcs10' --data-binary @{device}.p10 -o {device}.p7 \\
    {base}/.well-known/est/simpleenroll
  base64 -d {device}.p7 | openssl pkcs7 -inform DER -print_certs -out {device}.pem
  openssl verify -CAfile root.pem {device}.pem

Then look:  {command("cert list")}
            {command(f"device why {device}")}"""


def _base(state: RunState, scheme: str) -> str:
    """The URL of a listener by the best name: one the certificate covers."""
    listener = next(one for one in state.listeners if one.kind == scheme)
    host = state.names[0] if state.names else ("localhost" if listener.address in _LOOPBACK else listener.address)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}"


def _near(state: RunState) -> str:
    """An address by which this machine reaches its own https listener, as `curl --resolve` takes it."""
    address = next(one.address for one in state.listeners if one.kind == "https")
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  # compared, not bound
    return f"[{address}]" if ":" in address else address
