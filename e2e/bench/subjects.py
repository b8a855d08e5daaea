"""Who is measured: how each is installed, started, and asked for a certificate. Both are asked for the same certificate."""

import subprocess
import time
import urllib.request

from plane import free_port, is_ready, wait_until

NAMESPACE = "clients"


def service_account(namespace, name):
    """A user as a pod's ServiceAccount is one, so that the API server gives it a controller's priority."""
    return f"system:serviceaccount:{namespace}:{name}", ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


class Countersign:
    name, home, flags = "countersign", "countersign", ()
    user, groups = service_account("countersign", "countersign-controller")
    path = f"/apis/countersign.dev/v1alpha1/namespaces/{NAMESPACE}/clientidentities"
    authority = "/apis/countersign.dev/v1alpha1/clientauthorities"

    def __init__(self, root, build):
        self.binary = root / "target/release/countersign"
        self.crds = sorted((root / "crds").glob("*.yaml"))

    def start(self, plane):
        self.port = free_port()
        return plane.run("countersign", [
            self.binary, "controller", "--namespace", self.home, "--health-listen", f"127.0.0.1:{self.port}"],
            {"KUBECONFIG": str(plane.kubeconfig(self.user))})

    def until_ready(self, process):
        """Seconds until the controller says that it is ready."""
        started = time.monotonic()

        def ready():
            process.check()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False
        wait_until("the controller is ready", ready, pause=0.01)
        return time.monotonic() - started

    def prepare(self, plane):
        plane.api("POST", self.authority, {
            "apiVersion": "countersign.dev/v1alpha1", "kind": "ClientAuthority", "metadata": {"name": "bench"},
            "spec": {"selfSigned": {"commonName": "Bench CA"}}})
        wait_until("the authority is ready", lambda: is_ready(plane.api("GET", f"{self.authority}/bench")))

    def item(self, name):
        return {"apiVersion": "countersign.dev/v1alpha1", "kind": "ClientIdentity", "metadata": {"name": name},
                "spec": {"authorityRef": {"name": "bench"}, "secretName": name, **subject(name)}}


class CertManager:
    name, home, flags = "cert-manager", "cert-manager", ()
    user, groups = service_account("cert-manager", "cert-manager")
    path = f"/apis/cert-manager.io/v1/namespaces/{NAMESPACE}/certificates"
    issuer = f"/apis/cert-manager.io/v1/namespaces/{NAMESPACE}/issuers"

    def __init__(self, root, build):
        self.binary = build / "peer"
        module = subprocess.run(["go", "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager"],
                                cwd=root / "e2e/bench/peer", check=True, capture_output=True, text=True).stdout.strip()
        self.crds = sorted((root / module / "deploy/crds").glob("*.yaml"))

    def start(self, plane):
        return plane.run("peer", [self.binary, "-v=2"], {"KUBECONFIG": str(plane.kubeconfig(self.user))})

    def until_ready(self, process):
        """The controllers alone have no probe."""
        process.check()

    def prepare(self, plane):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
                        "-subj", "/CN=Bench CA", "-keyout", "issuer.key", "-out", "issuer.crt"],
                       cwd=plane.folder, check=True, capture_output=True)
        plane.api("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", {
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "bench-ca"},
            "stringData": {"tls.crt": (plane.folder / "issuer.crt").read_text(), "tls.key": (plane.folder / "issuer.key").read_text()}})
        plane.api("POST", self.issuer, {
            "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "bench"}, "spec": {"ca": {"secretName": "bench-ca"}}})
        wait_until("the issuer is ready", lambda: is_ready(plane.api("GET", f"{self.issuer}/bench")))

    def item(self, name):
        return {"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": name},
                "spec": {"issuerRef": {"name": "bench"}, "secretName": name, "usages": ["digital signature", "client auth"],
                         "privateKey": {"algorithm": "ECDSA", "size": 256}, **subject(name)}}


class LimitedCertManager(CertManager):
    """Where the API server has no Priority and Fairness, cert-manager limits itself to 20 requests a second."""

    name, flags = "cert-manager-limited", ("--enable-priority-and-fairness=false",)


def subject(name):
    return {"commonName": name, "uris": [f"spiffe://bench.example/{name}"], "duration": "2160h", "renewBefore": "720h"}


SUBJECTS = {each.name: each for each in (Countersign, CertManager, LimitedCertManager)}
