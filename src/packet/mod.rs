//! Views of IP packets. Bytes in, bytes out; knows neither peers nor devices.

pub mod checksum;
pub mod coalesce;
pub mod ecn;
pub mod icmp;
pub mod ip;
pub mod segment;
pub mod transport;
pub mod virtio;
