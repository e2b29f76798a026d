//! The origins (scheme, host and port, as in browsers) that a handler may send
//! requests to.

use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use url::{Host, Url};

/// An origin of an allow-list. The host is canonical: lower case, international
/// names in ASCII, addresses in the usual form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Origin {
    is_https: bool,
    host: HostPattern,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum HostPattern {
    Name(String),
    /// Granted even if it is not a public address.
    Address(IpAddr),
    /// `*.example.com`: all subdomains, but not `example.com`.
    Subdomains(String),
}

impl Origin {
    pub fn parse(text: &str) -> Result<Self, String> {
        const HELP: &str = "an origin is written like \"https://api.example.com\", \"http://10.0.0.5:8080\" or \
            \"https://*.example.com\"";
        let wrong = |what: &str| format!("\"{}\": {what}; {HELP}", without_login(text).escape_debug());
        let wildcard = text.split_once("://*.").map(|(scheme, host)| format!("{scheme}://{host}"));
        let url = Url::parse(wildcard.as_deref().unwrap_or(text)).map_err(|error| wrong(&error.to_string()))?;
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("only http and https are supported")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must not have a user name or password; put them into [http_headers]"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || text.ends_with('/') {
            return Err(wrong("it must not have a path, query or fragment"));
        }
        let port = url.port_or_known_default().ok_or_else(|| wrong("it has no port"))?;
        let host = match (url.host().ok_or_else(|| wrong("it has no host"))?, wildcard.is_some()) {
            (Host::Domain(name), false) => HostPattern::Name(without_dot(name).to_owned()),
            (Host::Domain(name), true) => HostPattern::Subdomains(without_dot(name).to_owned()),
            (Host::Ipv4(address), false) => HostPattern::Address(address.into()),
            (Host::Ipv6(address), false) => HostPattern::Address(address.into()),
            (_, true) => return Err(wrong("an address has no subdomains")),
        };
        if matches!(&host, HostPattern::Name(name) | HostPattern::Subdomains(name) if name.is_empty() || name.contains('*'))
        {
            return Err(wrong("\"*\" is allowed only as the first label of a name"));
        }
        Ok(Self { is_https, host, port })
    }

    /// Whether a request to this URL may be sent. The URL's host is canonical,
    /// as [`Url`] makes it.
    pub fn allows(&self, url: &Url) -> bool {
        let is_host = match (&self.host, url.host()) {
            (HostPattern::Name(name), Some(Host::Domain(host))) => without_dot(host) == name,
            (HostPattern::Subdomains(name), Some(Host::Domain(host))) => without_dot(host)
                .strip_suffix(name.as_str())
                .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')),
            (HostPattern::Address(address), Some(Host::Ipv4(host))) => *address == IpAddr::from(host),
            (HostPattern::Address(address), Some(Host::Ipv6(host))) => *address == IpAddr::from(host),
            _ => false,
        };
        is_host
            && url.scheme() == if self.is_https { "https" } else { "http" }
            && url.port_or_known_default() == Some(self.port)
    }

    pub fn is_https(&self) -> bool {
        self.is_https
    }
}

/// Removes a user name and password, which end at the last `@`.
fn without_login(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("...@{host}"))
}

/// A domain name without the trailing dot.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl TryFrom<String> for Origin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, default_port) = if self.is_https { ("https", 443) } else { ("http", 80) };
        match &self.host {
            HostPattern::Name(name) => write!(f, "{scheme}://{name}")?,
            HostPattern::Subdomains(name) => write!(f, "{scheme}://*.{name}")?,
            HostPattern::Address(IpAddr::V4(address)) => write!(f, "{scheme}://{address}")?,
            HostPattern::Address(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]")?,
        }
        if self.port == default_port { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_canonical() {
        for (text, canonical) in [
            ("https://API.example.com", "https://api.example.com"),
            ("https://api.example.com:443", "https://api.example.com"),
            ("http://api.example.com:443", "http://api.example.com:443"),
            ("https://api.example.com.", "https://api.example.com"),
            ("https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
            ("http://0x7f.1:81", "http://127.0.0.1:81"),
            ("http://[0:0::1]", "http://[::1]"),
            ("https://*.example.com:8443", "https://*.example.com:8443"),
        ] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn an_invalid_origin_is_refused() {
        for (text, expected) in [
            ("api.example.com", "relative URL"),
            ("ftp://api.example.com", "only http and https"),
            ("https://api.example.com/", "path, query or fragment"),
            ("https://api.example.com/v1", "path, query or fragment"),
            ("https://api.example.com?x", "path, query or fragment"),
            ("https://me:secret@api.example.com", "[http_headers]"),
            ("https://*", "first label"),
            ("https://*.*.example.com", "first label"),
            ("https://api.*.com", "first label"),
            ("https://*.10.0.0.1", "no subdomains"),
            ("https://", "empty host"),
            ("*", "relative URL"),
        ] {
            let error = Origin::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn errors_never_quote_a_password() {
        for text in
            ["https://me:s3cr3t@a.example", "https://me:s3/cr3t@a.example", "me:s3cr3t@a.example", "https://s3cr3t@"]
        {
            let error = Origin::parse(text).unwrap_err();
            assert!(!error.contains("s3") && !error.contains("cr3t") && error.contains("...@"), "{error}");
        }
    }

    #[test]
    fn only_the_same_scheme_host_and_port_are_allowed() {
        let allows = |origin: &str, url: &str| Origin::parse(origin).unwrap().allows(&Url::parse(url).unwrap());
        for (origin, url, is_allowed) in [
            ("https://a.example", "https://a.example/x?y", true),
            ("https://a.example", "https://A.EXAMPLE./x", true),
            ("https://a.example", "https://a.example:443/", true),
            ("https://a.example", "http://a.example/", false),
            ("https://a.example", "https://a.example:8443/", false),
            ("https://a.example", "https://b.a.example/", false),
            ("https://a.example", "https://a.example.b/", false),
            ("https://*.a.example", "https://b.a.example/", true),
            ("https://*.a.example", "https://c.b.a.example/", true),
            ("https://*.a.example", "https://a.example/", false),
            ("https://*.a.example", "https://.a.example/", false),
            ("https://*.a.example", "https://ba.example/", false),
            ("https://*.a.example", "https://bba.example/", false),
            ("http://127.0.0.1", "http://0x7f000001/", true),
            ("http://127.0.0.1", "http://[::ffff:127.0.0.1]/", false),
            ("http://[::1]", "http://[::1]/", true),
            ("http://[::1]", "http://[::2]/", false),
        ] {
            assert_eq!(allows(origin, url), is_allowed, "{origin} {url}");
        }
    }
}
