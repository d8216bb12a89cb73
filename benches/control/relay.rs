//! A relay of TCP connections that counts the bytes that clients are sent.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::support::Namespace;

/// The most bytes that are handed on at once.
const CHUNK: usize = 64 * 1024;

pub(crate) struct Relay {
    sent: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts to hand on what comes to the address `own` of a namespace to `server`, as long as this lives.
    pub(crate) fn start(namespace: &Namespace, own: SocketAddr, server: SocketAddr) -> Self {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let (stop, stopped) = oneshot::channel();
        // A thread is in the namespace of the one that starts it.
        let thread = namespace.enter(move || {
            let listener = TcpListener::bind(own).unwrap();
            listener.set_nonblocking(true).unwrap();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, server, counter) => {}
                        _ = stopped => {}
                    }
                });
            })
        });
        Self { sent, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns how many bytes clients were sent, TLS included.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, sent: Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((client, _)) = listener.accept().await {
        let sent = Arc::clone(&sent);
        // Who hangs up is nothing to report.
        tokio::spawn(async move { hand_on(client, server, &sent).await.ok() });
    }
}

/// Hands on both ways until one side ends.
async fn hand_on(client: TcpStream, server: SocketAddr, sent: &AtomicU64) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            let len = from_server.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            sent.fetch_add(len as u64, Relaxed);
            to_client.write_all(&chunk[..len]).await?;
        }
    };
    tokio::select! {
        result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(drop),
        result = answers => result,
    }
}
