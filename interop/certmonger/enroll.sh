#!/bin/sh
# Enroll with the device's one-time secret. Needs NAME, SECRET, root.pem, ca.pem, and the CA that add-ca.sh told of;
# makes device.key and device.pem, which certmonger keeps (under PWD) and renews from then on. A refusal changes neither
# of them.
set -eu

# --- recipe
(umask 077
  printf '%s' "$SECRET" > new.secret) && rm -f new.pem && { getcert stop-tracking -i new || true; } &&
getcert request -c enrolld -I new -k "$PWD/new.key" -f "$PWD/new.pem" -N "CN=$NAME" \
  -l "$PWD/new.secret" -w --wait-timeout=60 &&
openssl verify -CAfile root.pem -untrusted ca.pem new.pem ||
{ getcert list -i new; getcert stop-tracking -i new; rm -f new.secret; false; } &&
rm -f new.secret && getcert stop-tracking -i new && { getcert stop-tracking -i "$NAME" || true; } &&
mv new.key device.key && mv new.pem device.pem && echo used > challenge &&
getcert start-tracking -c enrolld -I "$NAME" -k "$PWD/device.key" -f "$PWD/device.pem" -l "$PWD/challenge"
