//! A listener that hands connections out after the TLS handshake. Handshakes go on at the same time, a bounded number of
//! them and each for a bounded time: whoever makes none holds nobody else up for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

/// So many handshakes at once; further connections wait.
const HANDSHAKES: usize = 1024;
/// A handshake must be done within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

type Connection = (TlsStream<TcpStream>, SocketAddr);

/// The listener.
pub struct TlsListener {
    connections: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

impl TlsListener {
    /// Begins to accept connections; ends when the listener is dropped.
    pub fn start(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, connections) = mpsc::channel(16);
        tokio::spawn(accept(listener, TlsAcceptor::from(config), done));
        Ok(Self { connections, address })
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, done: mpsc::Sender<Connection>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let place = places.clone().acquire_owned();
        let next = async { (place.await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = done.closed() => return,
        };
        let place = place.expect("the semaphore is never closed");
        match accepted {
            Ok((stream, address)) => {
                // Without it a short answer after another one would wait for the caller's acknowledgement.
                let _ = stream.set_nodelay(true);
                let (handshake, done) = (acceptor.accept(stream), done.clone());
                tokio::spawn(async move {
                    let result = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
                    drop(place);
                    match result {
                        Ok(Ok(stream)) => drop(done.send((stream, address)).await),
                        Ok(Err(error)) => debug!(%address, %error, "a TLS handshake failed"),
                        Err(_) => debug!(%address, "a TLS handshake took too long"),
                    }
                });
            }
            // The client is gone already, or this process has no file descriptor left.
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Connection {
        match self.connections.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
