//! Where a request goes, in its one spelling: what is checked, what is
//! connected to and what the server is told must be the same.

use hyper::Uri;
use url::{Host, Url};

/// As much of a wrong spelling as is told.
const SHOWN_CHARS_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct Target {
    /// For the allow-list.
    pub(super) url: Url,
    /// For the connection.
    pub(super) uri: Uri,
    /// For the server: without the port that goes without saying.
    pub(super) host: String,
    /// For people: `https://api.example.com`.
    pub(super) origin: String,
}

impl Target {
    /// Path and query stay as they are: a signature may be over them.
    pub(super) fn parse(uri: &Uri) -> Result<Self, String> {
        let written = uri.authority().map_or("", |authority| authority.as_str());
        let shown: String = written.escape_debug().take(SHOWN_CHARS_MAX).collect();
        if written.contains('@') {
            return Err("a name and a password in a URL are not sent; put them into a header".to_owned());
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        let url = Url::parse(&format!("{scheme}://{written}/")).map_err(|error| format!("\"{shown}\": {error}"))?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(format!("\"{shown}\" has no host"));
        };
        let with_port = format!("{host}:{port}");
        if ![host, &with_port].iter().any(|plain| plain.eq_ignore_ascii_case(written)) {
            return Err(format!("\"{shown}\" is spelled oddly; write \"{}\"", url.authority()));
        }
        // The dot that says that a name is complete is no part of it in certificates.
        let host = match url.host() {
            Some(Host::Domain(name)) => name.strip_suffix('.').unwrap_or(name),
            _ => host,
        };
        if host.is_empty() || host.ends_with('.') {
            return Err(format!("\"{shown}\" is no name"));
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
    fn a_plain_spelling_is_taken() {
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
        /// What is connected to is what was checked, and an address only where
        /// the check saw one: it is not looked up, so nothing behind it is judged.
        #[test]
        fn what_is_taken_is_connected_to(authority in "[a-zA-Z0-9.:%x\\[\\]@_-]{1,24}|[0-9x.]{1,15}|\\[[0-9a-f:.]{2,20}\\]") {
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
    fn an_odd_one_is_refused() {
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
                let told = Target::parse(&uri).err();
                assert!(told.is_some(), "{uri}");
            }
        }
        assert!(target("http://0x7f.1/").unwrap_err().ends_with("write \"127.0.0.1\""));
        assert!(target("http://a:secret@b.example/").unwrap_err().contains("not sent"));
    }
}
