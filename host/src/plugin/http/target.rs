//! The canonical target of a request. The allow-list check, the connection and the
//! Host header must agree, so other notations of a host are rejected.

use hyper::Uri;
use url::{Host, Url};

/// How much of a malformed authority the error shows.
const SHOWN_CHARS_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct Target {
    /// For the allow-list.
    pub(super) url: Url,
    /// For the connection.
    pub(super) uri: Uri,
    /// For the Host header: without the default port of the scheme.
    pub(super) host: String,
    /// For messages, like `https://api.example.com`.
    pub(super) origin: String,
}

impl Target {
    /// Leaves path and query unchanged, because a signature may cover them.
    pub(super) fn parse(uri: &Uri) -> Result<Self, String> {
        let written = uri.authority().map_or("", |authority| authority.as_str());
        let shown: String = written.escape_debug().take(SHOWN_CHARS_MAX).collect();
        if written.contains('@') {
            return Err("credentials in a URL are not sent; put them into a header".to_owned());
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        let url = Url::parse(&format!("{scheme}://{written}/")).map_err(|error| format!("\"{shown}\": {error}"))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(format!("\"{shown}\" has no host"));
        };
        let with_port = format!("{host}:{port}");
        if ![host, &with_port].iter().any(|canonical| canonical.eq_ignore_ascii_case(written)) {
            return Err(format!("\"{shown}\" is not in canonical form; write \"{}\"", url.authority()));
        }
        // Certificates have no trailing dot of a fully qualified name.
        let host = match url.host() {
            Some(Host::Domain(name)) => name.strip_suffix('.').unwrap_or(name),
            _ => host,
        };
        if host.is_empty() || host.ends_with('.') {
            return Err(format!("\"{shown}\" is not a host name"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let canonical = Uri::builder()
            .scheme(scheme)
            .authority(format!("{host}:{port}"))
            .path_and_query(path)
            .build()
            .map_err(|error| format!("\"{shown}\": {error}"))?;
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { uri: canonical, origin: format!("{scheme}://{host}"), host, url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(uri: &str) -> Result<Target, String> {
        Target::parse(&uri.parse().unwrap())
    }

    #[test]
    fn canonical_authorities_are_accepted() {
        for (uri, connected, host, origin) in [
            (
                "https://api.example.com/a/../b?c=%64",
                "https://api.example.com:443/a/../b?c=%64",
                "api.example.com",
                "https://api.example.com",
            ),
            ("https://API.example.com", "https://api.example.com:443/", "api.example.com", "https://api.example.com"),
            (
                "https://api.example.com:443/",
                "https://api.example.com:443/",
                "api.example.com",
                "https://api.example.com",
            ),
            (
                "http://api.example.com:443/",
                "http://api.example.com:443/",
                "api.example.com:443",
                "http://api.example.com:443",
            ),
            ("https://api.example.com./", "https://api.example.com:443/", "api.example.com", "https://api.example.com"),
            ("http://127.0.0.1:81/", "http://127.0.0.1:81/", "127.0.0.1:81", "http://127.0.0.1:81"),
            ("http://[::1]/", "http://[::1]:80/", "[::1]", "http://[::1]"),
        ] {
            let target = target(uri).unwrap();
            assert_eq!(
                (target.uri.to_string().as_str(), target.host.as_str(), target.origin.as_str()),
                (connected, host, origin)
            );
        }
    }

    proptest! {
        /// The connection goes to the host that was checked. It uses an address only
        /// if the check saw one, because the resolver does not check literal addresses.
        #[test]
        fn the_connection_goes_to_the_checked_host(authority in "[a-zA-Z0-9.:%x\\[\\]@_-]{1,24}|[0-9x.]{1,15}|\\[[0-9a-f:.]{2,20}\\]") {
            let Ok(uri) = format!("http://{authority}/").parse::<Uri>() else { return Ok(()) };
            let Ok(target) = Target::parse(&uri) else { return Ok(()) };
            let checked = target.url.host_str().unwrap();
            let bare = checked.strip_suffix('.').unwrap_or(checked);
            let connected = Url::parse(&target.uri.to_string()).unwrap();
            prop_assert_eq!(connected.host_str().unwrap(), bare);
            prop_assert_eq!(connected.port_or_known_default(), target.url.port_or_known_default());
            let host = target.uri.host().unwrap().trim_matches(['[', ']']);
            let is_address = !matches!(target.url.host(), Some(Host::Domain(_)));
            prop_assert_eq!(host.parse::<std::net::IpAddr>().is_ok(), is_address);
        }
    }

    #[test]
    fn other_notations_are_rejected() {
        for uri in [
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://127.0.0.01/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://%6c%6fcalhost/",
            "http://localhost%00.example.com/",
            "http://api.example.com:0443/",
            "http://api.example.com:/",
            "http://api.example.com:99999/",
            "http://evil.example@api.example.com/",
            "http://api.example.com@evil.example/",
            "http://a:b@api.example.com/",
            "http://a..example.com:x/",
            "http://1.2.3.4.5/",
            "http://xn--a/",
            "http://./",
            "http://0../",
            "http://api.example.com../",
        ] {
            if let Ok(uri) = uri.parse::<Uri>() {
                assert!(Target::parse(&uri).is_err(), "{uri}");
            }
        }
        assert!(target("http://0x7f.1/").unwrap_err().ends_with("write \"127.0.0.1\""));
        assert!(target("http://a:secret@b.example/").unwrap_err().contains("not sent"));
    }
}
