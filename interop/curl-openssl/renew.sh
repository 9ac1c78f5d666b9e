#!/bin/sh
# Renew with the same key. Needs EST, NAME, root.pem, ca.pem, device.key and device.pem; replaces device.pem.
set -eu

# --- recipe
openssl req -new -key device.key -subj "/CN=$NAME" -outform DER | openssl base64 -out device.csr
curl --silent --show-error --fail-with-body --cacert root.pem --cert device.pem --key device.key \
  --header 'Content-Type: application/pkcs10' --data-binary @device.csr \
  --output answer "$EST/simplereenroll" || cat answer
openssl base64 -d -in answer | openssl pkcs7 -inform DER -print_certs -out renewed.pem
openssl verify -CAfile root.pem -untrusted ca.pem renewed.pem && mv renewed.pem device.pem
