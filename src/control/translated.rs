//! Connections that began before their packets were led into the tunnel, with this node's address as their source by translation.
//!
//! The kernel remembers the translation for as long as the connection lasts, and goes on with it in the tunnel. The answers go to this
//! node's address then, past the tunnel, and Strict drops them on arrival. A connection that is forgotten begins anew, with an address that
//! is answered through the tunnel. The kernel does so itself where the rule is `masquerade` (`nf_nat_core.c`, `nf_nat_oif_changed`), but not
//! where it names an address.
//!
//! The kernel takes ten milliseconds to list even a few of them, on a thread of its own: nothing waits for it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::config::Prefix;
use crate::sys::netlink::conntrack::{Connection, Conntrack};

/// Lets connections begin anew. Dropping it waits until all have been seen to.
pub struct Forgetter {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// What is led into the tunnel from here on, and the addresses that sources may have been translated to.
#[derive(Debug, Default)]
struct Order {
    prefixes: BTreeSet<Prefix>,
    addresses: BTreeSet<IpAddr>,
}

impl Forgetter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If no thread is left.
    pub fn start() -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("translated".to_owned()).spawn(move || {
            while let Ok(mut order) = queue.recv() {
                // Several that wait are seen to at once.
                for more in queue.try_iter() {
                    order.prefixes.extend(more.prefixes);
                    order.addresses.extend(more.addresses);
                }
                match forget(&order) {
                    Ok(0) => {}
                    Ok(connections) => {
                        tracing::info!(connections, "connections begin anew, through the tunnel")
                    }
                    // Where none are tracked, none are translated.
                    Err(error) => tracing::debug!(%error, "connections cannot be listed"),
                }
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Has the connections to these prefixes forgotten whose source was translated to one of these addresses, sooner or later.
    pub fn forget(&self, prefixes: BTreeSet<Prefix>, addresses: BTreeSet<IpAddr>) {
        if let Some(orders) = &self.orders {
            // A thread that is gone has panicked, and has said why.
            let _ = orders.send(Order { prefixes, addresses });
        }
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been printed already.
            let _ = thread.join();
        }
    }
}

/// Returns how many there were.
fn forget(order: &Order) -> io::Result<usize> {
    let mut conntrack = Conntrack::open()?;
    let connections = conntrack.connections()?;
    let stale = connections.iter().filter(|connection| order.is_about(connection));
    // One that has ended is as good.
    Ok(stale.filter(|connection| conntrack.forget(connection).is_ok()).count())
}

impl Order {
    fn is_about(&self, connection: &Connection) -> bool {
        connection.source != connection.reply_destination
            && self.addresses.contains(&connection.reply_destination)
            && self.prefixes.iter().any(|prefix| prefix.contains(connection.reply_source))
    }
}
