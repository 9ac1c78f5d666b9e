#!/bin/sh
# Renew with the same key. Needs EST, NAME, root.pem, ca.pem, device.key and device.pem; replaces device.pem, unless it
# is refused.
set -eu

# --- recipe
openssl req -new -key device.key -subj "/CN=$NAME" -outform DER | openssl base64 -out new.csr
curl --silent --show-error --fail-with-body --cacert root.pem --cert device.pem --key device.key \
  --header 'Content-Type: application/pkcs10' --data-binary @new.csr \
  "$EST/simplereenroll" > answer || { cat answer; false; } &&
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out new.pem &&
openssl verify -CAfile root.pem -untrusted ca.pem new.pem && mv new.pem device.pem
