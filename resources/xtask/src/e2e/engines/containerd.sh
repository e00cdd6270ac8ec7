# What containerd is asked by way of its shim for runc, as in podman.sh: once with runc and once with kite. `run` is ctr's, with
# the runtime's program.

#: streams
run --rm localhost/tiny:latest streams sh -c 'echo out; echo err >&2; exit 7'

#: process
run --rm --env A=b --cwd /srv --user 1000:1001 --read-only localhost/tiny:latest process sh -c '
    id; pwd; echo $A; grep -E "^(Cap|NoNew)" /proc/self/status; touch /tmp/x'

#: files
mkdir "$D/folder"; echo host >"$D/folder/file"
run --rm --mount "type=bind,src=$D/folder,dst=/folder,options=rbind:rw" localhost/tiny:latest files sh -c '
    cat /folder/file; echo guest >/folder/new'
cat "$D/folder/new"

#: status 127
run --rm localhost/tiny:latest missing no-such-program || echo "status $?" >&2

#: life
run --detach localhost/tiny:latest life sh -c "$WAITS"
until ctr task exec --exec-id first life sh -c 'echo joined; exit 5'; test $? = 5; do sleep 0.2; done
ctr task exec --exec-id second --user 7:8 --cwd /bin life sh -c 'id; pwd; kill -KILL $$'; echo $?
ctr task pause life; ctr task ls | awk '/^life/ { print $3 }'; ctr task resume life; ctr task ls | awk '/^life/ { print $3 }'
ctr task kill --signal TERM life
until ctr task ls | grep -q '^life.*STOPPED'; do sleep 0.2; done
ctr task rm life; echo $?
ctr container rm life
