#!/usr/bin/env bash
# Fills in tpu.yaml or gpu.yaml and gives it to the cluster that kubectl is set to; the cluster needs JobSet 0.6 or later
# (https://jobset.sigs.k8s.io).
#
#   launch/k8s/submit.sh --device=tpu --name=NAME --image=IMAGE --claim=CLAIM [--accelerator=tpu-v5p-slice] [--topology=2x2x2] [--slices=1] -- \
#     python -m mempi_jax.train --config=configs/alfworld.py --workdir=/mnt/share/runs/NAME --config.mesh.fsdp=8
#   launch/k8s/submit.sh --device=gpu --name=NAME --image=IMAGE --claim=CLAIM --hosts=2 [--gpus=8] -- python -m ...
#
#   --name=NAME          of the JobSet
#   --image=IMAGE        built with launch/k8s/Dockerfile, for example
#   --claim=CLAIM        persistent volume claim that all pods may write; it is mounted on /mnt/share, and the working folder belongs there
#   --namespace=NAME     of the cluster (default)
#   --max_restarts=N     how often all pods are started again after a failure (10); machines that were taken away do not count
#   --accelerator=LABEL, --topology=AxBxC, --slices=N
#                        TPU: as GKE's node pools are labelled. v5p-16 is 2x2x2 of tpu-v5p-slice: 8 chips, 2 machines. For several slices
#                        give the config mesh.slices=N too
#   --hosts=N, --gpus=N  GPU: how many nodes, and the GPUs of each (8)
#   --dry_run            prints the command with the manifest, and runs nothing
#
# What tells the hosts from each other is added to the command. It is `kubectl create`: where there is a JobSet of that name, `apply` would say
# "unchanged" and run nothing.
set -euo pipefail

folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# shellcheck source=environment.sh
source "$folder/../environment.sh"

usage='expected: launch/k8s/submit.sh --device=tpu|gpu --name=NAME --image=IMAGE --claim=CLAIM [--namespace=NAME] [--max_restarts=N]
  [--accelerator=LABEL] [--topology=AxBxC] [--slices=N] (tpu) --hosts=N [--gpus=N] (gpu) [--dry_run] -- COMMAND'
device='' name='' image='' claim='' namespace=default max_restarts=10 accelerator='' topology='' slices='' hosts='' gpus='' dry_run=''
# shellcheck disable=SC2034  # what options set is read by name
while [[ $# -gt 0 && "$1" != -- ]]; do
  case "$1" in
    --device=*) device="${1#*=}" ;;
    --name=*) name="${1#*=}" ;;
    --image=*) image="${1#*=}" ;;
    --claim=*) claim="${1#*=}" ;;
    --namespace=*) namespace="${1#*=}" ;;
    --max_restarts=*) max_restarts="${1#*=}" ;;
    --accelerator=*) accelerator="${1#*=}" ;;
    --topology=*) topology="${1#*=}" ;;
    --slices=*) slices="${1#*=}" ;;
    --hosts=*) hosts="${1#*=}" ;;
    --gpus=*) gpus="${1#*=}" ;;
    --dry_run) dry_run=1 ;;
    *) fail "unknown option $1; $usage" ;;
  esac
  shift
done
[[ $# -ge 2 ]] || fail "there is no command; $usage"
shift
for option in device name image claim; do
  [[ -n "${!option}" ]] || fail "--$option is missing; $usage"
done
# Pods are called NAME-slice-0-0-xxxxx, and such a name has 63 characters at most.
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name=$name: expected at most 40 lower-case letters, digits and hyphens"
for option in claim namespace accelerator; do
  [[ -z "${!option}" || "${!option}" =~ ^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$ ]] || fail "--$option=${!option}: expected lower-case letters, digits, hyphens and dots"
done
[[ "$image" =~ ^[A-Za-z0-9][-A-Za-z0-9._/:@]*$ ]] || fail "--image=$image is no name of an image"
[[ "$max_restarts" =~ ^[0-9]+$ ]] || fail "--max_restarts=$max_restarts: expected a number"
for argument in "$@"; do
  case "$argument" in
    --hosts=* | --host=* | --coordinator=*) fail "$argument is in the command: this script adds it" ;;
    --workdir=/mnt/share/*) ;;
    --workdir=*) fail "$argument: every pod would have its own; expected a folder below /mnt/share, where the claim is mounted" ;;
  esac
  [[ ! "$argument" =~ [[:cntrl:]] ]] || fail "an argument of the command has a line break or a tab: $argument"
done

# A string of YAML. Kubernetes replaces $(NAME) by a variable, and $$ by $.
literal() {
  printf '"%s"' "$(printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/[$]/$$/g')"
}

command='['
for argument in "$@"; do
  command+="$(literal "$argument"), "
done

port=1234
case "$device" in
  tpu)
    for option in hosts gpus; do
      [[ -z "${!option}" ]] || fail "--$option=${!option} is for --device=gpu; a TPU's topology says how many machines it has"
    done
    accelerator="${accelerator:-tpu-v5p-slice}" topology="${topology:-2x2x2}" slices="${slices:-1}"
    [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology=$topology: expected AxB or AxBxC"
    [[ "$slices" =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices: expected a number"
    chips=$((${topology//x/*}))
    [[ $((chips % 4)) == 0 ]] || fail "--topology=$topology has $chips chips: expected a multiple of 4, the chips of a machine"
    hosts=$((chips / 4))
    command+='"--hosts=auto"]'
    ;;
  gpu)
    for option in accelerator topology slices; do
      [[ -z "${!option}" ]] || fail "--$option=${!option} is for --device=tpu"
    done
    gpus="${gpus:-8}"
    for option in hosts gpus; do
      [[ "${!option}" =~ ^[1-9][0-9]*$ ]] || fail "--$option=${!option}: expected a number"
    done
    # shellcheck disable=SC2016
    command+="$(printf '"--hosts=%s", "--host=$(JOB_COMPLETION_INDEX)", "--coordinator=%s-hosts-0-0.%s:%s"]' "$hosts" "$name" "$name" "$port")"
    ;;
  *) fail "--device=$device: expected tpu or gpu" ;;
esac

# The manifest without its comments, every ${...} filled in.
manifest() {
  local fields=() field value
  for field in name namespace image claim max_restarts accelerator topology slices hosts gpus port command; do
    value="$(printf '%s' "${!field}" | sed -e 's/[\\&|]/\\&/g')"
    fields+=(-e "s|\${$(printf '%s' "$field" | tr '[:lower:]' '[:upper:]')}|$value|")
  done
  sed -e '/^ *#/d' -e 's/ #.*//' "${fields[@]}" "$folder/$device.yaml"
}

if [[ -n "$dry_run" ]]; then
  echo "kubectl create --namespace=$namespace --filename=- << 'MANIFEST'"
  manifest
  echo MANIFEST
  exit
fi
command -v kubectl > /dev/null || fail 'kubectl is not installed: https://kubernetes.io/docs/tasks/tools'
manifest | kubectl create --namespace="$namespace" --filename=-
echo "Its log:  kubectl logs --namespace=$namespace --follow --selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
echo "Its end:  kubectl delete jobset --namespace=$namespace $name"
