# What the scripts share: `. scripts/lib.sh`, from anywhere. It goes to the root of the repository.
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

VENV=.venv # the README's, and ignored by git

# block FILE NAME: the lines between the markers NAME:begin and NAME:end in FILE, without the fence.
block() {
    awk -v begin="<!-- $2:begin -->" -v end="<!-- $2:end -->" '
        $0 == end { inside = 0 }
        inside && !/^```/ { print; lines++ }
        $0 == begin { inside = 1 }
        END { exit !lines }' "$1" || { echo "$1 has no block $2" >&2; return 1; }
}

# retry COMMAND...: a registry may be out of reach for a moment.
retry() {
    local attempt
    for attempt in 1 2 3; do
        "$@" && return
        [ "$attempt" = 3 ] || sleep $((attempt * 5))
    done
    return 1
}

# need MODULE EXTRA: install xsproto in place with that extra, unless MODULE can be imported already.
need() {
    [ -x "$VENV/bin/pip" ] || python3 -m venv "$VENV"
    "$VENV/bin/python" -c "import $1" 2>/dev/null || retry "$VENV/bin/pip" install -q -e ".[$2]"
}
