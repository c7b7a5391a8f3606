#!/usr/bin/env bash
# Installs what the tests need and runs them: launch/test.sh [--slow]
# --slow runs the slow tests (minutes each) and no others. pytest's last line comes last.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

marker='not slow'
case "${1:-}" in
  '') ;;
  --slow) marker='slow' ;;
  *) fail "usage: launch/test.sh [--slow], found $1" ;;
esac

cd "$root"
use_environment
install test 'Installing mempi_jax with what its tests need ...' || fail 'the installation failed; its messages are above'
if command -v g++ > /dev/null || command -v clang++ > /dev/null; then
  install_alfworld || true
else
  echo 'No C++ compiler: tests on the real ALFWorld engine will be skipped.'
fi

"$python" -m ruff check .
"$python" -m pytest -n 2 -m "$marker"
