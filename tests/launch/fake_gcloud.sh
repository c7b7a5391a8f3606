#!/usr/bin/env bash
# Stands in for gcloud: TPU machines are folders, two a node, and what is sent to them by ssh runs there.
#
# Everything lies in the folder $FAKE: calls (one a line, quoted), state (of the request), machines/NODE-WORKER (each machine's home), and switches
# that a test, or a command on a machine, sets by making the file: refused (no request is granted), no_answer (no machine can be reached),
# no_packages (nothing can be installed). A request is granted at once, with new machines.
set -euo pipefail

printf '%s\n' "$(printf '%q ' "$@")" >> "$FAKE/calls" # in one piece: there may be several at a time

name="$5" machine_command='' worker='' new=()
for argument in "$@"; do
  case "$argument" in
    --command=*) machine_command="${argument#*=}" ;;
    --worker=all) worker='[01]' ;;
    --worker=*) worker="${argument#*=}" ;;
    --node-id=*) new+=("${argument#*=}") ;;
    --node-count=*) for ((node = 0; node < ${argument#*=}; node++)); do new+=("$name-$node"); done ;;
  esac
done

reached() {
  if [[ "$(cat "$FAKE/state" 2> /dev/null)" != ACTIVE || -e "$FAKE/no_answer" ]]; then
    echo 'ERROR: the machine does not answer' >&2
    exit 1
  fi
}

case "$3 $4" in
  'queued-resources list') cat "$FAKE/state" 2> /dev/null || true ;;
  'queued-resources create')
    if [[ -e "$FAKE/refused" ]]; then
      echo 'ERROR: quota' >&2
      exit 1
    fi
    for node in "${new[@]}"; do
      for index in 0 1; do
        mkdir -p "$FAKE/machines/$node-$index/environment/bin"
        cp "$FAKE/python" "$FAKE/machines/$node-$index/environment/bin/python"
      done
    done
    rm -f "$FAKE/no_answer"
    echo ACTIVE > "$FAKE/state"
    ;;
  'queued-resources delete') rm -r "$FAKE/state" "$FAKE/machines" ;;
  'tpu-vm scp')
    reached
    for home in "$FAKE/machines/${6%%:*}"-$worker; do
      cp "$5" "$home/${6#*:}"
    done
    ;;
  'tpu-vm ssh')
    reached
    processes=() status=0
    for home in "$FAKE/machines/$name"-$worker; do
      (cd "$home" && HOME="$home" VIRTUAL_ENV="$home/environment" MACHINE="${home##*/}" bash -c "$machine_command" < /dev/null) &
      processes+=($!)
    done
    for process in "${processes[@]}"; do
      wait "$process" || { ended=$? && [[ "$status" != 0 ]] || status="$ended"; }
    done
    exit "$status"
    ;;
  *)
    echo "no such command: $*" >&2
    exit 2
    ;;
esac
