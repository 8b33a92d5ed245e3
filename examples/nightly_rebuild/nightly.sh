#!/bin/sh
# Brings a bank up to date, and keeps the version that was good if the new one does not pass the gate.
#
#   nightly.sh SOURCES BANK MODEL GATE
#
# GATE is a directory with queries.jsonl and qrels.tsv. What this prints is meant for people: cron mails it to
# MAILTO. Settings from the environment:
#
#   REQUIRE   what the gate asks for                        default: hit@5>=0.9
#   KEEP      versions to keep                              default: 5
#   TRIES     how often to try while someone else writes    default: 5
#   PAUSE     seconds between two tries                     default: 600
#
# Beside the bank lie BANK.good (number of the last version that passed), BANK.result.json and BANK.log. The
# exit code is m3build's own: README.md says what each means to a scheduler.
set -u

if [ $# -ne 4 ]; then
    echo "usage: $0 SOURCES BANK MODEL GATE" >&2
    exit 2
fi
sources=$1 bank=${2%/} model=$3 gate=$4
require=${REQUIRE:-hit@5>=0.9}
good=

current() {
    m3build info "$bank" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])'
}

# The file is replaced whole, for readers may look at any moment.
passed() {
    echo "$1" >"$bank.good.new" && mv "$bank.good.new" "$bank.good"
}

# Runs a command again while it says that the bank is busy (8).
patiently() {
    tries=1
    while :; do
        "$@"
        ended=$?
        if [ "$ended" -ne 8 ] || [ "$tries" -ge "${TRIES:-5}" ]; then
            return "$ended"
        fi
        tries=$((tries + 1))
        sleep "${PAUSE:-600}"
    done
}

compile() {
    m3build compile "$sources" -o "$bank" --model "$model" \
        --progress json --result "$bank.result.json" 2>"$bank.log"
}

if [ -s "$bank.good" ]; then
    good=$(cat "$bank.good")
fi

patiently compile
code=$?
if [ "$code" -ne 0 ]; then
    echo "$bank was not rebuilt (exit code $code), and is what it was:"
    tail -n 5 "$bank.log"
    exit "$code"
fi
made=$(current) || exit 1

echo
if [ -n "$good" ]; then
    m3build diff "$bank@$good" "$bank@$made"
else
    m3build diff "$bank"
fi
echo

m3build eval "$bank" --queries "$gate/queries.jsonl" --qrels "$gate/qrels.tsv" \
    --require "$require" --no-store --progress none
code=$?
if [ "$code" -ne 0 ]; then
    echo "version $made of $bank did not pass the gate (exit code $code)"
    if [ -z "$good" ]; then
        echo "no version has passed yet: there is none to go back to"
        exit "$code"
    fi
    patiently m3build rollback "$bank" --to "$good" --progress none || exit
    made=$(current) || exit 1
fi
passed "$made" || exit 6

patiently m3build gc "$bank" --keep "${KEEP:-5}" --grace 1d
swept=$?
if [ "$code" -eq 0 ]; then
    code=$swept
fi
exit "$code"
