"""Countersign's server by itself, on one core: it serves copies from its disk, its API server is away. And a CA of OpenSSL's for it."""

import base64
import hashlib
import json
import pathlib
import re
import subprocess

from plane import TICKS, Process, free_port

OPENSSL = """[ca]
default_ca = bench
[bench]
database = index.txt
crlnumber = crlnumber
default_md = sha256
default_crl_days = 7
crl_extensions = crl
[crl]
authorityKeyIdentifier = keyid
[req]
distinguished_name = name
x509_extensions = v3
prompt = no
[name]
CN = Bench CA
[v3]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[client]
authorityKeyIdentifier = keyid
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
"""


def openssl(folder, *arguments):
    subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)


def serial(at):
    """Serial number of the revoked certificate at this place: 16 octets, hex."""
    return "7F" + hashlib.sha256(str(at).encode()).hexdigest()[:30].upper()


def make_ca(folder):
    """A CA: ca.key, ca.crt."""
    (folder / "openssl.cnf").write_text(OPENSSL)
    openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365",
            "-config", "openssl.cnf", "-keyout", "ca.key", "-out", "ca.crt")


def make_crl(folder, entries, copies="copies"):
    """Its CRL, as PEM and as the copy that the server reads at its start, in a folder of copies; its octets."""
    (folder / "crlnumber").write_text("01\n")
    lines = (f"R\t301231000000Z\t261101000000Z,keyCompromise\t{serial(at)}\tunknown\t/CN=client\n" for at in range(entries))
    (folder / "index.txt").write_text("".join(lines))
    openssl(folder, "ca", "-gencrl", "-config", "openssl.cnf", "-cert", "ca.crt", "-keyfile", "ca.key", "-out", "crl.pem")
    openssl(folder, "crl", "-in", "crl.pem", "-outform", "DER", "-out", "crl.der")
    der = (folder / "crl.der").read_bytes()
    copy = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "crl-bench-1", "labels": {
            "app.kubernetes.io/managed-by": "countersign", "countersign.dev/component": "crl",
            "countersign.dev/authority": "bench", "countersign.dev/generation": "1"}},
        "data": {"ca.crt": (folder / "ca.crt").read_text()},
        "binaryData": {"crl.der": base64.b64encode(der).decode()},
    }
    (folder / copies).mkdir()
    (folder / copies / "crl-bench-1.json").write_text(json.dumps(copy))
    return der


def on_core(core, *command):
    return ["taskset", "--cpu-list", str(core), *map(str, command)]


class Countersign:
    """The server, over a folder of copies."""

    name = "countersign"

    def __init__(self, binary, folder, core, copies="copies"):
        self.port, self.gate, health, nothing = (free_port() for _ in range(4))
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            "{apiVersion: v1, kind: Config, current-context: c, "
            f"clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{nothing}'}}}}], "
            "contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}\n")
        self.process = Process("countersign", on_core(
            core, binary, "serve", "--crl-cache", folder / copies, f"--crl-listen=127.0.0.1:{self.port}",
            f"--gate-listen=127.0.0.1:{self.gate}", f"--health-listen=127.0.0.1:{health}"),
            folder, {"KUBECONFIG": str(kubeconfig)})

    def pids(self):
        return [self.process.pid]


def with_workers(process):
    """A master and its workers."""
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [process.pid, *map(int, children.split())]


def cpu(server):
    """Seconds that the server's processes have used."""
    total = 0
    for pid in server.pids():
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident(server):
    """Octets of memory that they hold now."""
    text = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid in server.pids())
    return sum(int(kib) for kib in re.findall(r"VmRSS:\s+(\d+) kB", text)) * 1024
