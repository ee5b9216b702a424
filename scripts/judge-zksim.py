#!/usr/bin/env python3
"""Let an independent client judge the simulated ZKTeco terminal.

usage: judge-zksim.py PEER COMMAND...

PEER is a checkout of pyzk (a public Python client; it is not part of this project). COMMAND starts the simulator up to its
options, for example:

    scripts/judge-zksim.py ../pyzk bin/gatepost simulate zk

For every mix of user size, record size and comm key a simulator is started and what PEER reads from it is compared with what
the simulator holds, as its control address tells: users, log, free sizes, clock, options, a live punch, an unlock. Prints a
line per mix; exits 1 if anything differs.
"""
import datetime
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

USERS, RECORDS, SERIAL = 137, 4321, "GP00004242"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Simulator:
    """One simulator process and its control address."""

    def __init__(self, command, **options):
        self.port, control = free_port(), free_port()
        self.url = f"http://127.0.0.1:{control}"
        args = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
        self.process = subprocess.Popen(
            [*command, f"--listen=127.0.0.1:{self.port}", f"--control=127.0.0.1:{control}", *args],
            stdout=subprocess.DEVNULL)

    def __enter__(self):
        deadline = time.monotonic() + 30
        while True:
            try:
                self.get("/state")
                return self
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise SystemExit("the simulator does not start")
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as r:
            return json.load(r)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as r:
            return json.load(r)

    def log(self):
        entries = []
        while len(entries) < self.get("/state")["records"]:
            entries += self.get(f"/log?from={len(entries)}&count=10000")
        return entries


class Verdict:
    def __init__(self):
        self.faults = []

    def same(self, what, got, want):
        if got != want:
            self.faults.append(f"{what}: peer has {got!r}, terminal {want!r}")

    def same_rows(self, what, got, want):
        self.same(f"number of {what}", len(got), len(want))
        for i, (g, w) in enumerate(zip(got, want)):
            if g != w:
                self.faults.append(f"{what}, row {i}: peer has {g!r}, terminal {w!r}")
                break


def wall(text):
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S")


def judge(peer, command, user_size, record_size, key):
    v = Verdict()
    with Simulator(command, serial=SERIAL, key=key, users=USERS, user_size=user_size, records=RECORDS,
                   record_size=record_size, pause="5ms") as sim:
        terminal = peer.ZK("127.0.0.1", port=sim.port, timeout=20, password=key, ommit_ping=True).connect()

        v.same("serial number", terminal.get_serialnumber(), SERIAL)
        v.same("firmware", terminal.get_firmware_version()[:4], "Ver ")
        v.same("platform names a colour screen", "TFT" in terminal.get_platform(), user_size == 72)
        v.same("width of ids", terminal.get_pin_width(), 9)
        v.same("address", terminal.get_network_params()["ip"], "127.0.0.1")
        for ask in (terminal.get_device_name, terminal.get_mac, terminal.get_face_version, terminal.get_fp_version,
                    terminal.get_extend_fmt, terminal.get_user_extend_fmt, terminal.get_face_fun_on,
                    terminal.get_compat_old_firmware):
            v.same(f"{ask.__name__} answered", ask() is not None, True)

        terminal.read_sizes()
        v.same("sizes", (terminal.users, terminal.records, terminal.rec_av), (USERS, RECORDS, terminal.rec_cap - RECORDS))

        skew = (terminal.get_time() - wall(sim.get("/state")["clock"])).total_seconds()
        v.same("clock within two seconds", abs(skew) <= 2, True)
        terminal.set_time(datetime.datetime(2031, 2, 3, 4, 5, 6))
        skew = (wall(sim.get("/state")["clock"]) - datetime.datetime(2031, 2, 3, 4, 5, 6)).total_seconds()
        v.same("clock as set, within two seconds", 0 <= skew <= 2, True)

        v.same_rows("users",
                    [(u.uid, u.user_id, u.name, u.privilege, u.password, u.card) for u in terminal.get_users()],
                    [(u["uid"], u["user"], u["name"] or "NN-" + u["user"], u["privilege"], u["password"], u["card"])
                     for u in sim.get("/users")])

        # This peer names the two codes of the short record the other way round.
        codes = ("state", "verify") if record_size == 16 else ("verify", "state")
        v.same_rows("log",
                    [(a.user_id, a.timestamp, a.status, a.punch) for a in terminal.get_attendance()],
                    [(e["user"], wall(e["time"]), e[codes[0]], e[codes[1]]) for e in sim.log()])

        terminal.disable_device()
        v.same("disabled", sim.get("/state")["enabled"], False)
        terminal.enable_device()
        v.same("enabled", sim.get("/state")["enabled"], True)

        terminal.unlock(time=3)
        v.same("unlocked for", [d["seconds"] for d in sim.get("/state")["doors"]], [3])

        # Two punches once the peer has registered: its "enable, verify, register" takes a moment.
        def punch():
            time.sleep(0.5)
            for user, method, direction in (("7", "finger", "out"), ("20", "card", "break_in")):
                sim.post("/punch", {"user": user, "time": "2030-12-31T23:59:58", "method": method, "direction": direction})
                time.sleep(0.3)
        hand = threading.Thread(target=punch)
        hand.start()
        heard = []
        for event in terminal.live_capture(new_timeout=5):
            if event is None:
                break
            heard.append((event.user_id, event.timestamp, event.punch))
            if len(heard) == 2:
                terminal.end_live_capture = True
        hand.join()
        moment = datetime.datetime(2030, 12, 31, 23, 59, 58)
        v.same("live punches", heard, [("7", moment, 1), ("20", moment, 3)])
        v.same("unconfirmed events", sim.get("/state")["unacked"], 0)
        v.same("records after punches", sim.get("/state")["records"], RECORDS + 2)
        terminal.disconnect()

        if key:
            try:
                peer.ZK("127.0.0.1", port=sim.port, timeout=5, password=key + 1, ommit_ping=True).connect()
                v.faults.append("a wrong comm key is accepted")
            except Exception as e:  # the peer's own class; its text is what we compare
                v.same("wrong comm key", str(e), "Unauthenticated")
    return v.faults


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.path.insert(0, sys.argv[1])
    import zk as peer
    failed = 0
    for user_size, record_size, key in itertools.product((28, 72), (16, 40), (0, 12345)):
        faults = judge(peer, sys.argv[2:], user_size, record_size, key)
        print(f"users of {user_size}, records of {record_size}, key {key}: {'; '.join(faults) or 'all the same'}", flush=True)
        failed += bool(faults)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
