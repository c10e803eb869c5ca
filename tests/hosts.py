"""Several hosts on one machine, as Linux namespaces: their cables can be cut, and their power.

    with hosts(3, shared=[folder]) as (head, *workers):
        head.run("ray", "start", "--head", f"--node-ip-address={head.address}")
        workers[0].cut()

Each host has its own network, mounts, processes and name; a private /tmp and /dev/shm, and a home directory of
which what it changes is its own. ``shared`` folders are the same everywhere, under the same path: they stand in for
NFS. A switch in one more network namespace joins the hosts. All of it is a tree of processes, nothing of it is
entered into the machine's own network, and it ends with whoever opened it, however that one ends.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "iptables", "ss", "mount")

# A host, from its first process on: "$1" is its name, "$2" a folder for what is its own, then what is shared.
# The first process stays and collects orphans, as init does.
BOOT = r"""
set -eu
read -r pid _ </proc/self/stat  # as the machine sees it
name=$1 own=$2
shift 2
mount -t proc proc /proc
hostname "$name"
ip link set lo up
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount -t tmpfs tmpfs "$own"
mkdir "$own/tmp" "$own/changes" "$own/scratch"
chmod 1777 "$own/tmp"
mount -t overlay -o "lowerdir=$HOME,upperdir=$own/changes,workdir=$own/scratch" overlay "$HOME"
for folder; do
    case $folder in
    /tmp/*) mkdir -p "$own$folder"; mount --rbind "$folder" "$own$folder" ;;
    esac
done
mount --rbind "$own/tmp" /tmp
echo "$pid"
exec >/dev/null 2>&1
while :; do sleep 1 & wait; done
"""

# A long cable between two devices of its own, given with the delay in seconds and the share of frames that are lost on
# their way to the second: what comes out of one goes into the other. In user space, since not every kernel has netem.
LONG_CABLE = r"""
import collections, fcntl, os, random, select, struct, sys, time

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
delay, loss = map(float, sys.argv[1:3])
ends = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(2)]
for end, name in zip(ends, sys.argv[3:]):
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), TAP_WITHOUT_HEADER))
print("open", flush=True)
under_way = collections.deque()  # when it arrives, where, the frame
while True:
    wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
    for end in select.select(ends, [], [], wait)[0]:
        frame, other = os.read(end, 65536), ends[end == ends[0]]
        if other == ends[0] or random.random() >= loss:
            under_way.append((time.monotonic() + delay, other, frame))
    while under_way and under_way[0][0] <= time.monotonic():
        _, end, frame = under_way.popleft()
        try:
            os.write(end, frame)
        except OSError:
            pass  # a device that is down
"""


class HostsUnavailableError(Exception):
    """This machine does not let us make namespaces; the text says what is missing."""


def why_unavailable() -> str | None:
    """What this machine lacks for :func:`hosts`; None where nothing is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts as namespaces need Linux and root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts as namespaces need {', '.join(missing)} (Debian: iproute2 iptables util-linux)"
    trial = " && ".join(
        [
            "mount -t tmpfs tmpfs /dev/shm",
            "mkdir /dev/shm/a /dev/shm/b",
            'mount -t overlay -o "lowerdir=$HOME,upperdir=/dev/shm/a,workdir=/dev/shm/b" overlay "$HOME"',
            "ip link add switch type bridge",
            "ip link add veth0 type veth peer name veth1",
            "ip tuntap add tap0 mode tap",
            "iptables -A INPUT -s 10.77.0.1 -p tcp --dport 9 -j DROP",
        ]
    )
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", trial]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return f"namespaces, bridges, veth, tap or iptables are not permitted here: {' '.join(done.stderr.split())}"
    return None


class Host:
    """One of :func:`hosts`; boots when it is made."""

    def __init__(self, number: int, own: Path, shared: Sequence[Path], switch: int) -> None:
        self.name, self.address = f"host{number}", f"10.77.0.{number}"
        self._port = f"port{number}"
        self._own, self._shared, self._switch = own, shared, switch
        self._cable: subprocess.Popen | None = None  # where it is a long one
        self.power_on()

    def power_on(self) -> None:
        """Boots, with nothing of what ran or was written before, and with a new cable."""
        self._own.mkdir(exist_ok=True)
        boot = ["sh", "-c", BOOT, "sh", self.name, self._own, *self._shared]
        self._unshare, pid = _unshare("--mount", "--uts", "--pid", "--fork", "--kill-child", *map(str, boot))
        self._enter = ["nsenter", "-t", str(pid), "-n", "-m", "-u", "-p", "--"]
        cable = ["link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(pid)]
        _in_network(self._switch, "ip", *cable)
        _in_network(self._switch, "ip", "link", "set", self._port, "master", "switch")
        self.heal()
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "dev", "eth0")  # Ray asks it which address is this host's

    def power_off(self) -> None:
        """No process of it gets to do or say anything more, nor does its network (as a FIN would)."""
        with suppress(subprocess.CalledProcessError):  # no cable, since it is off
            self.cut()
        self._unshare.kill()  # takes the first process along, and that takes all others
        self._unshare.wait()
        with suppress(subprocess.CalledProcessError):  # the kernel may have removed it with the host's end
            _in_network(self._switch, "ip", "link", "delete", self._port)
        if self._cable is not None:
            self._cable.kill()
            self._cable.wait()
            self._cable.stdout.close()
            self._cable = None
            _in_network(self._switch, "ip", "link", "delete", f"{self._port}hub")

    def cut(self) -> None:
        """Cuts the cable to the switch; the host itself runs on."""
        _in_network(self._switch, "ip", "link", "set", self._port, "down")

    def heal(self) -> None:
        _in_network(self._switch, "ip", "link", "set", self._port, "up")

    def lengthen_cable(self, delay: float, loss: float) -> None:
        """From now on what goes to the switch or comes from there takes this long (seconds), and this share of what
        comes is lost. Until the next :meth:`power_on`."""
        ends = [f"{self._port}{end}" for end in ("far", "near")]
        script = [sys.executable, "-c", LONG_CABLE, str(delay), str(loss), *ends]
        command = ["setpriv", "--pdeathsig", "KILL", "nsenter", "-t", str(self._switch), "-n", *script]
        self._cable = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert self._cable.stdout.readline() == b"open\n"
        hub = f"{self._port}hub"  # of the host's own cable and the long one's near end
        for line in (
            f"link add {hub} type bridge",
            f"link set {hub} up",
            f"link set {self._port} master {hub}",
            f"link set {ends[1]} master {hub}",
            f"link set {ends[0]} master switch",
            f"link set {ends[0]} up",
            f"link set {ends[1]} up",
        ):
            _in_network(self._switch, "ip", *line.split())

    def shut_out(self, other: "Host", port: int) -> None:
        """Whatever the other host sends to this port is lost, of open connections too. Until the next
        :meth:`power_on`."""
        self.run("iptables", "-A", "INPUT", "-s", other.address, "-p", "tcp", "--dport", str(port), "-j", "DROP")

    def ports(self, pid: str) -> list[int]:
        """Where one of this host's processes listens."""
        sockets = self.run("ss", "-Hltnp").stdout.splitlines()
        return [int(line.split()[3].rpartition(":")[2]) for line in sockets if f"pid={pid}," in line]

    def reset(self, other: "Host", port: int) -> None:
        """Breaks the connections that this host has opened to a port of the other, as a firewall that has forgotten
        them does. New ones can be opened."""
        self.run("ss", "-K", "dst", other.address, "dport", "=", f":{port}")

    def start(self, *command: str | Path, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """A command on this host, in the repository's folder; ``options`` as Popen takes them."""
        here = [*self._enter, "env", "-C", str(REPOSITORY), *map(str, command)]
        return subprocess.Popen(here, env=env, start_new_session=True, **options)

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The same, to its end. Raises CalledProcessError where it fails, with what it said as a note."""
        process = self.start(*command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.kill()
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        if check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, [self.name, *map(str, command)], stdout, stderr)
            error.add_note(stdout + stderr)
            raise error
        return done

    def reaches(self, other: "Host", seconds: float = 1.0) -> bool:
        """Whether a packet gets there and an answer back: a closed port refuses, no host says nothing."""
        script = (
            "import socket, sys\n"
            "try:\n"
            "    socket.create_connection((sys.argv[1], 9), timeout=float(sys.argv[2]))\n"
            "except ConnectionRefusedError:\n"
            "    print('refused')\n"
            "except OSError as error:\n"
            "    print(error)\n"
        )
        answer = self.run(sys.executable, "-c", script, other.address, str(seconds)).stdout
        return answer.strip() == "refused"


@contextmanager
def hosts(count: int, shared: Sequence[Path] = ()) -> Iterator[list[Host]]:
    """``count`` hosts, 10.77.0.1 and so on, that see each other and ``shared``; the repository and the
    interpreter are shared too. Raises HostsUnavailableError."""
    reason = why_unavailable()
    if reason:
        raise HostsUnavailableError(reason)
    shared = [path.resolve() for path in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *shared)]
    with ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leap-rl-hosts-")))
        unshare, switch = _unshare("sh", "-c", 'echo "$$"; exec sleep infinity')
        stack.callback(unshare.wait)
        stack.callback(unshare.kill)
        _in_network(switch, "ip", "link", "add", "switch", "type", "bridge")
        _in_network(switch, "ip", "link", "set", "switch", "up")
        found = []
        for number in range(1, count + 1):
            found.append(Host(number, own / f"host{number}", shared, switch))
            stack.callback(found[-1].power_off)
        yield found


def _unshare(*arguments: str) -> tuple[subprocess.Popen, int]:
    """A process in a network namespace of its own, that ends when we do, and the pid it says it has."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    line = process.stdout.readline()
    process.stdout.close()
    if not line.strip().isdecimal():
        process.kill()
        process.wait()
        raise HostsUnavailableError(f"{' '.join(arguments[:5])} … did not start")
    return process, int(line)


def _in_network(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", *command], check=True, capture_output=True)
