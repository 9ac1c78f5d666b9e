"""The core that EST and SCEP share: who may have a certificate (registration), how it is signed (authority), and what
lasts (records). No sockets, no HTTP, no command line; `ca_core.core.Core` opens it all."""
