#!/usr/bin/env bash
# Runs a command on all machines of a Cloud TPU, from a machine that has gcloud, and goes on after preemptions.
#
#   launch/tpu_pod.sh --name=NAME --zone=ZONE --accelerator=v5p-16 [OPTIONS] -- \
#     python -m mempi_jax.train --config=configs/alfworld.py --workdir=/mnt/share/runs/NAME --config.mesh.fsdp=8
#
#   --name=NAME            of the queued resource, and of its TPU
#   --zone=ZONE            where it is
#   --project=PROJECT      gcloud's own unless given
#   --accelerator=TYPE     v4-8, v5p-16, v5litepod-16, v6e-16, ...; TPU7x and later are for GKE alone: launch/k8s
#   --runtime=VERSION      software of the machines; the usual one of the accelerator unless given
#   --slices=N             N such TPUs with the network of the data centre between them; give the config mesh.slices=N too
#   --spot                 cheap, and may be taken away at any time
#   --share=SERVER:/EXPORT NFS, Filestore for example, that every machine mounts on /mnt/share: the working folder must be on a shared file system
#   --setup=COMMAND        run on every machine after the installation, in the repository: other mounts, extras, keys
#   --max_restarts=N       how often it is started again after a loss of machines (100)
#   --poll=SECONDS         between two looks at a request in the queue (30)
#   --delete               deletes the TPU when the command has ended, however it ended
#   --dry_run              prints every command, and runs none
#
# Everything in the repository but .git, .venv and runs is copied to ~/mempi_jax of each machine, and installed there. The command runs in that
# folder with --hosts=auto added; the log of the first machine is shown, those of all are in WORKDIR/hosts. When machines are lost (preempted,
# or started anew), the TPU is deleted, asked for again, set up again, and the command started again: the working folder makes it go on. An error
# of the command ends this script with the command's status. Ctrl-C or SIGTERM here is SIGTERM to the command, which saves a checkpoint; where
# this script just ends (a closed laptop), the command runs on, and calling the script again stops it and goes on from there.
#
# An ssh key with a passphrase must be with the agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage='expected: launch/tpu_pod.sh --name=NAME --zone=ZONE --accelerator=TYPE [--project=PROJECT] [--runtime=VERSION] [--slices=N] [--spot]
  [--share=SERVER:/EXPORT] [--setup=COMMAND] [--max_restarts=N] [--poll=SECONDS] [--delete] [--dry_run] -- COMMAND'
name='' zone='' project='' accelerator='' runtime='' slices=1 spot='' share='' setup='' max_restarts=100 poll=30 delete='' dry_run=''
while [[ $# -gt 0 && "$1" != -- ]]; do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --spot) spot=1 ;;
    --share=*) share="${1#*=}" ;;
    --setup=*) setup="${1#*=}" ;;
    --max_restarts=*) max_restarts="${1#*=}" ;;
    --poll=*) poll="${1#*=}" ;;
    --delete) delete=1 ;;
    --dry_run) dry_run=1 ;;
    *) fail "unknown option $1; $usage" ;;
  esac
  shift
done
[[ $# -ge 2 ]] || fail "there is no command; $usage"
shift
for option in name zone accelerator; do
  [[ -n "${!option}" ]] || fail "--$option is missing; $usage"
done
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$name: expected lower-case letters, digits and hyphens"
for option in slices max_restarts poll; do
  [[ "${!option}" =~ ^[0-9]+$ ]] || fail "--$option=${!option}: expected a number"
done
[[ "$slices" -ge 1 ]] || fail "--slices=$slices: expected at least 1"
[[ -z "$share" || "$share" == *?:/* ]] || fail "--share=$share: expected SERVER:/EXPORT"
for argument in "$@"; do
  case "$argument" in
    --hosts=* | --host=* | --coordinator=*) fail "$argument is in the command: this script adds --hosts=auto" ;;
    --workdir=/*) ;;
    --workdir=*) fail "$argument: every machine would have its own; expected a path on a file system that they share, such as --workdir=/mnt/share/runs/$name" ;;
  esac
done
if [[ -z "$runtime" ]]; then
  case "$accelerator" in
    v2-* | v3-* | v4-*) runtime='tpu-ubuntu2204-base' ;;
    v5p-*) runtime='v2-alpha-tpuv5' ;;
    v5litepod-*) runtime='v2-alpha-tpuv5-lite' ;;
    v6e-*) runtime='v2-alpha-tpuv6e' ;;
    *) fail "--accelerator=$accelerator: expected v2-N, v3-N, v4-N, v5p-N, v5litepod-N or v6e-N, or a --runtime for it" ;;
  esac
fi
[[ -n "$dry_run" ]] || command -v gcloud > /dev/null || fail 'gcloud is not installed: https://cloud.google.com/sdk/docs/install'

place=("--zone=$zone" ${project:+"--project=$project"})
nodes=("$name")
which_nodes=("--node-id=$name")
if [[ "$slices" -gt 1 ]]; then
  nodes=()
  for ((index = 0; index < slices; index++)); do
    nodes+=("$name-$index") # how the service names them
  done
  which_nodes=("--node-count=$slices" "--node-prefix=$name")
fi

# The words as a shell would read them again.
quoted() {
  local word separator=''
  for word in "$@"; do
    if [[ ! "$word" =~ ^[-A-Za-z0-9_./:=@,+%]+$ ]]; then
      word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    fi
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

run() {
  if [[ -n "$dry_run" ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# Like a command in the foreground, but a signal is seen at once, and not when the command ends.
attended() {
  if [[ -n "$dry_run" ]]; then
    "$@"
    return
  fi
  "$@" < /dev/null &
  wait $!
}

say() {
  if [[ -n "$dry_run" ]]; then
    echo "# $*"
  else
    echo "== $(date +%H:%M:%S) $*"
  fi
}

# tpu-vm ssh and not queued-resources ssh: that one succeeds without having run anything where the TPU has been preempted.
on() {
  local node="$1" worker="$2" script="$3"
  run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" "--worker=$worker" "--command=$script"
}

# On all machines of all slices at the same time; fails if it failed on one.
on_all() {
  local node process processes=() failed=0
  for node in "${nodes[@]}"; do
    if [[ -n "$dry_run" ]]; then
      on "$node" all "$1"
    else
      on "$node" all "$1" &
      processes+=($!)
    fi
  done
  for process in ${processes[@]+"${processes[@]}"}; do
    wait "$process" || failed=1
  done
  return "$failed"
}

# State of the request: nothing if there is none. A list and not `describe`, for which a request that is not there is an error like any other.
state() {
  run gcloud compute tpus queued-resources list "${place[@]}" "--filter=name~/$name\$" '--format=value(state.state)'
}

create() {
  say "asking for $slices x $accelerator"
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" "${which_nodes[@]}" "--accelerator-type=$accelerator" \
    "--runtime-version=$runtime" ${spot:+--spot}
}

# --force: its TPU as well. --quiet: no question.
delete_machines() {
  say "deleting $name"
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# Returns when there are machines that answer: those that are there, or new ones.
ensure_machines() {
  local found before='' errors=0 deaf=0 created=''
  while true; do
    if ! found="$(state)"; then
      errors=$((errors + 1))
      [[ -n "$succeeded_once" && "$errors" -lt 20 ]] || fail 'gcloud cannot say how the request stands; its message is above'
      found='UNKNOWN'
    else
      succeeded_once=1 errors=0
    fi
    [[ "$found" == "$before" ]] || say "the request $name: ${found:-none}"
    before="$found"
    case "$found" in
      '')
        attended create || fail 'the request was refused; the message is above'
        created=1
        ;;
      ACTIVE)
        if attended on_all true; then
          return
        fi
        # A preempted TPU may be called active for some minutes, and a machine may be starting anew.
        deaf=$((deaf + 1))
        if [[ "$deaf" -ge 10 ]]; then
          attended delete_machines || true
          deaf=0
        fi
        ;;
      FAILED)
        [[ -z "$created" ]] || fail "the request failed: gcloud compute tpus queued-resources describe $name $(quoted "${place[@]}")"
        attended delete_machines || true
        ;;
      SUSPENDED) attended delete_machines || true ;;
    esac
    attended sleep "$poll"
  done
}

copy() {
  run tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=__pycache__ .
  local node
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$archive" "$node:mempi_jax.tar.gz" "${place[@]}" --worker=all || return 1
  done
}

set_up() {
  say 'copying the repository to all machines and installing it'
  local script
  script="mkdir -p mempi_jax && tar -xzf mempi_jax.tar.gz -C mempi_jax && bash mempi_jax/launch/tpu_worker.sh setup $(quoted "$share")"
  [[ -z "$setup" ]] || script+=" && cd mempi_jax && $setup"
  attended copy && attended on_all "$script"
}

worker() {
  echo "bash mempi_jax/launch/tpu_worker.sh $(quoted "$@")"
}

# The log of the first machine until the run has ended; a connection that broke is taken up again.
follow() {
  local status
  while true; do
    status=0
    attended on "${nodes[0]}" 0 "$(worker follow "$1")" || status=$?
    [[ "$status" != 0 && -z "$dry_run" ]] || return "$status"
    attended on "${nodes[0]}" 0 "$(worker running "$1")" || return "$status"
    attended sleep "$poll"
  done
}

finish() {
  trap - EXIT
  trap '' INT TERM
  rm -f "$archive"
  [[ -z "$delete" || -z "$asked" ]] || delete_machines || true
}

interrupted() {
  trap 'exit 143' INT TERM # a second one does not wait
  if [[ -n "$started" ]]; then
    say 'the run is asked to save and to end'
    attended on_all "$(worker stop)" || true
  fi
  exit 143
}

started='' asked='' succeeded_once=''

if [[ -n "$dry_run" ]]; then
  archive='mempi_jax.tar.gz'
  trial="$name-0"
  create
  say 'until it says ACTIVE and all machines answer'
  state
  on_all true
  set_up
  say 'the run'
  on_all "$(worker start "$trial" "$@" --hosts=auto)"
  follow "$trial"
  say 'if that failed: whether only the connection broke, and if not, what each machine says of the run'
  on "${nodes[0]}" 0 "$(worker running "$trial")"
  on_all "$(worker result "$trial")"
  say 'when machines were lost (no answer, or nothing but statuses 75 and 143): all of this again, with a new TPU unless this one answers'
  delete_machines
  say 'on Ctrl-C or SIGTERM'
  on_all "$(worker stop)"
  [[ -z "$delete" ]] || { say 'at the end' && delete_machines; }
  exit
fi

# Whether the run was lost with a machine; ends this script where the command failed by itself.
was_lost() {
  local answers own
  answers="$(attended on_all "$(worker result "$trial")")" || return 0
  echo "$answers"
  # 143 was asked to end, 75 missed another host (runtime/hosts.py): one that failed by itself ends with something else.
  own="$(sed -n 's/.* ended with status \([0-9]*\)$/\1/p' <<< "$answers" | grep -vx -e 0 -e 75 -e 143 | head -n 1 || true)"
  [[ -n "$own" ]] || return 0
  say "the command failed with status $own; its messages are above, and in WORKDIR/hosts"
  exit "$own"
}

archive="$(mktemp "${TMPDIR:-/tmp}/mempi_jax.XXXXXX")"
trap finish EXIT
trap interrupted INT TERM
restarts=0
while true; do
  asked=1
  ensure_machines
  trial="$name-$(date +%Y%m%d-%H%M%S)-$restarts"
  if set_up; then
    say "starting the run $trial"
    started=1
    if attended on_all "$(worker start "$trial" "$@" --hosts=auto)"; then
      status=0
      follow "$trial" || status=$?
      if [[ "$status" == 0 ]]; then
        say 'the run has ended'
        exit
      fi
      was_lost
    fi
  elif attended on_all true; then
    fail 'the set-up failed on machines that answer; its messages are above'
  fi
  restarts=$((restarts + 1))
  if [[ "$restarts" -gt "$max_restarts" ]]; then
    fail "machines were lost $restarts times (--max_restarts=$max_restarts)"
  fi
  say "machines were lost (restart $restarts of at most $max_restarts)"
done
