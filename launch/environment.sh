# shellcheck shell=bash
# Sourced by the other scripts of this folder: finds a Python, makes .venv unless a virtual environment is active, installs.
# Sets: root (the repository), python (the interpreter of the environment).

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
  echo "error: $*" >&2
  exit 1
}

# Prints the first Python 3.11 to 3.13 on the PATH that starts.
find_python() {
  local name version found=''
  for name in python3 python3.13 python3.12 python3.11 python; do
    command -v "$name" > /dev/null || continue
    version="$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)" || continue
    case "$version" in
      3.11 | 3.12 | 3.13) command -v "$name" && return ;;
      *) found+=" $name is Python $version;" ;;
    esac
  done
  fail "Python 3.11, 3.12 or 3.13 is needed; found:${found:- no Python on the PATH}"
}

use_environment() {
  if [[ -n "${VIRTUAL_ENV:-}" ]]; then
    python="$VIRTUAL_ENV/bin/python"
    [[ -x "$python" ]] || fail "the active virtual environment $VIRTUAL_ENV has no bin/python"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      || fail "the active virtual environment $VIRTUAL_ENV has $("$python" --version), expected Python 3.11, 3.12 or 3.13"
    echo "Using the active virtual environment $VIRTUAL_ENV"
  else
    python="$root/.venv/bin/python"
    if ! "$python" -m pip --version > /dev/null 2>&1; then
      local base
      base="$(find_python)"
      echo "Making a virtual environment in $root/.venv with $base"
      "$base" -m venv --clear "$root/.venv" \
        || fail "$base cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"
    fi
  fi
  "$python" -m pip --version > /dev/null 2>&1 || fail "$python has no pip; install it with: $python -m ensurepip"
}

# install EXTRAS MESSAGE [LOG]: the package, editable, with the given extras ('' for none). Skipped, without the message, when this setup.py was
# installed with them before. A third argument names the file that pip's own words go to.
install() {
  local extras="$1" message="$2" log="${3:-}" prefix stamp
  prefix="$("$python" -c 'import sys; print(sys.prefix)')"
  stamp="$prefix/.mempi_jax-installed${extras:+-$extras}"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$root $(cksum < "$root/setup.py")" ]]; then
    return 0
  fi
  echo "$message" >&2
  local pip=("$python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}")
  if [[ -n "$log" ]]; then
    "${pip[@]}" > "$log" 2>&1 || return 1
  else
    "${pip[@]}" || return 1
  fi
  echo "$root $(cksum < "$root/setup.py")" > "$stamp"
}

# The real ALFWorld engine builds from source. Without it everything but the replay of episodes on it works.
install_alfworld() {
  local log="$root/.venv/alfworld-build.log"
  [[ -n "${VIRTUAL_ENV:-}" ]] && log="$VIRTUAL_ENV/alfworld-build.log"
  rm -f "$log"
  if install alfworld 'Installing the real ALFWorld engine (builds from source, minutes) ...' "$log"; then
    rm -f "$log"
    return 0
  fi
  echo "The real ALFWorld engine could not be installed (it builds from source with a C++ compiler): the replay on it will be skipped. Build log: $log"
  return 1
}
