#!/usr/bin/env bash
# Installs, trains, evaluates and reports: launch/quickstart.sh [WORKDIR]
# A second run in the same WORKDIR goes on where the first one stopped, or says that it is finished. Settings: configs/quickstart.py.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

[[ $# -le 1 && "${1:-}" != -* ]] || fail "usage: launch/quickstart.sh [WORKDIR]"
workdir="${1:-$root/runs/quickstart}"
[[ -n "$workdir" ]] || fail 'WORKDIR is empty'
mkdir -p "$workdir" || fail "cannot make the working folder $workdir"

use_environment
install '' 'Installing mempi_jax ...' || fail 'the installation failed; its messages are above'
replay='with'
install_alfworld || replay='without'

SECONDS=0
config="$root/configs/quickstart.py"
for command in train evaluate; do
  echo "== $command"
  "$python" -m "mempi_jax.$command" --config="$config" --workdir="$workdir"
done
echo '== report'
"$python" -m mempi_jax.report --workdir="$workdir"

echo
echo "Finished $replay replay on the real engine, $((SECONDS / 60)) min $((SECONDS % 60)) s after installation."
echo "Report: $workdir/report/index.html"
