#!/bin/sh
# Stands for runc in the tests of a container's owner. What lies in its state directory (--root) says how it behaves:
#
#   calls       fifo; every call writes its verb there before it does anything
#   called      the same as a file, for who only counts
#   hold.VERB   fifo; the verb waits for a line from it
#   fail.VERB   the verb says what is in the file, and fails
#   garble      the pid file of a process becomes nonsense
#   end.NAME    fifo; the process NAME (`init`, or the exec's id) ends with the status written there
#   ID/         a container: pid.NAME of each process
set -u

verb='' id='' pid_file='' root='' log='' spec='' force=''
while [ $# -gt 0 ]; do
    case $1 in
    --root) root=$2 && shift ;;
    --log) log=$2 && shift ;;
    --pid-file) pid_file=$2 && shift ;;
    --process) spec=${2##*/} && shift ;;
    --log-format | --bundle | --resources | --image-path | --work-path) shift ;;
    --force) force=' --force' ;;
    --*) ;;
    *) if [ -z "$verb" ]; then verb=$1; else id=$1; fi ;;
    esac
    shift
done
state=$root/$id

fail() {
    printf '{"level":"error","msg":"%s"}\n' "$1" >>"$log"
    exit 1
}

# The process holds nothing but its fifo, so it also ends when the test that holds the fifo is gone. It looks at the fifo
# when its parent is: a shell takes the exit of a child that is quicker, and the shim would wait for it in vain.
process='
    while read -r _ _ _ parent _ </proc/self/stat && [ "$parent" = "$1" ]; do :; done
    read -r status <&3 || exit 99
    exit "$status"
'
run() {
    # Opened before the process is there: once the test is gone, opening it would wait for ever.
    exec 3<"$root/end.$1"
    sh -c "$process" "$root/end.$1" $$ &
    echo $! >"$state/pid.$1"
    if [ -e "$root/garble" ]; then echo nonsense >"$pid_file"; else echo $! >"$pid_file"; fi
}

# As the end of a pid namespace does it: returns when the process is reaped. The pid may be somebody else's by now.
end() {
    pid=$(cat "$1" 2>/dev/null) || return 0
    grep -qF "$root" "/proc/$pid/cmdline" 2>/dev/null && kill -KILL "$pid"
    while [ -e "/proc/$pid" ]; do :; done
}

echo "$verb$force" >>"$root/called"
echo "$verb$force" >"$root/calls"
[ -p "$root/hold.$verb" ] && read -r _ <"$root/hold.$verb"
# runc has made its directory when a create fails late.
[ "$verb" = create ] && { mkdir "$state" || fail "container with given ID already exists"; }
[ -d "$state" ] || fail "container does not exist"
[ -f "$root/fail.$verb" ] && fail "$(cat "$root/fail.$verb")"
case $verb in
create) run init ;;
exec) run "${spec%.process.json}" ;;
delete)
    if [ -n "$force" ]; then
        for file in "$state"/pid.*; do [ "$file" = "$state/pid.init" ] || end "$file"; done
        end "$state/pid.init"
    fi
    rm -r "$state"
    ;;
esac
exit 0
