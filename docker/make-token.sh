#!/usr/bin/env bash
# Makes the token of compose.yaml's cluster: docker/cluster.env, for this user alone, in no commit and no image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [[ ! -s cluster.env ]]; then
    umask 077
    token=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
    printf 'RAY_AUTH_MODE=token\nRAY_AUTH_TOKEN=%s\n' "$token" >cluster.env
fi
echo "docker/cluster.env holds the token" >&2
