# What Docker is asked, as in podman.sh: once with runc and once with kite. `docker` is a function that names the runtime.

#: streams
docker run --rm tiny sh -c 'echo out; echo err >&2; exit 7'
printf 'in\0put' | docker run --rm -i tiny cat | od -c

#: process
docker run --rm --hostname box -e A=b -w /made/deep -u 1000:1001 --group-add 7 --ulimit nofile=100:200 tiny sh -c '
    id; pwd; echo $A; hostname; ulimit -n; umask; grep -E "^(Cap|NoNew)" /proc/self/status; touch /refused'

#: files
mkdir "$D/folder"; echo host >"$D/folder/file"; echo single >"$D/single"
docker run --rm --read-only --tmpfs /scratch:size=1m -v "$D/folder:/folder" -v "$D/single:/single:ro" --memory 128m tiny sh -c '
    cat /folder/file /single; echo guest >/folder/new; echo no >/single; touch /x; df -k /scratch | awk "END { print \$2 }"'
cat "$D/folder/new"

#: status 126
docker run --rm tiny /data 2>"$D/errors" || echo $?; grep -v ^time= "$D/errors" >&2

#: status 127
docker run --rm tiny no-such-program 2>"$D/errors" || echo $?; grep -v ^time= "$D/errors" >&2

#: life
docker run --detach --name life tiny sh -c "echo ready; echo err >&2; $WAITS" >/dev/null
until docker logs life 2>/dev/null | grep -q ready; do sleep 0.2; done
docker exec -e A=b -w /bin life sh -c 'pwd; echo $A; echo err >&2; exit 5'; echo $?
printf 'in\0put' | docker exec -i life cat | od -c
docker exec life sh -c 'kill -KILL $$'; echo $?
docker pause life; docker inspect --format '{{.State.Status}}' life; docker unpause life
docker stop --time 60 life; docker wait life; docker logs life
docker start life >/dev/null; until test "$(docker logs life 2>/dev/null | grep -c ready)" = 2; do sleep 0.2; done
docker kill life; docker inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' life
docker rm life
