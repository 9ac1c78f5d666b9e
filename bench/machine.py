"""What benchmarks share: requests, the load as a process of its own, and what a process used."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bench.load import Job, Result

__all__ = ["cpu_seconds", "cpu_with_ended_children", "csr", "load", "rsa_key"]

_TICK = os.sysconf("SC_CLK_TCK")


def csr(name: str, *, is_rsa: bool = False) -> str:
    """A CSR with a key of its own, DER in base64."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    key = rsa_key() if is_rsa else ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(Encoding.DER)).decode()


def rsa_key() -> rsa.RSAPrivateKey:
    """RSA-2048."""
    return rsa.generate_private_key(65537, 2048)


def load(folder: Path, job: Job) -> Result:
    """Run the job, as a process of its own."""
    path = folder / "job.json"
    path.write_bytes(msgspec.json.encode(job))
    done = subprocess.run([sys.executable, "-m", "bench.load", str(path)], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Result)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def cpu_with_ended_children(pid: int) -> float:
    """The same, with what its children used that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICK
