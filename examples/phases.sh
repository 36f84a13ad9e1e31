#!/bin/sh
# How far an analysis is, from a shell: latchfs phases.
#
# usage: examples/phases.sh DIR   (latchfs in PATH)
set -u

latchfs phases "$1" || echo "not complete yet (exit code $?)"

# Waits until it is, at most ten seconds; then one line of the document.
latchfs phases "$1" --wait 10s --json | jq -r '"complete: \(.complete)"'
