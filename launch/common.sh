# shellcheck shell=bash
# Sourced by the scripts beside it.

# need NAME...: ends with the names of all variables that are not set.
need() {
  local variable missing=()
  for variable; do [ -n "${!variable:-}" ] || missing+=("$variable"); done
  if [ ${#missing[@]} -gt 0 ]; then
    echo "${0##*/}: set ${missing[*]}; see launch/README.md" >&2
    exit 2
  fi
}

# run COMMAND...: runs it, or with DRY_RUN=1 prints it as one could type it.
run() {
  if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# quoted WORD...: the words as one line that a remote shell reads as the same words.
quoted() { printf '%q ' "$@" | sed 's/ $//'; }
