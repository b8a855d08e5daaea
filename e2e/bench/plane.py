"""A control plane of plain processes on loopback: etcd and kube-apiserver, with an audit log that tells users apart."""

import base64
import collections
import ctypes
import datetime
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
WRITES = ("create", "update", "patch", "delete", "deletecollection")
READS = ("get", "list")

libc = ctypes.CDLL(None)


def die_with_parent():
    """A child must not outlive this process, however that ends (prctl PR_SET_PDEATHSIG)."""
    libc.prctl(1, signal.SIGKILL)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, condition, seconds=60, pause=0.1):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(pause)


class Process:
    """A child with a log. Ctrl-C is ours alone to act on: children are ended in order."""

    def __init__(self, name, command, folder, env=None):
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(env or {})}, start_new_session=True, preexec_fn=die_with_parent)
        self.pid = self.child.pid

    def check(self):
        if self.child.poll() is not None:
            raise RuntimeError(f"{self.name} ended with status {self.child.returncode}; its log: {self.log}")

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def cpu(self):
        """Seconds of CPU so far."""
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        """Resident memory now and at its highest, in MiB."""
        with open(f"/proc/{self.pid}/status") as status:
            sizes = dict(line.split(":", 1) for line in status)
        return tuple(int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))


def machine_cpu():
    """Seconds of CPU that everything on this machine used so far, and those its host withheld."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, steal / TICKS


def received(event):
    return datetime.datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()


class Api:
    """One connection to the API server; not to be shared by threads."""

    def __init__(self, port, ca, token):
        context = ssl.create_default_context(cafile=ca)
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        self.headers = {"Authorization": f"Bearer {token}", "User-Agent": "bench"}

    def send(self, method, path, body=None, content="application/json"):
        if isinstance(body, dict):
            body = json.dumps(body)
        headers = {**self.headers, "Content-Type": content} if body else self.headers
        try:
            self.connection.request(method, path, body, headers)
            return self.connection.getresponse()
        except OSError:
            self.connection.close()
            raise

    def __call__(self, method, path, body=None, content="application/json"):
        answer = self.send(method, path, body, content)
        text = answer.read()
        if answer.status == 429:
            time.sleep(0.1)
            return self(method, path, body, content)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
        return json.loads(text) if text[:1] == b"{" else text

    def serves(self, path):
        answer = self.send("GET", path)
        answer.read()
        return answer.status == 200

    def watch(self, path):
        """Objects as they are and as they change; listed anew whenever the API server ends the watch."""
        while True:
            found = self("GET", path)
            yield from found["items"]
            answer = self.send("GET", f"{path}{'&' if '?' in path else '?'}watch=true&resourceVersion={found['metadata']['resourceVersion']}")
            while line := answer.readline():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    break
                yield event["object"]
            self.connection.close()


def is_ready(item, condition="Ready"):
    conditions = item.get("status", {}).get("conditions", ())
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


class ControlPlane:
    """`users` maps a name to its groups; each gets a kubeconfig, and a place in the audit log."""

    def __init__(self, tools, folder, users, flags=()):
        self.folder, self.processes, self.mark = folder, [], {}
        self.port, self.audit = free_port(), folder / "audit.log"
        self.ca = folder / "ca.crt"
        folder.mkdir(parents=True)
        self.tokens = {name: base64.b16encode(os.urandom(16)).decode() for name in ("bench", *users)}
        try:
            self._start(tools, users, flags)
        except BaseException:
            self.stop()
            raise

    def _start(self, tools, users, flags):
        folder = self.folder
        self._certificates()
        rows = [f'{self.tokens["bench"]},bench,bench,"system:masters"']
        rows += [f'{self.tokens[name]},{name},{name},"{",".join(groups)}"' for name, groups in users.items()]
        (folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        (folder / "audit-policy.yaml").write_text(json.dumps({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{"level": "Metadata", "users": list(users)}, {"level": "None"}]}))

        store, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.etcd = self.run("etcd", [
            tools / "etcd", "--data-dir", folder / "etcd", "--name", "bench", "--log-level", "warn",
            "--listen-client-urls", store, "--advertise-client-urls", store,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"bench={peer}"])
        self.apiserver = self.run("kube-apiserver", [
            tools / "kube-apiserver", "--etcd-servers", store,
            "--bind-address", "127.0.0.1", "--secure-port", self.port, "--advertise-address", "127.0.0.1",
            # Nobody looks for the API server through a Service of it.
            "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.0.0.0/24",
            "--tls-cert-file", folder / "server.crt", "--tls-private-key-file", folder / "server.key",
            "--service-account-issuer", "https://bench", "--service-account-key-file", folder / "server.crt",
            "--service-account-signing-key-file", folder / "server.key",
            "--token-auth-file", folder / "tokens.csv", "--authorization-mode", "AlwaysAllow",
            # Written before the answer is sent, and never rotated away: the counts are exact.
            "--audit-policy-file", folder / "audit-policy.yaml", "--audit-log-path", self.audit,
            "--audit-log-mode", "blocking", "--audit-log-maxsize", "100000", *flags])
        self.api = self.connect()
        wait_until("the API server is ready", self._is_ready)

    def _is_ready(self):
        for process in self.processes:
            process.check()
        try:
            return self.api("GET", "/readyz") == b"ok"
        except (OSError, RuntimeError, http.client.HTTPException):
            return False

    def _certificates(self):
        def openssl(*arguments):
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                            "-days", "2", *arguments], cwd=self.folder, check=True, capture_output=True)
        openssl("-subj", "/CN=bench CA", "-keyout", "ca.key", "-out", "ca.crt")
        openssl("-subj", "/CN=kube-apiserver", "-keyout", "server.key", "-out", "server.crt", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")

    def run(self, name, command, env=None):
        process = Process(name, command, self.folder, env)
        self.processes.append(process)
        return process

    def connect(self, user="bench"):
        return Api(self.port, self.ca, self.tokens[user])

    def kubeconfig(self, user):
        path = self.folder / f"kubeconfig-{user.replace(':', '-')}"
        named = {"name": "bench"}
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{**named, "cluster": {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.ca)}}],
            "users": [{**named, "user": {"token": self.tokens[user]}}],
            "contexts": [{**named, "context": {"cluster": "bench", "user": "bench"}}]}))
        return path

    def install(self, crds):
        """Custom resource definitions from YAML files, until they are served."""
        names = [self.api("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", path.read_bytes(), "application/yaml")
                 ["metadata"]["name"] for path in crds]

        def served(name):
            crd = self.api("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
            path = f"/apis/{crd['spec']['group']}/{crd['spec']['versions'][0]['name']}/{crd['spec']['names']['plural']}"
            return self.api.serves(path)
        for name in names:
            wait_until(f"{name} is served", lambda name=name: served(name))
        # The API server drops watches of a definition that is still being accepted; nobody measures that.
        time.sleep(10)

    def namespace(self, name):
        self.api("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def requests(self, user, start, end):
        """What a user asked for between two times of the clock."""
        counted = Requests()
        with self.audit.open() as log:
            for line in log:
                event = json.loads(line)
                if event["user"]["username"] == user and start <= received(event) < end and "objectRef" in event:
                    counted.add(event)
        return counted

    def until_silence(self, user, seconds, limit=600):
        """Waits until a user wrote nothing for so long, leases aside, and says when that was."""
        newest, end = time.time(), time.time() + limit
        with self.audit.open() as log:
            log.seek(0, os.SEEK_END)
            part = ""
            while (now := time.time()) < newest + seconds:
                if now > end:
                    raise RuntimeError(f"{user} does not stop writing")
                for line in log:
                    part += line
                    if part.endswith("\n"):
                        event, part = json.loads(part), ""
                        what = event.get("objectRef", {}).get("resource")
                        if event["user"]["username"] == user and event["verb"] in WRITES and what != "leases":
                            newest = received(event)
                time.sleep(0.2)
        return newest + seconds

    def stop(self):
        """The newest first: a controller must not see its API server go."""
        for process in reversed(self.processes):
            process.stop()


class Requests:
    """Requests by verb and resource. Renewals of a lease are apart: they depend on time, not on work."""

    def __init__(self):
        self.writes, self.reads = collections.Counter(), collections.Counter()
        self.leases = self.conflicts = self.failures = 0

    def add(self, event):
        verb, what = event["verb"], event["objectRef"]
        resource = "/".join(filter(None, (what.get("resource"), what.get("subresource"))))
        if resource == "leases":
            self.leases += verb in WRITES
            return
        if verb in WRITES:
            self.writes[f"{verb} {resource}"] += 1
            code = event["responseStatus"]["code"]
            self.conflicts += code == 409
            self.failures += code >= 400
        elif verb in READS:
            self.reads[f"{verb} {resource}"] += 1
