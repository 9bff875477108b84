#!/bin/bash
set -euo pipefail
# One that runs is followed, not doubled.
if ! sky jobs queue --skip-finished | grep -qwF -- @{name}; then
    manifest=$(mktemp --suffix=.yaml)
    trap 'rm -f "$manifest"' EXIT
    cat >"$manifest" <<'MANIFEST'
@{manifest}
MANIFEST
    sky jobs launch --yes --detach-run --name @{name} "$manifest"
fi
# Ctrl-C ends the following, not the job; sky jobs cancel --name @{name} ends the job.
sky jobs logs --name @{name}
