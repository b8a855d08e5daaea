"""nginx, HAProxy and Envoy as processes whose files are kept as those of a mounted Secret, and clients that knock at them."""

import base64
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time

from plane import free_port, wait_until


class Mount:
    """A folder as the kubelet keeps it for a Secret: names that lead through `..data`, which is swapped by a rename."""

    def __init__(self, folder):
        self.folder, self.version = folder, 0
        folder.mkdir(parents=True)

    def write(self, files):
        before, self.version = self.version, self.version + 1
        new = self.folder / f"..{self.version}"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..data_tmp").symlink_to(new.name)
        os.rename(self.folder / "..data_tmp", self.folder / "..data")
        if before:
            for old in (self.folder / f"..{before}").iterdir():
                old.unlink()
            (self.folder / f"..{before}").rmdir()


class DataPlane(threading.Thread):
    """A server, and the loop that brings it the newest files of the Secret. One reload at a time; what changes meanwhile shares the next."""

    def __init__(self, plane, files):
        super().__init__(daemon=True)
        self.folder, self.port = plane.folder / self.name_of_it, free_port()
        self.mount = Mount(self.folder / "secret")
        self.mount.write(files)
        self.newest, self.changed, self.error, self.reloads = files, threading.Event(), None, 0
        key = self.folder / "server.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", self.folder / "server.crt"], check=True, capture_output=True)
        with key.open("ab") as both:
            both.write((self.folder / "server.crt").read_bytes())
        self.process = plane.run(self.name_of_it, self.command())
        wait_until(f"{self.name_of_it} listens", self.listens)

    def listens(self):
        self.process.check()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def update(self, files):
        self.newest = files
        self.changed.set()

    def run(self):
        try:
            while True:
                self.changed.wait()
                self.changed.clear()
                self.mount.write(self.newest)
                self.reload()
                self.reloads += 1
        except Exception as error:
            self.error = error

    def workers(self):
        return set(pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())

    def replace_workers(self, sign):
        """A reload by signal, until a new worker is there: the old ones end when their connections do."""
        before, again = self.workers(), 0

        def replaced():
            nonlocal again
            # HAProxy's master loses a signal that comes while it is still at the reload before.
            if time.monotonic() > again:
                os.kill(self.process.pid, sign)
                again = time.monotonic() + 5
            return self.workers() - before
        wait_until(f"a new worker of {self.name_of_it}", replaced, pause=0.02)

    def reload(self):
        """Envoy watches its files by itself."""


class Nginx(DataPlane):
    name_of_it = "nginx"

    def command(self):
        (self.folder / "nginx.conf").write_text(f"""
            daemon off; pid {self.folder}/pid; error_log {self.folder}/error.log;
            events {{}}
            http {{
              access_log off; client_body_temp_path {self.folder}/a; proxy_temp_path {self.folder}/b;
              fastcgi_temp_path {self.folder}/c; uwsgi_temp_path {self.folder}/d; scgi_temp_path {self.folder}/e;
              server {{
                listen 127.0.0.1:{self.port} ssl;
                ssl_certificate {self.folder}/server.pem; ssl_certificate_key {self.folder}/server.pem;
                ssl_client_certificate {self.mount.folder}/ca.crt; ssl_crl {self.mount.folder}/ca.crl; ssl_verify_client on;
                location / {{ return 200 hello; }}
              }}
            }}""")
        return ["nginx", "-c", self.folder / "nginx.conf", "-e", self.folder / "error.log"]

    def reload(self):
        self.replace_workers(signal.SIGHUP)


class Haproxy(DataPlane):
    name_of_it = "haproxy"

    def command(self):
        (self.folder / "haproxy.cfg").write_text(
            "defaults\n  mode http\n  timeout client 5s\n  timeout server 5s\n  timeout connect 5s\n"
            f"frontend f\n  bind 127.0.0.1:{self.port} ssl crt {self.folder}/server.pem ca-file {self.mount.folder}/ca.crt "
            f"crl-file {self.mount.folder}/ca.crl verify required\n  http-request return status 200 content-type text/plain string hello\n")
        return ["haproxy", "-W", "-f", self.folder / "haproxy.cfg"]

    def reload(self):
        self.replace_workers(signal.SIGUSR2)


class Envoy(DataPlane):
    name_of_it = "envoy"

    def command(self):
        def at(port):
            return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

        def typed(kind, **config):
            return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **config}

        def file(path):
            return {"filename": str(path)}

        tls, secret = "transport_sockets.tls.v3", self.folder / "sds.json"
        secret.write_text(json.dumps({"resources": [typed(f"{tls}.Secret", name="clients", validation_context={
            "trusted_ca": file(self.mount.folder / "ca.crt"), "crl": file(self.mount.folder / "ca.crl"),
            "watched_directory": {"path": str(self.mount.folder)}})]}))
        context = typed(f"{tls}.DownstreamTlsContext", require_client_certificate=True, common_tls_context={
            "tls_certificates": [{"certificate_chain": file(self.folder / "server.pem"), "private_key": file(self.folder / "server.pem")}],
            "validation_context_sds_secret_config": {
                "name": "clients", "sds_config": {"path_config_source": {"path": str(secret)}, "resource_api_version": "V3"}}})
        routes = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}]}]}
        http = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="http", route_config=routes,
                     http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}])
        (self.folder / "envoy.json").write_text(json.dumps({"node": {"id": "bench", "cluster": "bench"}, "static_resources": {"listeners": [{
            "name": "clients", "address": at(self.port), "filter_chains": [{
                "transport_socket": {"name": "tls", "typed_config": context}, "filters": [{"name": "http", "typed_config": http}]}]}]}}))
        return ["envoy", "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--config-path", self.folder / "envoy.json"]


ALL = (Nginx, Haproxy, Envoy)


class Follower(threading.Thread):
    """Watches the Secret of a trust and hands its files to every data plane."""

    def __init__(self, api, path):
        super().__init__(daemon=True)
        self.api, self.path, self.error, self.planes, self.files = api, path, None, [], None

    def run(self):
        try:
            for secret in self.api.watch(self.path):
                self.files = {name: base64.b64decode(content) for name, content in secret["data"].items()}
                for plane in self.planes:
                    plane.update(self.files)
        except Exception as error:
            self.error = error


class Prober(threading.Thread):
    """Knocks at a data plane again and again: with each revoked certificate until it is refused, with one good one always."""

    PAUSE, IDLE = 0.03, 0.5

    def __init__(self, plane, good, load):
        super().__init__(daemon=True)
        self.plane, self.load, self.good = plane, load, load(good)
        self.waiting, self.refused, self.lock, self.error = {}, {}, threading.Lock(), None
        self.knocks = self.shut_out = self.disturbed = 0
        self.end = False

    def watch_for(self, name, since):
        context = self.load(name)
        with self.lock:
            self.waiting[name] = context, since

    def run(self):
        try:
            while not self.end:
                with self.lock:
                    waiting = dict(self.waiting)
                for name, (context, since) in waiting.items():
                    answer = self.knock(context)
                    if answer == "refused":
                        self.refused[name] = time.time() - since
                        with self.lock:
                            del self.waiting[name]
                    self.disturbed += answer == "disturbed"
                answer = self.knock(self.good)
                self.knocks += 1
                self.shut_out += answer == "refused"
                self.disturbed += answer == "disturbed"
                time.sleep(self.PAUSE if self.waiting else self.IDLE)
        except Exception as error:
            self.error = error

    def knock(self, context):
        """One new connection: `in`, `refused` on account of the certificate, or `disturbed` by something else."""
        try:
            with socket.create_connection(("127.0.0.1", self.plane.port), 10) as plain:
                with context.wrap_socket(plain) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    status = connection.recv(64).split(b" ")[1:2]
                    return {b"200": "in", b"400": "refused"}.get(*status, "disturbed") if status else "disturbed"
        except ssl.SSLError as error:
            return "refused" if "REVOKED" in (error.reason or "") else "disturbed"
        except OSError:
            return "disturbed"


def client(folder, secret):
    """The TLS context of a client, from the Secret of an identity."""
    path = folder / "client.pem"
    path.write_bytes(base64.b64decode(secret["tls.crt"]) + base64.b64decode(secret["tls.key"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Here the refusal of a certificate is part of the handshake; after one of TLS 1.3 it could be lost with the connection.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(path)
    return context
