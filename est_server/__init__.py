"""EST (RFC 7030): the protocol between devices and the CA core."""
