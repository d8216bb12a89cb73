//! The CNI plugin, called as a runtime calls it, beside Debian's plugins and by libcni's own `cnitool`; with real agents and data planes.

mod chained;
mod cnitool;
mod first_packet;
mod main_mode;
mod published;
pub(crate) mod runtime;
mod setup;

/// Where Debian's `containernetworking-plugins` lie.
const PLUGINS: &str = "/usr/lib/cni";
/// How the plugin is built.
const PROFILE: &str = "dev";

/// Leaves the test with one line if Debian's plugins or a program of the mesh are not there.
macro_rules! need_plugins {
    () => {
        $crate::support::need!("ip", "wg", "ping", "setpriv");
        if !std::path::Path::new(super::PLUGINS).join("ptp").exists() {
            $crate::support::skip("containernetworking-plugins");
            return;
        }
    };
}
use need_plugins;
