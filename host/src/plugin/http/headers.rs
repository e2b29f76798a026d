//! Headers that the host adds. Their secrets are read for each request and hidden
//! from the guest. They are redacted from the log too, because a server may echo
//! them.

use super::error_message::RequestError;
use crate::capability::{Fault, Secret, Secrets};
use crate::manifest::{Header, HeaderPart, Manifest};
use crate::plugin::component::PluginContext;
use crate::plugin::redact;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;
use url::Url;
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, Error};

/// Headers of the connection, which a guest can neither set nor see.
pub(super) fn is_forbidden(name: &HeaderName) -> bool {
    use hyper::header::{TE, TRAILER};
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || [TE, TRAILER].contains(name)
}

/// Sets the manifest's headers for this URL; they replace those of the guest.
pub(super) fn add(
    headers: &mut HeaderMap,
    context: &PluginContext,
    url: &Url,
    secrets: Option<&dyn Secrets>,
) -> Result<(), RequestError> {
    // Exact origins come first in their order. Reversed, they overwrite patterns.
    for (_, added) in context.manifest.http_headers.iter().rev().filter(|(origin, _)| origin.allows(url)) {
        for header in added {
            let read = |name: &str| {
                let secret = secrets.ok_or_else(no_secrets)?.read(&context.name, name)?;
                context.redactor.add(name, &secret);
                Ok(secret)
            };
            let built = build(header, read);
            let (name, value) =
                built.map_err(|reason| RequestError::new(Error::ConfigurationError, "header", reason))?;
            headers.insert(name, value);
        }
    }
    Ok(())
}

/// Why headers of a manifest can't be set at present.
pub(in crate::plugin) fn faults(manifest: &Manifest, secrets: Option<&dyn Secrets>) -> Vec<String> {
    let fault = |header: &Header| build(header, |name| secrets.ok_or_else(no_secrets)?.get(name)).err();
    let headers = manifest.http_headers.iter().flat_map(|(origin, headers)| {
        let faults = headers.iter().filter_map(fault);
        faults.map(move |fault| format!("[http_headers] for {origin}: {fault}"))
    });
    headers.collect()
}

fn build(header: &Header, read: impl Fn(&str) -> Result<Secret, Fault>) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = |reason: &dyn fmt::Display| format!("the header `{}` can't be set: {reason}", header.name);
    let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|error| wrong(&error))?;
    let mut text = String::new();
    for piece in &header.value {
        match piece {
            HeaderPart::Text(piece) => text.push_str(piece),
            HeaderPart::Secret(name) => {
                let secret = read(name.as_str()).map_err(|fault| wrong(&fault))?;
                check(secret.reveal()).map_err(|reason| wrong(&format!("the secret {name} {reason}")))?;
                text.push_str(secret.reveal());
            }
        }
    }
    let mut value = HeaderValue::try_from(text).map_err(|error| wrong(&error))?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// A short value can't be redacted from what a server echoes.
fn check(secret: &str) -> Result<(), String> {
    if secret.is_empty() {
        return Err("is empty".to_owned());
    }
    if secret.len() < redact::BYTES_MIN {
        return Err(format!("has less than {} bytes, so it can't be redacted from a response", redact::BYTES_MIN));
    }
    match HeaderValue::try_from(secret) {
        Ok(_) => Ok(()),
        Err(_) => Err("has characters that a header must not have, such as a line break".to_owned()),
    }
}

fn no_secrets() -> Fault {
    Fault::unavailable("this host has no secrets")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::http::Outbound;
    use crate::plugin::output::LogBudget;
    use crate::plugin::redact::Redactor;
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

    fn context() -> PluginContext {
        PluginContext {
            name: "a".to_owned(),
            manifest: Manifest::parse(MANIFEST, "a").unwrap(),
            is_command: false,
            log: LogBudget::new(1),
            http: Outbound::new(),
            redactor: Redactor::default(),
            capabilities: Arc::default(),
        }
    }

    fn added(url: &str, secrets: Option<&dyn Secrets>) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_static("the guest's"));
        headers.append("authorization", HeaderValue::from_static("and another"));
        add(&mut headers, &context(), &Url::parse(url).unwrap(), secrets).map_err(|error| error.message)?;
        Ok(headers)
    }

    #[test]
    fn headers_of_the_host_replace_those_of_the_guest_and_the_most_specific_origin_wins() {
        let headers = added("https://a.example/x", Some(&Store)).unwrap();
        let values: Vec<&[u8]> = headers.get_all("authorization").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, ["Bearer k\u{e9}y0!".as_bytes()]);
        assert!(headers["authorization"].is_sensitive());
        assert_eq!(headers["x-all"], "1");
        assert_eq!(added("https://c.example/", None).unwrap()["authorization"], "all");
        assert_eq!(added("http://a.example/", None).unwrap().get_all("authorization").iter().count(), 2);
    }

    #[test]
    fn a_missing_or_malformed_secret_fails_the_request_and_is_not_shown() {
        let error = added("https://a.example/", None).unwrap_err();
        assert_eq!(error, "the header `authorization` can't be set: unavailable: this host has no secrets");
        let error = added("https://b.example/", Some(&Store)).unwrap_err();
        assert!(error.contains("`x-lines`") && !error.contains("b: c"), "{error}");
    }

    #[test]
    fn faults_of_headers_are_found_before_the_first_request() {
        let fault = |value: &str| {
            let text = format!(
                "[grants]\nhttp = [\"https://a.example\"]\n[http_headers.\"https://a.example\"]\nX-Key = \"{value}\""
            );
            let mut context = context();
            context.manifest = Manifest::parse(&text, "a").unwrap();
            let fault = faults(&context.manifest, Some(&Store)).pop();
            // A request fails in the same way.
            let url = Url::parse("https://a.example/").unwrap();
            let failed = add(&mut HeaderMap::new(), &context, &url, Some(&Store)).map_err(|error| error.message);
            assert_eq!(fault, failed.err().map(|reason| format!("[http_headers] for https://a.example: {reason}")));
            fault.unwrap_or_default()
        };
        assert_eq!(fault("Bearer ${secret:KEY}"), "");
        for (value, reason) in [
            ("${secret:NONE}", "no such secret"),
            ("Bearer ${secret:EMPTY}", "the secret EMPTY is empty"),
            ("Bearer ${secret:TINY}", "the secret TINY has less than 4 bytes"),
            ("${secret:LINES}", "the secret LINES has characters that a header must not have"),
        ] {
            let fault = fault(value);
            assert!(fault.contains("the header `x-key` can't be set: ") && fault.contains(reason), "{fault}");
        }
    }
}
