//! Who may change something. There are no cookies, so no page of somebody
//! else's can make a browser send the token; and where none is needed, only
//! this machine is believed, and no browser that another page sends.

use super::Status;
use super::problem::Problem;
use super::server::Peer;
use crate::settings::AdminSettings;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;

/// A request that may change things.
pub(super) struct Operator;

impl FromRequestParts<Arc<Status>> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, status: &Arc<Status>) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        check(&status.admin, &parts.headers, peer).map(|()| Self)
    }
}

fn check(settings: &AdminSettings, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<(), Problem> {
    let Some(token) = &settings.token else {
        let is_ours = settings.trusts_loopback && peer.is_some_and(is_loopback) && is_no_other_page(headers);
        let told = if settings.trusts_loopback {
            "without GATEWAY_ADMIN_TOKEN only programs on this machine may change something"
        } else {
            "nobody may change something here: the worker was started without GATEWAY_ADMIN_TOKEN"
        };
        return if is_ours { Ok(()) } else { Err(Problem::new(StatusCode::FORBIDDEN, told)) };
    };
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| Some((value.get(..7)?, value.get(7..)?)));
    match given {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            if is_same(given, token.reveal().as_bytes()) {
                Ok(())
            } else {
                Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is not that of GATEWAY_ADMIN_TOKEN"))
            }
        }
        _ => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "this needs the header Authorization: Bearer <GATEWAY_ADMIN_TOKEN>",
        )),
    }
}

/// Takes as long whatever is wrong: what is compared are digests, all of them.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let (given, token) = (Sha256::digest(given), Sha256::digest(token));
    given.iter().zip(token.iter()).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Programs send no origin; a browser sends that of the page, and the name that
/// it took this machine for, which somebody else may have given it.
fn is_no_other_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host });
    let is_here = name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_here && text(header::ORIGIN).is_none_or(|origin| origin.strip_prefix("http://") == Some(host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Secret;

    const TOKEN: &str = "0123456789abcdef";

    fn answer(settings: &AdminSettings, sent: &[(&'static str, &str)], peer: &str) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.insert(*name, value.parse().unwrap());
        }
        check(settings, &headers, Some(peer.parse().unwrap()))
            .map_or_else(|problem| problem.status().as_u16(), |()| 200)
    }

    #[test]
    fn only_the_whole_token_opens() {
        let settings = AdminSettings { token: Some(Secret::new(TOKEN.to_owned())), trusts_loopback: true };
        for (sent, status) in [
            (format!("Bearer {TOKEN}"), 200),
            (format!("bearer {TOKEN}"), 200),
            (format!("Bearer {TOKEN}0"), 401),
            (format!("Bearer {}", &TOKEN[..15]), 401),
            ("Bearer ".to_owned(), 401),
            (format!("Basic {TOKEN}"), 401),
            (TOKEN.to_owned(), 401),
            ("Bear".to_owned(), 401),
        ] {
            assert_eq!(answer(&settings, &[("authorization", &sent)], "127.0.0.1"), status, "{sent}");
        }
        // With a token, this machine is no exception.
        assert_eq!(answer(&settings, &[("host", "localhost")], "127.0.0.1"), 401);
    }

    #[test]
    fn without_a_token_nobody_may_and_in_dev_this_machine() {
        let host: (&str, &str) = ("host", "localhost:8084");
        assert_eq!(answer(&AdminSettings::default(), &[host, ("authorization", "Bearer ")], "127.0.0.1"), 403);
        let dev = AdminSettings { token: None, trusts_loopback: true };
        for (sent, peer, status) in [
            (vec![host], "127.0.0.1", 200),
            (vec![host], "::ffff:127.0.0.1", 200),
            (vec![("host", "[::1]:8084")], "::1", 200),
            (vec![("host", "127.0.0.1")], "127.0.0.1", 200),
            (vec![host, ("origin", "http://localhost:8084")], "127.0.0.1", 200),
            (vec![host], "192.168.1.9", 403),
            (vec![host, ("origin", "https://evil.example")], "127.0.0.1", 403),
            (vec![host, ("origin", "null")], "127.0.0.1", 403),
            (vec![host, ("origin", "http://localhost:9999")], "127.0.0.1", 403),
            // A name of somebody else's that leads here.
            (vec![("host", "evil.example:8084"), ("origin", "http://evil.example:8084")], "127.0.0.1", 403),
            (vec![], "127.0.0.1", 403),
        ] {
            assert_eq!(answer(&dev, &sent, peer), status, "{sent:?} from {peer}");
        }
    }
}
