#!/usr/bin/env bash
# Passes the tests: installs what is needed into .venv, then pytest. Arguments go to pytest.
#
#   ./launch/test.sh                      everything
#   ./launch/test.sh -m "not slow"        what takes seconds
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$root"
exec "$venv/bin/python" -m pytest "$@"
