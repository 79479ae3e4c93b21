# Read by other scripts, not run: which programs this machine lacks, and how to get them from Debian.
#
# shellcheck shell=bash

# missing_packages WORD...: print the Debian packages of the programs that are not installed, one a line.
# Each word is a program, with its package if that has another name: go:golang-go.
missing_packages() {
    local word
    for word; do
        command -v "${word%:*}" >/dev/null || printf '%s\n' "${word#*:}"
    done
}

# install_packages PACKAGE...: install Debian packages; does nothing without one.
install_packages() {
    [ $# -gt 0 ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    apt-get install --quiet --yes --no-install-recommends "$@"
}
