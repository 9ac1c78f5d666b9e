#!/bin/sh
# Enroll with the device's one-time secret. Needs SCEP (https://HOST:PORT/scep), NAME, SECRET, root.pem and ca.pem;
# makes device.key and device.pem. A refusal changes neither of them.
set -eu

# --- recipe
rm -f new.pem self.pem &&
(umask 077; [ -s new.key ] || openssl genrsa -traditional -out new.key 2048 &&
printf '[req]\nprompt=no\ndistinguished_name=d\nattributes=a\n[d]\nCN=%s\n[a]\nchallengePassword=%s' "$NAME" "$SECRET" |
openssl req -new -key new.key -config /dev/stdin -out csr.pem) &&
SSL_CERT_FILE=root.pem SSL_CERT_DIR=/none scepclient -server-url "$SCEP" -private-key new.key -certificate new.pem ||
{ rm -f csr.pem; false; } &&
rm -f csr.pem && openssl verify -CAfile root.pem -untrusted ca.pem new.pem &&
mv new.key device.key && mv new.pem device.pem
