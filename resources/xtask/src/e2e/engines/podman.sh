# What podman is asked, each part once with crun and once with kite: what it prints, on either stream, and its status are the
# same but for what mod.rs lists. `podman` is a function that names the runtime. $WAITS is a script that ends with 7 when it
# is asked to, and $D a folder of the host's.

#: process/streams
podman run --rm tiny sh -c 'echo out; echo err >&2; exit 7'

#: process/input
printf 'in\0put' | podman run --rm -i tiny cat | od -c

#: process/much
podman run --rm tiny head -c 3000000 /dev/zero | sha256sum

#: process/environment
podman run --rm --hostname box -e A=b -e 'C=d e' -e PATH=/bin:/sbin tiny sh -c 'env | sort'

#: process/user
podman run --rm -u 1000:1001 --group-add 7 tiny sh -c 'id; umask; touch /refused; touch /tmp/x && stat -c "%u %g %a" /tmp/x'
podman run --rm -u ann tiny sh -c 'id; echo ~'

#: process/folder
podman run --rm -w /srv tiny sh -c 'pwd; cd ..; pwd'

#: process/hostname
podman run --rm --hostname box tiny sh -c 'hostname; cat /etc/hostname; grep -c box /etc/hosts; hostname other; echo $?'

#: process/limits
podman run --rm --ulimit nofile=100:200 --ulimit core=0 tiny sh -c 'ulimit -n; ulimit -Hn; ulimit -c'

#: process/rights
podman run --rm tiny grep -E '^(Cap|NoNew)' /proc/self/status
podman run --rm --cap-drop all --cap-add chown --security-opt no-new-privileges tiny sh -c '
    grep -E "^(Cap|NoNew)" /proc/self/status; touch /tmp/x; chown 1 /tmp/x && echo owned; chmod 600 /tmp/x; chroot / true; mount -t tmpfs x /srv'

#: process/kernel
podman run --rm --sysctl kernel.msgmax=9000 tiny sh -c '
    cat /proc/sys/kernel/msgmax; wc -c </proc/kcore; ls /sys/firmware; echo 1 >/proc/sys/kernel/panic; echo $$
    for at in null zero full random urandom tty; do test -c /dev/$at && echo $at; done; ls -l /dev/fd /dev/stdin | cut -d / -f 3-'

#: process/status 125
podman run --rm -v /no/such/folder:/x tiny true

#: process/status 126
podman run --rm tiny /data

#: process/status 127
podman run --rm tiny no-such-program

#: process/status 137
podman run --rm tiny sh -c 'sh -c "kill -KILL \$\$"; exit $?'

#: process/status 143
podman run --rm tiny sh -c 'sh -c "kill -TERM \$\$"; exit $?'

#: files/read-only
podman run --rm --read-only tiny sh -c 'touch /x; for at in /tmp /run /dev/shm; do touch $at/x && echo $at; done; rm /data'

#: files/folders and files
mkdir -p "$D/folder"; echo host >"$D/folder/file"; echo single >"$D/single"
podman run --rm -v "$D/folder:/folder" -v "$D/single:/single:ro" -v "$D/folder:/again:ro" tiny sh -c '
    cat /folder/file /single; echo guest >/folder/new; echo no >/single; echo no >/again/new; cat /again/new
    mkdir -m 700 /folder/made; chown 5:6 /folder/made; ln -s /etc/passwd /folder/link; ln /folder/file /folder/other'
(cd "$D/folder"; cat new; stat -c '%n %u %g %a %h %F' ./*; readlink link)

#: files/volume
podman volume create kept
podman run --rm -v kept:/kept tiny sh -c 'echo one >/kept/file'
podman run --rm -v kept:/kept tiny cat /kept/file
podman volume rm kept

#: files/memory in files
podman run --rm --tmpfs /scratch:size=1m,mode=1711 --shm-size 2m tiny sh -c '
    df -k /scratch /dev/shm | awk "{ print \$2, \$6 }"; stat -c %a /scratch; head -c 2000000 /dev/zero >/scratch/x; wc -c </scratch/x'

#: files/memory
podman run --rm --memory 64m --memory-swap 64m tiny sh -c 'x=xxxxxxxx; while :; do x=$x$x; done'

#: files/processors
podman run --rm --cpus 1 --memory 128m tiny sh -c 'echo $(($(nproc) >= 1))'

#: files/gone
podman run --rm --name gone tiny true
podman container exists gone; echo $?
podman run --name stays tiny sh -c 'exit 4'
podman inspect --format '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Pid}}' stays
podman rm stays

#: files/twice
podman run --name twice tiny sh -c 'cat /written; echo again >>/written'
podman start --attach twice
podman rm twice

#: files/what is written
podman run --name writes tiny sh -c 'rm /data; mkdir /folder; echo x >/folder/file; echo more >>/etc/passwd; mv /srv /moved; chmod 700 /tmp'
podman diff writes | sort
podman cp writes:/folder/file - | tar -xO; podman commit --quiet writes written >/dev/null
podman run --rm written sh -c 'cat /folder/file; tail -n 1 /etc/passwd; ls -d /data /moved'
podman rm writes; podman rmi --force written >/dev/null

#: life/logs and wait
podman run --detach --name logs tiny sh -c 'echo one; echo two >&2; sleep 1; printf three; exit 9' >/dev/null
podman wait logs; podman logs logs
podman rm logs

#: life/exec
podman run --detach --name exec --hostname box -e A=b -w /srv tiny sh -c "$WAITS" >/dev/null
podman exec exec sh -c 'pwd; hostname; echo $A; echo err >&2; exit 5'; echo $?
podman exec -u 7:8 -w /bin -e C=d exec sh -c 'id; pwd; echo $A$C'
printf 'in\0put' | podman exec -i exec cat | od -c
podman exec exec no-such-program; echo $?
podman exec exec /data; echo $?
podman exec exec sh -c 'kill -KILL $$'; echo $?
podman exec exec sh -c 'cat /proc/1/comm; echo $(($$ > 1)); echo to the rest >/made'
podman exec --detach exec sh -c 'cp /made /made-too' >/dev/null
for _ in $(seq 100); do podman exec exec cat /made-too 2>/dev/null && break; done
for n in 1 2 3 4 5 6; do podman exec exec sh -c "sleep 1; echo $n" & done | sort; wait
podman exec exec head -c 2000000 /dev/zero | sha256sum
podman stop exec; podman wait exec
podman exec exec true; echo $?
podman rm exec

#: life/stop
podman run --detach --name stop tiny sh -c "echo ready; $WAITS" >/dev/null
until podman logs stop | grep -q ready; do sleep 0.2; done
podman stop --time 60 stop; podman inspect --format '{{.State.ExitCode}}' stop; podman logs stop; podman rm stop
podman run --detach --name deaf tiny sh -c 'trap "" TERM; echo ready; while :; do sleep 0.1; done' >/dev/null
until podman logs deaf | grep -q ready; do sleep 0.2; done
podman stop --time 1 deaf 2>/dev/null; podman inspect --format '{{.State.ExitCode}}' deaf; podman rm deaf

#: life/kill
podman run --detach --name kill tiny sh -c "trap 'echo USR1' USR1; echo ready; $WAITS" >/dev/null
until podman logs kill | grep -q ready; do sleep 0.2; done
podman kill --signal USR1 kill; until podman logs kill | grep USR1; do sleep 0.2; done
podman kill kill; podman wait kill
podman kill kill 2>&1 | sed 's/[0-9a-f]\{64\}/ID/'
podman rm kill

#: life/pause
: >"$D/beats"
podman run --detach --name pause -v "$D:/host" tiny sh -c "while echo >>/host/beats; do sleep 0.1; done" >/dev/null
until test -s "$D/beats"; do sleep 0.2; done
podman pause pause; podman inspect --format '{{.State.Status}}' pause
before=$(wc -c <"$D/beats"); sleep 2; echo $(($(wc -c <"$D/beats") - before))
podman exec pause true; echo $?
podman unpause pause; podman inspect --format '{{.State.Status}}' pause
before=$(wc -c <"$D/beats"); until test "$(wc -c <"$D/beats")" -gt "$before"; do sleep 0.2; done
podman rm --force --time 0 pause

#: life/conmon
podman run --detach --name conmon tiny sh -c "$WAITS" >/dev/null
kill -KILL "$(podman inspect --format '{{.State.ConmonPid}}' conmon)"
podman rm --force --time 0 conmon; podman container exists conmon; echo $?

#: pods/play kube
cat >"$D/pod.yaml" <<POD
apiVersion: v1
kind: Pod
metadata: { name: pod }
spec:
  hostNetwork: true
  restartPolicy: Never
  containers:
  - { name: one, image: localhost/tiny:latest, imagePullPolicy: Never, env: [{ name: A, value: b }],
      command: [sh, -c, "echo in a pod; echo \$A; exit 6"] }
POD
podman play kube "$D/pod.yaml" >/dev/null; echo $?
podman wait pod-one; podman logs pod-one
podman play kube --down "$D/pod.yaml" | grep -c :

#: pods/build
mkdir "$D/context"; echo copied >"$D/context/file"
printf '%s\n' 'FROM localhost/tiny' 'COPY file /file' 'RUN id -u; cat /file; echo built >/built; chown 5:6 /built' \
    'RUN test "$(cat /built)" = built && rm /data' 'CMD ["sh", "-c", "cat /built; stat -c %u:%g /built; ls /data"]' >"$D/context/Dockerfile"
podman build --network none --quiet --tag localhost/made "$D/context" >/dev/null; echo $?
podman run --rm localhost/made
podman rmi --force localhost/made >/dev/null
printf '%s\n' 'FROM localhost/tiny' 'RUN echo before; exit 3' >"$D/context/Dockerfile"
podman build --network none --quiet "$D/context" 2>&1 | grep -c 'exit status 3'

#: rootless/process
podman run --rm tiny sh -c 'id; echo err >&2; touch /x && stat -c "%u %g" /x; exit 7'
podman run --rm -u 5:6 tiny sh -c 'id; touch /tmp/x && stat -c "%u %g" /tmp/x; touch /refused'

#: rootless/files
mkdir "$D/folder"; echo host >"$D/folder/file"; chown -R ann:ann "$D"
podman run --rm -v "$D/folder:/folder" tiny sh -c 'cat /folder/file; echo guest >/folder/new; touch /folder/other; chown 5:6 /folder/other'
cat "$D/folder/new"; stat -c '%u %g' "$D/folder/"*

#: rootless/life
podman run --detach --name life tiny sh -c "echo ready; $WAITS" >/dev/null
until podman logs life | grep -q ready; do sleep 0.2; done
podman exec -u 7:8 life sh -c 'id; exit 5'; echo $?
podman stop --time 60 life; podman wait life; podman logs life
podman rm life
