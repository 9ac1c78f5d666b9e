#!/bin/sh
# Renew with a new key now, shown by the old certificate; certmonger does it by itself before a certificate ends. Needs
# NAME, root.pem and ca.pem; certmonger replaces device.key and device.pem, unless it is refused.
set -eu

# --- recipe
getcert rekey -i "$NAME" -N "CN=$NAME" -w --wait-timeout=60 || { getcert list -i "$NAME"; false; } &&
openssl verify -CAfile root.pem -untrusted ca.pem device.pem
