#!/usr/bin/env bash
# Passes the tests: installs what is needed into .venv, then pytest, in 4 processes: most tests wait most of the time.
# Arguments go to pytest.
#
#   ./launch/test.sh                      everything
#   ./launch/test.sh -m "not slow"        what takes seconds
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cd "$root"
exec "$venv/bin/python" -m pytest -n 4 --dist loadscope --no-loadscope-reorder "$@"
