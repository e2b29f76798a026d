//! The address of the HTTP server. A name in it is resolved when the server starts,
//! because settings use no network.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// An IP address or a name.
    pub host: String,
    pub port: u16,
}

pub(super) const ALLOWED: &str = "ADDRESS:PORT or NAME:PORT, or :PORT or PORT for all addresses, such as 0.0.0.0:8084";

impl ListenAddress {
    pub(super) fn everywhere(port: u16) -> Self {
        Self { host: "0.0.0.0".to_owned(), port }
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (host, port) =
            if is_port(text) { ("", text) } else { text.rsplit_once(':').ok_or("the port is missing")? };
        if host.contains(':') {
            return Err("it has too many colons; an IPv6 address stands in brackets, as in [::1]:8084".to_owned());
        }
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) {
            return Err(format!("\"{}\" is not a host", host.escape_debug()));
        }
        let number = Some(port).filter(|port| is_port(port)).and_then(|port| port.parse().ok());
        let port = number.ok_or_else(|| format!("\"{}\" is not a port", port.escape_debug()))?;
        Ok(if host.is_empty() { Self::everywhere(port) } else { Self { host: host.to_owned(), port } })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_all_addresses_and_a_name_is_kept() {
        for (text, expected) in [
            ("8084", "0.0.0.0:8084"),
            (":8084", "0.0.0.0:8084"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::]:8084", "[::]:8084"),
            ("localhost:8084", "localhost:8084"),
            ("gateway-0.gateway:80", "gateway-0.gateway:80"),
        ] {
            assert_eq!(text.parse::<ListenAddress>().map(|it| it.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_reason() {
        for (text, reason) in [
            ("localhost", "port is missing"),
            ("99999", "is not a port"),
            (":", "is not a port"),
            ("localhost:+80", "is not a port"),
            ("::1:8084", "in brackets"),
            ("tcp://10.0.0.1:8084", "too many colons"),
            ("a b:8084", "is not a host"),
            ("a/b:8084", "is not a host"),
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
