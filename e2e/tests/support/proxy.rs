//! A proxy before the API server that refuses, loses and delays writes by plan, and kills the operator
//! around them. Only the operator goes through it: tests and their observer see the server itself.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::control_plane::ControlPlane;
use super::operator::Operator;

/// What happens to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends before the server sees the request.
    Reset,
    /// Not the server but the proxy answers, with this status code.
    Refuse(u16),
    /// The server carries the request out; the connection ends before its answer.
    LoseAnswer,
    /// The server sees the request this much later.
    DelayRequest(Duration),
    /// The operator sees the answer this much later.
    DelayAnswer(Duration),
    /// The operator is killed before the server sees the request.
    KillBefore,
    /// The server carries the request out; the operator is killed before it sees the answer.
    KillAfter,
    /// The operator is killed this long after it saw the answer.
    KillAnswered(Duration),
}

impl Fault {
    pub const fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter | Self::KillAnswered(_))
    }
}

/// A request that changes something: its method, and the path of the object. That of a creation is
/// completed by the name in its body.
#[derive(Clone, Debug)]
pub struct Write {
    pub method: Method,
    pub path: String,
}

/// Which fault, if any, a write meets.
type Plan = Box<dyn FnMut(&Write) -> Option<Fault> + Send>;

/// The proxy, with the operator that runs behind it.
pub struct Proxy {
    shared: Arc<Shared>,
    server: JoinHandle<()>,
    kubeconfig: PathBuf,
    replica: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

struct Shared {
    upstream: Client,
    plan: Mutex<Plan>,
    met: Mutex<Vec<(Fault, Write)>>,
    operator: Mutex<Option<Operator>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Proxy {
    /// A proxy for a replica of this name with further arguments and environment variables. It lets everything through, and the operator is not started.
    pub async fn new(
        plane: &ControlPlane,
        replica: &str,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec![Ipv4Addr::LOCALHOST.to_string()];
        let certificate = rcgen::CertificateParams::new(names).expect("a name");
        let certificate = certificate.self_signed(&key).expect("a certificate");
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("a key that matches");

        let mut config = plane.config("operator").await;
        // A repeated write would be one that the operator did not make.
        config.default_retry = false;
        config.read_timeout = None;
        let shared = Arc::new(Shared {
            upstream: Client::try_from(config).expect("a client"),
            plan: Mutex::new(Box::new(|_| None)),
            met: Mutex::default(),
            operator: Mutex::default(),
        });
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let server = tokio::spawn(accept(listener, acceptor, shared.clone()));
        let kubeconfig = plane.folder().join(format!("proxy-{replica}.kubeconfig"));
        fs::write(&kubeconfig, kubeconfig_text(address, &certificate.pem())).expect("written");
        Self {
            shared,
            server,
            kubeconfig,
            replica: replica.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        }
    }

    /// Starts the operator unless it runs.
    pub fn keep_running(&self, plane: &ControlPlane) {
        let mut operator = self.shared.operator.lock().expect("nobody panics");
        // One that lost its lease, or whose first read failed, ends by itself.
        if operator.as_mut().is_some_and(Operator::is_running) {
            return;
        }
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let kubeconfig = self.kubeconfig.display().to_string();
        let mut environment = vec![("KUBECONFIG", kubeconfig.as_str())];
        environment.extend(self.environment.iter().map(|(name, value)| (&**name, &**value)));
        *operator = Some(Operator::start_in(plane, &self.replica, &arguments, &environment));
    }

    /// What the operators logged so far.
    pub fn log(&self, plane: &ControlPlane) -> String {
        fs::read_to_string(plane.folder().join(format!("{}.log", self.replica))).unwrap_or_default()
    }

    /// Ends the operator without warning, if it runs.
    pub fn kill(&self) {
        self.shared.kill();
    }

    /// Writes that the filter names meet these faults, one after the other; `skip` of them pass first.
    pub fn arm(
        &self,
        filter: impl Fn(&Write) -> bool + Send + 'static,
        mut skip: usize,
        faults: &[Fault],
    ) {
        let mut faults: VecDeque<Fault> = faults.iter().copied().collect();
        self.plan(move |write| {
            if faults.is_empty() || !filter(write) {
                return None;
            }
            if skip > 0 {
                skip -= 1;
                return None;
            }
            faults.pop_front()
        });
    }

    /// Every write is put to this plan.
    pub fn plan(&self, plan: impl FnMut(&Write) -> Option<Fault> + Send + 'static) {
        *self.shared.plan.lock().expect("nobody panics") = Box::new(plan);
    }

    /// From now on everything passes.
    pub fn disarm(&self) {
        self.plan(|_| None);
    }

    /// The faults that writes met so far, in order.
    pub fn met(&self) -> Vec<(Fault, Write)> {
        self.shared.met.lock().expect("nobody panics").clone()
    }
}

impl Shared {
    fn kill(&self) {
        let operator = self.operator.lock().expect("nobody panics").take();
        operator.into_iter().for_each(Operator::kill);
    }
}

fn kubeconfig_text(address: SocketAddr, ca_pem: &str) -> String {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"https://{address}\", certificate-authority-data: {ca}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
         users: [{{name: test, user: {{token: operator-token}}}}]\n"
    )
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // They end with the proxy.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| handle(shared.clone(), request));
            // An error is a connection that a fault, or a killed operator, ended.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The end of a connection that is owed an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends here")]
struct Ended;

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Ended> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Ended)?.to_bytes();
    let fault = write_of(&parts, &body).and_then(|write| {
        let fault = (shared.plan.lock().expect("nobody panics"))(&write)?;
        shared.met.lock().expect("nobody panics").push((fault, write));
        Some(fault)
    });
    // The client of the server sets its own.
    parts.headers.remove(http::header::HOST);
    let request = Request::from_parts(parts, Body::from(body));
    let forward = async { shared.upstream.send(request).await.map_err(|_| Ended) };
    match fault {
        None => forward.await,
        Some(Fault::Reset) => Err(Ended),
        Some(Fault::Refuse(code)) => Ok(refusal(code)),
        Some(Fault::LoseAnswer) => {
            carried_out(forward.await?).await?;
            Err(Ended)
        }
        Some(Fault::DelayRequest(time)) => {
            tokio::time::sleep(time).await;
            forward.await
        }
        Some(Fault::DelayAnswer(time)) => {
            let answer = forward.await?;
            tokio::time::sleep(time).await;
            Ok(answer)
        }
        Some(Fault::KillBefore) => {
            shared.kill();
            Err(Ended)
        }
        Some(Fault::KillAfter) => {
            carried_out(forward.await?).await?;
            shared.kill();
            Err(Ended)
        }
        Some(Fault::KillAnswered(time)) => {
            let answer = forward.await?;
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                shared.kill();
            });
            Ok(answer)
        }
    }
}

/// Waits for the whole answer: the server has done what it does.
async fn carried_out(answer: Response<Body>) -> Result<(), Ended> {
    answer.into_body().collect_bytes().await.map(|_| ()).map_err(|_| Ended)
}

fn write_of(parts: &http::request::Parts, body: &[u8]) -> Option<Write> {
    let mut path = parts.uri.path().to_owned();
    if parts.method == Method::GET {
        return None;
    }
    if parts.method == Method::POST
        && let Ok(body) = serde_json::from_slice::<Value>(body)
        && let Some(name) = body["metadata"]["name"].as_str()
    {
        path = format!("{path}/{name}");
    }
    Some(Write { method: parts.method.clone(), path })
}

fn refusal(code: u16) -> Response<Body> {
    let reason = match code {
        409 => "Conflict",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the test", "reason": reason, "code": code,
    });
    let mut response = Response::builder().status(code).header("Content-Type", "application/json");
    if matches!(code, 429 | 503) {
        response = response.header("Retry-After", "1");
    }
    response.body(Body::from(status.to_string().into_bytes())).expect("a response")
}
