#!/bin/sh
# run.sh - 162 real energies through a spool: two launchers, two failures, mended and run again;
#          then a graph: twelve molecules optimised, their vibrations, one table, one rescue.
#
#     run.sh BIN_DIR [WORK_DIR]
#
# Needs   BIN_DIR, the bin directory of a Python environment with spool, ase, tblite, tabulate.
# Writes  WORK_DIR only: molecules/, names.txt, ids.txt, graph.txt, table.txt, second.log, spool/.
#         By default a fresh temporary directory, which is kept to be looked into.
# Fails   exit 1: the demo did not end as it must. exit 2: it cannot start.

set -eu

SPOILED=CH3ONO # its file names an element that is none
SLOW=C6H6      # computes for 8 seconds with a time limit of 3
GRAPH=minima   # the workflow of workflow.toml,
RESCUED=H2O2   # where this one computes for 12 seconds with a time limit of 5
OPTIMISED=12   # molecules, each with three tasks; one more makes the table

usage() {
    echo "run.sh: $*" >&2
    exit 2
}

fail() {
    echo "run.sh: $*. Look into $WORK" >&2
    exit 1
}

step() {
    printf '\n== %s\n' "$*"
}

# Print a command, then run it; redirecting stdout redirects only what the command says.
exec 3>&1
show() {
    printf '$ %s\n' "$*" >&3
    "$@" 3>&-
}

# The ids in a state: a task is a directory STATE/GROUP/ID, nothing more.
ids() {
    (cd "$SPOOL" && find "$1" -mindepth 2 -maxdepth 2 -type d) | sed 's:.*/::' | sort
}

count() {
    echo $(($(ids "$1" | wc -l)))
}

expect() {
    [ "$(count "$1")" -eq "$2" ] || fail "expected $2 tasks in $1, found $(count "$1")"
}

# One finished try is one line in its launcher's journal.
tries() {
    for journal in "$SPOOL"/journal/*.jsonl; do
        number=$(grep -c '"what": *"exit"' "$journal" || true)
        [ "$number" -eq 0 ] || printf '%6d tasks  %s\n' "$number" "$(basename "$journal" .jsonl)"
    done
}

stop_second() {
    [ -z "$second" ] || kill "$second" 2>/dev/null || true
}

[ $# -eq 1 ] || [ $# -eq 2 ] || usage "expected BIN_DIR [WORK_DIR]"
for program in spool python; do
    [ -x "$1/$program" ] || usage "$1 holds no $program; expected an environment with spool in it"
done
HERE=$(cd "$(dirname "$0")" && pwd)
BIN=$(cd "$1" && pwd)
PYTHON=$BIN/python
PATH=$BIN:$PATH
for module in ase numpy tblite tabulate; do
    "$PYTHON" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$module'))" ||
        usage "$BIN has no $module. Run: $BIN/pip install $module"
done

if [ $# -eq 2 ]; then
    mkdir -p "$2"
    WORK=$(cd "$2" && pwd)
else
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/spool-demo.XXXXXX")
fi
for left in molecules names.txt spool; do
    [ ! -e "$WORK/$left" ] || usage "$WORK holds an earlier demo; name another directory"
done
export PATH SPOOL="$WORK/spool"
second=
trap stop_second EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "Everything happens in $WORK (kept afterwards)."

step "1. write 162 molecules, one of them spoiled on purpose"
show "$PYTHON" "$HERE/write_molecules.py" "$WORK/molecules" --spoil "$SPOILED"
total=$(($(find "$WORK/molecules" -name '*.xyz' | wc -l)))

step "2. make a spool: a directory, no server"
show spool init "$SPOOL"

step "3. submit one task per molecule; $SLOW by itself, too slow for its time limit"
(cd "$WORK/molecules" && ls) | sed 's/\.xyz$//' | grep -vx "$SLOW" >"$WORK/names.txt"
show spool submit --each-line "$WORK/names.txt" --name 'g2-{}' --workflow g2 \
    --time-estimate 1m --time-limit 1m -- \
    "$PYTHON" "$HERE/energy.py" "$WORK/molecules/{}.xyz" >"$WORK/ids.txt"
echo "$(($(wc -l <"$WORK/ids.txt"))) ids, the first: $(head -n 1 "$WORK/ids.txt")"
show spool submit --name "g2-$SLOW" --workflow g2 --time-limit 3 -- \
    "$PYTHON" "$HERE/energy.py" "$WORK/molecules/$SLOW.xyz" --slow 8
show spool status

step "4. run them: a launcher on all cores, and a second one that joins as from another terminal"
begin=$(date +%s)
echo "$ spool launcher --cores 1 --idle-timeout 3 > second.log 2>&1 &"
spool launcher --cores 1 --idle-timeout 3 >"$WORK/second.log" 2>&1 &
second=$!
show spool launcher --idle-timeout 3 || fail "the first launcher failed"
wait "$second" || fail "the second launcher failed, see second.log"
second=
end=$(date +%s)
echo "Tries per launcher, from the journal:"
tries

step "5. see what failed: two tasks, each under its reason"
show spool status
echo "$ ls $SPOOL/FAILED/*"
ls "$SPOOL"/FAILED/*
expect FAILED 2
for id in $(ids FAILED); do
    show spool show "$id"
done

step "6. mend: the right molecule for the one, more time for the other; run both again"
show "$PYTHON" "$HERE/write_molecules.py" "$WORK/molecules" --only "$SPOILED"
for id in $(ids FAILED); do
    case $id in
    "g2-$SLOW".*) show spool retry "$id" --time-limit 1m ;;
    *) show spool retry "$id" ;;
    esac
done
show spool launcher --idle-timeout 1 || fail "the launcher failed"

step "7. the result: energies, read from the finished tasks' directories"
show "$PYTHON" "$HERE/table.py" "$SPOOL"
show spool status
expect FAILED 0
expect FINISHED "$total"
awk -v tasks="$total" -v seconds="$((end - begin))" 'BEGIN {
    if (seconds < 1) seconds = 1
    printf "\n%d tasks in %d s (step 4, with start-up and 3 s of idling): %.1f tasks/s\n",
        tasks, seconds, tasks / seconds
}'
echo "All $total molecules are in $SPOOL/FINISHED."

step "8. a graph: optimise, then frequencies and energy of what came out, then one table of all"
export PYTHON G2="$HERE" MOLECULES="$WORK/molecules" # workflow.toml asks for them
echo "What two of its molecules would make:"
show spool submit --workflow-file "$HERE/workflow.toml" --set "molecule=H2O,$RESCUED" --dry-run
show spool submit --workflow-file "$HERE/workflow.toml" >"$WORK/graph.txt"
echo "$(($(wc -l <"$WORK/graph.txt"))) ids; who waits for whom, of the same two:"
show spool tree --workflow "$GRAPH" '*-H2O.*' "*-$RESCUED.*" table
begin=$(date +%s)
show spool launcher --idle-timeout 1 || fail "the launcher failed"
seconds=$(($(date +%s) - begin))

step "9. one ran into its time limit; its handler sent another from where it was, in its place"
show spool history "optimise-$RESCUED"
echo "$ ls $SPOOL/FAILED/*"
ls "$SPOOL"/FAILED/*
show spool tree --workflow "$GRAPH" "*-$RESCUED.*"
show spool log "rescue-$RESCUED"

step "10. the table waited for all of them, and read what lies in its parents' directories"
show spool wait --workflow "$GRAPH" --timeout 10 || fail "the graph did not finish"
show spool log table | tee "$WORK/table.txt"
[ "$(tail -n 1 "$WORK/table.txt")" = "$OPTIMISED molecules, each in a minimum" ] ||
    fail "the table does not hold $OPTIMISED molecules"
show spool status
# Each that was stopped has one that took its place; on a loaded machine it may be more than one.
stopped=$(count FAILED)
[ "$stopped" -ge 1 ] || fail "expected optimise-$RESCUED to run into its time limit"
expect FAILED "$(cd "$SPOOL/FAILED" && find . -path './replaced@*/optimise-*' -prune -print | wc -l)"
[ "$(ids FINISHED | grep -c '^rescue-')" -eq "$stopped" ] || fail "a rescue is missing"
for state in WAITING READY RUNNING CANCELLED; do
    expect "$state" 0
done
expect FINISHED $((total + 3 * OPTIMISED + 1))
echo "All $total energies and $((3 * OPTIMISED + 1)) tasks of the graph are in $SPOOL/FINISHED."
echo "The graph took $seconds s; $stopped of its tasks ran into a time limit and was rescued."
