#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each machine of a TPU; nothing to be called by hand.
#
#   tpu_worker.sh setup SHARE           mounts SHARE (SERVER:/EXPORT, or '') on /mnt/share; installs the package
#   tpu_worker.sh start RUN COMMAND...  starts COMMAND in the background, as the run of the name RUN; the run before it is stopped
#   tpu_worker.sh follow RUN            prints its log until it ends, and exits with its status
#   tpu_worker.sh running RUN           succeeds while it runs
#   tpu_worker.sh result RUN            waits for its end and prints its status; fails where it has none: this machine was started anew
#   tpu_worker.sh stop                  sends SIGTERM to the run that is there, and waits for its end
#
# Runs are in the background, and everything may be called twice, because gcloud repeats a command whose connection broke.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# RUN/log, RUN/holder and RUN/process (their ids), RUN/status (once it has ended). A machine that was started anew knows nothing of earlier runs:
# their ids may be those of other processes now.
runs="$HOME/mempi_jax_runs/$(cat /proc/sys/kernel/random/boot_id)"

alive() {
  [[ -f "$1" ]] && kill -0 "$(cat "$1")" 2> /dev/null
}

setup() {
  local share="$1"
  if [[ -n "$share" ]] && ! mountpoint -q /mnt/share; then
    if ! command -v mount.nfs > /dev/null; then
      # A fresh machine updates itself first: wait for its lock.
      sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
      sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y nfs-common > /dev/null
    fi
    sudo mkdir -p /mnt/share
    sudo mount -t nfs "$share" /mnt/share || fail "cannot mount $share"
  fi
  # The images come with Python 3.10.
  if [[ ! -x "$root/.venv/bin/python" && -z "${VIRTUAL_ENV:-}" ]] && ! (find_python) > /dev/null 2>&1; then
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --clear --seed --python 3.12 "$root/.venv"
  fi
  use_environment
  install '' 'Installing mempi_jax ...' || fail 'the installation failed; its messages are above'
  "$python" -m pip install --quiet --disable-pip-version-check 'jax[tpu]' || fail 'jax[tpu] could not be installed; the messages are above'
  echo "$(hostname) is set up"
}

start() {
  local run="$1"
  shift
  if [[ -d "$runs/$run" ]]; then
    return 0
  fi
  stop
  mkdir -p "$runs/$run"
  setsid nohup bash "${BASH_SOURCE[0]}" hold "$run" "$@" > "$runs/$run/log" 2>&1 < /dev/null &
  echo $! > "$runs/$run/holder"
  until [[ -f "$runs/$run/process" || -f "$runs/$run/status" ]]; do
    sleep 0.1 # from here on it can be stopped
  done
}

hold() {
  local run="$1" status=0
  shift
  cd "$root"
  PATH="${VIRTUAL_ENV:-$root/.venv}/bin:$PATH"
  "$@" &
  echo $! > "$runs/$run/process"
  wait $! || status=$?
  echo "$status" > "$runs/$run/status.new"
  mv "$runs/$run/status.new" "$runs/$run/status" # at once: there is never half a status
}

follow() {
  local run="$1"
  tail -n 200 -F --sleep-interval=0.2 --pid="$(cat "$runs/$run/holder")" "$runs/$run/log" 2> /dev/null
  [[ -f "$runs/$run/status" ]] || fail "the run $run has ended without a status"
  exit "$(cat "$runs/$run/status")"
}

result() {
  local run="$1" waited=0
  while alive "$runs/$run/holder"; do
    # The others need time to see that a machine is missing (config.hosts.dead_after).
    if [[ "$waited" -ge 300 ]]; then
      stop
    fi
    sleep 1
    waited=$((waited + 1))
  done
  [[ -f "$runs/$run/status" ]] || fail "$(hostname) knows no end of the run $run"
  echo "$(hostname) ended with status $(cat "$runs/$run/status")"
}

stop() {
  local folder
  for folder in "$runs"/*/; do
    if alive "$folder/holder"; then
      # One SIGTERM: the run saves a checkpoint; a second one would end it at once.
      if mkdir "$folder/stopping" 2> /dev/null; then
        kill -TERM "$(cat "$folder/process")" || true
      fi
      for _ in $(seq 120); do
        alive "$folder/holder" || break
        sleep 1
      done
      if alive "$folder/holder"; then
        echo "the run in $folder did not end within 120 s of SIGTERM; it is killed"
        kill -KILL "$(cat "$folder/process")" || true
      fi
    fi
  done
}

case "${1:-}" in
  setup | start | hold | follow | result | stop) "$@" ;;
  running) alive "$runs/$2/holder" ;;
  *) fail "expected setup, start, follow, running, result or stop, found '${1:-}'" ;;
esac
