#!/bin/sh
# Renew with a new key now, shown by the old certificate; certmonger does it by itself before a certificate ends. Needs
# NAME, root.pem and ca.pem; certmonger replaces device.key and device.pem, unless it is refused.
set -eu

# --- recipe
old=$(openssl x509 -in device.pem -noout -serial) &&
getcert rekey -i "$NAME" -N "CN=$NAME" -w --wait-timeout=60 &&
[ "$(openssl x509 -in device.pem -noout -serial)" != "$old" ] || { getcert list -i "$NAME"; false; } &&
openssl verify -CAfile root.pem -untrusted ca.pem device.pem
