"""TLS for asyncio servers over pyOpenSSL: any asyncio.Protocol inside, any event loop outside.

It exists because enrollment needs what the standard ssl module cannot give: the peer's whole chain as it was sent, a
client certificate that is proven but not judged, tls-unique and tls-exporter, a server name that decides whether a
certificate is asked for at all, and a bound on what every peer may cost. It imports nothing else of this project.
"""

from enrolld.tls.context import Select, ServerContext
from enrolld.tls.limits import StreamLimits, StreamReason, TlsLimits
from enrolld.tls.peer import TlsPeer
from enrolld.tls.server import StreamServer
from enrolld.tls.stream import IsProxy, OnRefused, StreamTransport, Watch
from enrolld.tls.transport import TlsServer, TlsTransport

__all__ = [
    "IsProxy",
    "OnRefused",
    "Select",
    "ServerContext",
    "StreamLimits",
    "StreamReason",
    "StreamServer",
    "StreamTransport",
    "TlsLimits",
    "TlsPeer",
    "TlsServer",
    "TlsTransport",
    "Watch",
]
