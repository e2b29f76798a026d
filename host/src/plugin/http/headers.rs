//! Headers that the host sets. Their secrets are read for each request, and
//! neither the guest nor the log sees them: a server may send back what it got,
//! so they are struck out like those that handlers read.

use super::words::Refusal;
use crate::capability::{Fault, Secret, Secrets};
use crate::manifest::{Header, HeaderPart, Manifest};
use crate::plugin::component::Facts;
use crate::plugin::struck;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
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
            let read = |name: &str| {
                let secret = secrets.ok_or_else(none)?.read(&facts.name, name)?;
                facts.struck.learn(name, &secret);
                Ok(secret)
            };
            let made = made(header, read);
            let (name, value) = made.map_err(|told| Refusal::new(Error::ConfigurationError, "header", told))?;
            headers.insert(name, value);
        }
    }
    Ok(())
}

/// Which headers of a manifest can't be made as things are, and why.
pub(in crate::plugin) fn faults(manifest: &Manifest, secrets: Option<&dyn Secrets>) -> Vec<String> {
    let of_origin = |header: &Header| made(header, |name| secrets.ok_or_else(none)?.get(name)).err();
    let headers = manifest.http_headers.iter().flat_map(|(origin, headers)| {
        let told = headers.iter().filter_map(of_origin);
        told.map(move |told| format!("[http_headers] for {origin}: {told}"))
    });
    headers.collect()
}

fn made(header: &Header, read: impl Fn(&str) -> Result<Secret, Fault>) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = |told: &dyn fmt::Display| format!("the header `{}` can't be made: {told}", header.name);
    let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| wrong(&error))?;
    let mut text = String::new();
    for piece in &header.value {
        match piece {
            HeaderPart::Text(piece) => text.push_str(piece),
            HeaderPart::Secret(name) => {
                let secret = read(name.as_str()).map_err(|fault| wrong(&fault))?;
                check(secret.reveal()).map_err(|told| wrong(&format!("the secret {name} {told}")))?;
                text.push_str(secret.reveal());
            }
        }
    }
    let mut value = HeaderValue::try_from(text).map_err(|error| wrong(&error))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// What is short is no secret, and can't be struck out of what a server sends
/// back.
fn check(secret: &str) -> Result<(), String> {
    if secret.is_empty() {
        return Err("is empty".to_owned());
    }
    if secret.len() < struck::BYTES_MIN {
        return Err(format!("has less than {} bytes: the handler could see it in a reply", struck::BYTES_MIN));
    }
    match HeaderValue::try_from(secret) {
        Ok(_) => Ok(()),
        Err(_) => Err("has characters that no header may have, such as a line's end".to_owned()),
    }
}

fn none() -> Fault {
    Fault::unavailable("this host has no secrets")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::http::Outbound;
    use crate::plugin::output::LogBudget;
    use crate::plugin::struck::Struck;
    use std::sync::Arc;

    struct Store;

    impl Secrets for Store {
        fn get(&self, name: &str) -> Result<Secret, Fault> {
            match name {
                "KEY" => Ok(Secret::new("k\u{e9}y0".to_owned())),
                "TINY" => Ok(Secret::new("abc".to_owned())),
                "EMPTY" => Ok(Secret::new(String::new())),
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
            capabilities: Arc::default(),
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
        assert_eq!(values, ["Bearer k\u{e9}y0!".as_bytes()]);
        assert!(headers["authorization"].is_sensitive());
        assert_eq!(headers["x-all"], "1");
        assert_eq!(added("https://c.example/", None).unwrap()["authorization"], "all");
        assert_eq!(added("http://a.example/", None).unwrap().get_all("authorization").iter().count(), 2);
    }

    #[test]
    fn a_secret_that_is_missing_or_forges_a_header_refuses_the_request_and_is_not_told() {
        let told = added("https://a.example/", None).unwrap_err();
        assert_eq!(told, "the header `authorization` can't be made: unavailable: this host has no secrets");
        let told = added("https://b.example/", Some(&Store)).unwrap_err();
        assert!(told.contains("`x-lines`") && !told.contains("b: c"), "{told}");
    }

    #[test]
    fn what_would_keep_requests_back_is_told_before_there_is_one() {
        let told = |value: &str| {
            let text = format!(
                "[grants]\nhttp = [\"https://a.example\"]\n[http_headers.\"https://a.example\"]\nX-Key = \"{value}\""
            );
            let mut facts = facts();
            facts.manifest = Manifest::parse(&text, "a").unwrap();
            let told = faults(&facts.manifest, Some(&Store)).pop();
            // And then the request is.
            let url = Url::parse("https://a.example/").unwrap();
            let refused = add(&mut HeaderMap::new(), &facts, &url, Some(&Store)).map_err(|refusal| refusal.words);
            assert_eq!(told, refused.err().map(|words| format!("[http_headers] for https://a.example: {words}")));
            told.unwrap_or_default()
        };
        assert_eq!(told("Bearer ${secret:KEY}"), "");
        for (value, words) in [
            ("${secret:NONE}", "no such secret"),
            ("Bearer ${secret:EMPTY}", "the secret EMPTY is empty"),
            ("Bearer ${secret:TINY}", "the secret TINY has less than 4 bytes"),
            ("${secret:LINES}", "the secret LINES has characters that no header may have"),
        ] {
            let told = told(value);
            assert!(told.contains("the header `x-key` can't be made: ") && told.contains(words), "{told}");
        }
    }
}
