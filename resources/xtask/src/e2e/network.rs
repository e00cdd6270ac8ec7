//! Networks: throughput and data through a tap and through passt, a backend that goes, and a device that is flooded.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::wire::PEER;
use super::{Fixture, GUEST, HERE, SCRIPT, Started, TAP, Wire, finish, noise, watched};
use crate::guest::job::STATUS;
use crate::host;
use crate::machine::{Access, Net};
use crate::running::Running;

/// The bytes that are transferred each way.
const DATA: usize = 32 << 20;
/// Where a guest fetches data, and where it brings it.
const PORTS: [u16; 2] = [9000, 9001];

/// The guest's side: SERVER runs iperf3, DATA gives and takes the data that is on the second disk.
const TRANSFER: &str = r#"
set -e
ip link set lo up; ip link set eth0 up
ip addr add $GUEST/24 dev eth0
ip route add default via $GATEWAY
ping -q -c 3 $DATA
for way in '' -R; do
    iperf3 -c $SERVER -t 3 -f m $way >/tmp/out || { cat /tmp/out; exit 1; }
    echo "guest: tcp $way $(grep receiver /tmp/out | tr -s ' ' | cut -d ' ' -f 7,8)"
done
cmp - /dev/vdb </dev/tcp/$DATA/9000
echo 'guest: fetched data is right'
exec 3<>/dev/tcp/$DATA/9001
cat /dev/vdb >&3
read -r answer <&3
[ "$answer" = whole ]
echo 'guest: brought data'
"#;
const UNPLUG: &str = r#"
echo 'guest: unplug'
for i in $(seq 200); do
    [ "$(cat /sys/class/net/eth0/carrier)" = 0 ] && { echo 'guest: link is down'; exit 0; }
    sleep 0.1
done
echo 'guest: link stays up'; exit 1
"#;
/// One device is flooded, and then the other; the console and what is not flooded answer.
const FLOODED: &str = r#"
set -e
ip link set lo up; ip link set eth0 up
ip addr add $GUEST/24 dev eth0
ask() { echo "guest: type"; read -r line; echo "guest: heard $line"; }
fio --name=flood --filename=/dev/vdb --direct=1 --ioengine=libaio --rw=randwrite --bs=64k --iodepth=128 --size=64M \
    --time_based --runtime=600 >/dev/null &
sleep 1
ask
ping -q -c 5 -i 0.2 $DATA
kill %1; wait || true
iperf3 -c $SERVER -u -b 0 -l 1400 -t 8 -R >/dev/null &
sleep 1
ask
dd if=/dev/vdb of=/dev/null bs=1M count=16 iflag=direct status=none
wait
iperf3 -c $SERVER -u -b 0 -l 1400 -t 5 >/dev/null &
sleep 1
ask
dd if=/dev/vdb of=/dev/null bs=1M count=16 iflag=direct status=none
wait
iperf3 -c $SERVER -t 2 >/dev/null
echo 'guest: traffic flows again'
"#;

/// A script's variables.
fn told(script: &str, values: [(&str, &str); 4]) -> String {
    values.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>() + script
}

/// Through a tap to another namespace, until the tap is taken away.
pub fn tap(fixture: &Fixture) -> Result<String> {
    let wire = Wire::new(fixture.user)?;
    let mut server = wire.at_peer("iperf3");
    let _server = Started::new(server.arg("-s").stdout(Stdio::null()))?;
    let values = [("GUEST", GUEST), ("GATEWAY", HERE), ("SERVER", PEER), ("DATA", HERE)];
    let script = told(TRANSFER, values) + UNPLUG;
    transfer(fixture, &script, Net::Tap(TAP.to_owned()), DATA, |running| {
        running.wait_for("guest: unplug", SCRIPT)?;
        wire.unplug()
    })
}

/// Moves so many bytes between a guest and this host, each way, over the one network.
fn transfer(
    fixture: &Fixture,
    script: &str,
    net: Net,
    bytes: usize,
    then: impl FnOnce(&mut Running) -> Result<()>,
) -> Result<String> {
    let disk = fixture.file("data.img");
    let data = noise(&disk, bytes)?;
    let mut machine = fixture.machine(script)?;
    machine.disks.push((disk, Access::ReadOnly));
    machine.nets.push(net);
    let ends = serve(&data)?;
    let said = watched(fixture.start(&machine)?, |running| {
        then(running)?;
        finish(running)?;
        Ok(running.said())
    })?;
    for end in ends {
        end.join().map_err(|_| anyhow!("the data's other end failed"))??;
    }
    Ok(speeds(&said))
}

/// Through passt to this namespace.
pub fn user(fixture: &Fixture) -> Result<String> {
    if host::program("passt").is_none() {
        bail!("there is no passt");
    }
    // passt gives the guest the addresses of the interface of the default route.
    let wire = Wire::new(fixture.user)?;
    let mut server = wire.at_peer("iperf3");
    let _server = Started::new(server.arg("-s").stdout(Stdio::null()))?;
    let values = [("GUEST", "10.8.0.1"), ("GATEWAY", PEER), ("SERVER", PEER), ("DATA", HERE)];
    // passt passes pings on only where the host lets everybody send them.
    let script = told(TRANSFER, values).replace("ping -q -c 3 $DATA\n", "");
    transfer(fixture, &script, Net::User, DATA / 4, |_| Ok(()))
}

/// One device is flooded; the others and the console answer, and traffic flows again behind the flood.
pub fn flooded(fixture: &Fixture) -> Result<String> {
    let _wire = Wire::new(fixture.user)?;
    let _server = Started::new(Command::new("iperf3").arg("-s").stdout(Stdio::null()))?;
    let values = [("GUEST", GUEST), ("GATEWAY", HERE), ("SERVER", HERE), ("DATA", HERE)];
    let disk = fixture.file("data.img");
    noise(&disk, 64 << 20)?;
    let mut machine = fixture.machine(&told(FLOODED, values))?;
    machine.disks.push((disk, Access::Write));
    machine.nets.push(Net::Tap(TAP.to_owned()));
    watched(fixture.start(&machine)?, |running| {
        for word in ["disk", "received", "sent"] {
            hear(running, word)?;
        }
        finish(running)
    })?;
    Ok(String::new())
}

/// Types a word when the guest asks for one, and hears that it came.
fn hear(running: &mut Running, word: &str) -> Result<()> {
    let before = running.wait_for("guest: type", SCRIPT)?;
    if before.contains(STATUS) {
        bail!("the script ended");
    }
    running.type_in(&format!("{word}\n"))?;
    running.wait_for(&format!("guest: heard {word}"), SCRIPT)?;
    Ok(())
}

/// Gives the data to the first who comes to the one port, and takes it from the first who comes to the other.
fn serve(data: &[u8]) -> Result<[JoinHandle<Result<()>>; 2]> {
    let listen = |port| TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("listening at {port}"));
    let [give, take] = PORTS.map(listen);
    let (give, take) = (give?, take?);
    let (given, wanted) = (data.to_vec(), data.to_vec());
    let giver = std::thread::spawn(move || {
        let (mut stream, _) = give.accept().context("waiting for who fetches")?;
        stream.write_all(&given).context("giving data")
    });
    let taker = std::thread::spawn(move || {
        let (mut stream, _) = take.accept().context("waiting for who brings")?;
        let mut taken = vec![0; wanted.len()];
        stream.read_exact(&mut taken).context("taking data")?;
        ensure!(taken == wanted, "other bytes came than were sent");
        // A guest that ends before it is told takes with it what it has not sent yet.
        stream.write_all(b"whole\n").context("answering")
    });
    Ok([giver, taker])
}

/// What a guest said of speed.
fn speeds(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("guest: tcp ")).collect();
    lines.join(", ")
}
