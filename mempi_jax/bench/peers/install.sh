#!/usr/bin/env bash
# Makes one virtual environment a peer: install.sh DIR [NAME...], names among torch, trl, tunix (all without a name).
# Needs Python 3.11 or later as python3, or as $PYTHON. The peers run on the CPU; where pip's index has torch with CUDA alone, that works too, and is
# larger: PIP_EXTRA_INDEX_URL may name an index of CPU builds.
set -euo pipefail

[[ $# -ge 1 && "$1" != -* ]] || { echo "usage: install.sh DIR [torch | trl | tunix]..." >&2; exit 2; }
folder="$1"
shift
[[ $# -gt 0 ]] || set -- torch trl tunix

for name in "$@"; do
  case "$name" in
    torch) packages=('torch==2.13.*' 'transformers==5.24.*') ;;
    trl) packages=('torch==2.13.*' 'transformers==5.24.*' 'trl==1.16.*') ;;
    tunix) packages=('google-tunix==0.1.7' 'jax==0.10.2' 'flax==0.12.8') ;;
    *)
      echo "unknown peer $name: expected torch, trl or tunix" >&2
      exit 2
      ;;
  esac
  echo "$folder/$name: ${packages[*]}"
  "${PYTHON:-python3}" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
done
