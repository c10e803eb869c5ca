#!/usr/bin/env bash
# Meta-trains on this machine: installs what is needed into .venv, then `leap-rl train`.
#
#   ./launch/local.sh                                       configs/quickstart.yaml
#   ./launch/local.sh meta.steps=10                         the same, with a key replaced
#   ./launch/local.sh configs/atari.yaml meta.steps=20      another configuration
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

config=$root/configs/quickstart.yaml
if [[ $# -gt 0 && $1 != *=* && $1 != -* ]]; then
    config=$1
    shift
fi
exec "$venv/bin/leap-rl" train "$config" "$@"
