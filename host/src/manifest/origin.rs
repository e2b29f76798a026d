//! Where a handler may send requests to: scheme, host and port, as a browser
//! tells origins apart.

use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use url::{Host, Url};

/// An origin of an allow-list. The host is in its one canonical spelling:
/// lower case, international names in ASCII, addresses in the usual form.
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
    /// Naming it grants it, wherever it leads.
    Address(IpAddr),
    /// `*.example.com`: every name below it, and not itself.
    Below(String),
}

impl Origin {
    pub fn parse(text: &str) -> Result<Self, String> {
        const MEND: &str = "an origin is written like \"https://api.example.com\", \"http://10.0.0.5:8080\" or \
            \"https://*.example.com\"";
        let wrong = |what: &str| format!("\"{}\": {what}; {MEND}", without_login(text).escape_debug());
        let below = text.split_once("://*.").map(|(scheme, rest)| format!("{scheme}://{rest}"));
        let url = Url::parse(below.as_deref().unwrap_or(text)).map_err(|error| wrong(&error.to_string()))?;
        let is_https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("only http and https are spoken")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a name and a password do not belong here; put them into [http_headers]"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || text.ends_with('/') {
            return Err(wrong("it is more than an origin"));
        }
        let port = url.port_or_known_default().ok_or_else(|| wrong("it has no port"))?;
        let host = match (url.host().ok_or_else(|| wrong("it has no host"))?, below.is_some()) {
            (Host::Domain(name), false) => HostPattern::Name(bare(name).to_owned()),
            (Host::Domain(name), true) => HostPattern::Below(bare(name).to_owned()),
            (Host::Ipv4(address), false) => HostPattern::Address(address.into()),
            (Host::Ipv6(address), false) => HostPattern::Address(address.into()),
            (_, true) => return Err(wrong("nothing is below an address")),
        };
        if matches!(&host, HostPattern::Name(name) | HostPattern::Below(name) if name.is_empty() || name.contains('*'))
        {
            return Err(wrong("a star stands only for the first part of a name"));
        }
        Ok(Self { is_https, host, port })
    }

    /// Whether a request to this URL may be sent. The URL's host is canonical,
    /// as [`Url`] makes it.
    pub fn allows(&self, url: &Url) -> bool {
        let is_host = match (&self.host, url.host()) {
            (HostPattern::Name(name), Some(Host::Domain(host))) => bare(host) == name,
            (HostPattern::Below(name), Some(Host::Domain(host))) => {
                bare(host).strip_suffix(name.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
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

/// As it may be told: a name and a password stand before the last `@`, if they
/// are not meant to be there.
fn without_login(text: &str) -> String {
    text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("...@{host}"))
}

/// A name without the dot that says that it is complete.
fn bare(name: &str) -> &str {
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
        let (scheme, usual) = if self.is_https { ("https", 443) } else { ("http", 80) };
        match &self.host {
            HostPattern::Name(name) => write!(f, "{scheme}://{name}")?,
            HostPattern::Below(name) => write!(f, "{scheme}://*.{name}")?,
            HostPattern::Address(IpAddr::V4(address)) => write!(f, "{scheme}://{address}")?,
            HostPattern::Address(IpAddr::V6(address)) => write!(f, "{scheme}://[{address}]")?,
        }
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling() {
        for (text, shown) in [
            ("https://API.example.com", "https://api.example.com"),
            ("https://api.example.com:443", "https://api.example.com"),
            ("http://api.example.com:443", "http://api.example.com:443"),
            ("https://api.example.com.", "https://api.example.com"),
            ("https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
            ("http://0x7f.1:81", "http://127.0.0.1:81"),
            ("http://[0:0::1]", "http://[::1]"),
            ("https://*.example.com:8443", "https://*.example.com:8443"),
        ] {
            assert_eq!(Origin::parse(text).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for (text, told) in [
            ("api.example.com", "relative URL"),
            ("ftp://api.example.com", "only http and https"),
            ("https://api.example.com/", "more than an origin"),
            ("https://api.example.com/v1", "more than an origin"),
            ("https://api.example.com?x", "more than an origin"),
            ("https://me:secret@api.example.com", "[http_headers]"),
            ("https://*", "star"),
            ("https://*.*.example.com", "star"),
            ("https://api.*.com", "star"),
            ("https://*.10.0.0.1", "below an address"),
            ("https://", "empty host"),
            ("*", "relative URL"),
        ] {
            let error = Origin::parse(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_login_is_never_told() {
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
