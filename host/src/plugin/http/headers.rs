//! Headers that the host sets. Their secrets are read for each request, and
//! neither the guest nor the log sees them: a server may send back what it got,
//! so they are struck out like those that handlers read.

use super::words::Refusal;
use crate::capability::Secrets;
use crate::manifest::{Header, Piece};
use crate::plugin::component::Facts;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error};

/// What a guest can neither set nor see: it belongs to the connection.
pub(super) fn is_forbidden(name: &HeaderName) -> bool {
    use hyper::header::{TE, TRAILER};
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || [TE, TRAILER].contains(name)
}

/// Adds the manifest's headers for this URL, in place of what the guest set.
pub(super) fn add(
    headers: &mut HeaderMap,
    facts: &Facts,
    url: &Url,
    secrets: Option<&dyn Secrets>,
) -> Result<(), Refusal> {
    // Exact names come first in their order: last, they win over patterns.
    for (_, added) in facts.manifest.http_headers.iter().rev().filter(|(origin, _)| origin.allows(url)) {
        for header in added {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| wrong(header, &error))?;
            headers.insert(name, value(header, facts, secrets)?);
        }
    }
    Ok(())
}

fn value(header: &Header, facts: &Facts, secrets: Option<&dyn Secrets>) -> Result<HeaderValue, Refusal> {
    let mut text = String::new();
    for piece in &header.value {
        match piece {
            Piece::Text(piece) => text.push_str(piece),
            Piece::Secret(name) => {
                let store = secrets.ok_or_else(|| wrong(header, &"this host has no secrets"))?;
                let secret = store.read(&facts.name, name.as_str()).map_err(|fault| wrong(header, &fault))?;
                facts.struck.learn(name.as_str(), &secret);
                text.push_str(secret.reveal());
            }
        }
    }
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| wrong(header, &"a secret in it has characters that no header may have, such as a line's end"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn wrong(header: &Header, told: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Error::ConfigurationError, "header", format!("the header `{}` can't be made: {told}", header.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{Fault, Secret};
    use crate::manifest::Manifest;
    use crate::plugin::http::Outbound;
    use crate::plugin::output::LogBudget;
    use crate::plugin::struck::Struck;

    struct Store;

    impl Secrets for Store {
        fn get(&self, name: &str) -> Result<Secret, Fault> {
            match name {
                "KEY" => Ok(Secret::new("k\u{e9}y".to_owned())),
                "LINES" => Ok(Secret::new("a\r\nb: c".to_owned())),
                _ => Err(Fault::unavailable("no such secret")),
            }
        }

        fn read(&self, _: &str, name: &str) -> Result<Secret, Fault> {
            self.get(name)
        }
    }

    const MANIFEST: &str = r#"
        [grants]
        http = ["https://a.example", "https://*.example", "https://b.example"]
        [http_headers."https://a.example"]
        Authorization = "Bearer ${secret:KEY}!"
        [http_headers."https://*.example"]
        authorization = "all"
        x-all = "1"
        [http_headers."https://b.example"]
        x-lines = "${secret:LINES}"
    "#;

    fn facts() -> Facts {
        Facts {
            name: "a".to_owned(),
            manifest: Manifest::parse(MANIFEST, "a").unwrap(),
            is_command: false,
            log: LogBudget::new(1),
            http: Outbound::new(),
            struck: Struck::default(),
        }
    }

    fn added(url: &str, secrets: Option<&dyn Secrets>) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_static("the guest's"));
        headers.append("authorization", HeaderValue::from_static("and another"));
        add(&mut headers, &facts(), &Url::parse(url).unwrap(), secrets).map_err(|refusal| refusal.words)?;
        Ok(headers)
    }

    #[test]
    fn the_hosts_headers_replace_the_guests_and_the_nearest_origin_wins() {
        let headers = added("https://a.example/x", Some(&Store)).unwrap();
        let values: Vec<&[u8]> = headers.get_all("authorization").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, ["Bearer k\u{e9}y!".as_bytes()]);
        assert!(headers["authorization"].is_sensitive());
        assert_eq!(headers["x-all"], "1");
        assert_eq!(added("https://c.example/", None).unwrap()["authorization"], "all");
        assert_eq!(added("http://a.example/", None).unwrap().get_all("authorization").iter().count(), 2);
    }

    #[test]
    fn a_secret_that_is_missing_or_forges_a_header_refuses_the_request_and_is_not_told() {
        let told = added("https://a.example/", None).unwrap_err();
        assert_eq!(told, "the header `authorization` can't be made: this host has no secrets");
        let told = added("https://b.example/", Some(&Store)).unwrap_err();
        assert!(told.contains("`x-lines`") && !told.contains("b: c"), "{told}");
    }
}
