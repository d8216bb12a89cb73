//! TCP between two namespaces, every byte compared.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use adit::crypto::random::{Os, Random};

use super::{Namespace, SOON, wait_for};

/// Returns random bytes.
pub(crate) fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Os.fill(&mut bytes);
    bytes
}

/// Opens a connection from a namespace to `addr` in another.
#[track_caller]
pub(crate) fn connect(from: &Namespace, to: &Namespace, addr: &str) -> (TcpStream, TcpStream) {
    let listener = listen(to, addr);
    let target = listener.local_addr().unwrap();
    let client = from.enter(move || TcpStream::connect_timeout(&target, SOON));
    let client = client.unwrap_or_else(|error| panic!("connecting to {target}: {error}"));
    (client, accept(&listener))
}

/// Listens in a namespace on any port of `addr`.
#[track_caller]
pub(crate) fn listen(namespace: &Namespace, addr: &str) -> TcpListener {
    let addr = SocketAddr::new(addr.parse::<IpAddr>().unwrap(), 0);
    let listener = namespace.enter(move || TcpListener::bind(addr));
    listener.unwrap_or_else(|error| panic!("listening on {addr}: {error}"))
}

/// Accepts one connection, soon.
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let stream = wait_for("a connection", SOON, || match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("accepting: {error}"),
    });
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Sends all of `bytes` and, at the same time, reads until the other end has no more.
pub(crate) fn transceive(mut stream: TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(bytes)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        sent.join().unwrap()?;
        Ok(received)
    })
}

/// Sends `len` random bytes each way at the same time over one connection, and checks that the same ones arrive.
#[track_caller]
pub(crate) fn exchange(from: &Namespace, to: &Namespace, addr: &str, len: usize) {
    let (client, server) = connect(from, to, addr);
    let (there, back) = (random_bytes(len), random_bytes(len));
    let (at_server, at_client) = thread::scope(|scope| {
        let at_server = scope.spawn(|| transceive(server, &back));
        let at_client = transceive(client, &there);
        (at_server.join().unwrap(), at_client)
    });
    let at_server = at_server.unwrap_or_else(|error| panic!("at {addr}: {error}"));
    let at_client = at_client.unwrap_or_else(|error| panic!("from {addr}: {error}"));
    assert!(at_server == there, "what arrived at {addr} is not what was sent");
    assert!(at_client == back, "what came from {addr} is not what was sent");
}
