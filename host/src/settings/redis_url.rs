//! Parses the URL of Redis: one server, the sentinels of a master, or nodes of a
//! cluster.

use super::password::Password;
use super::redis_target::Login;
use crate::capability::Secret;
use std::fmt;
use std::net::Ipv6Addr;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// The address of Redis with its mode and login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisEndpoint {
    pub mode: RedisMode,
    pub is_tls: bool,
    /// The server, the sentinels, or some nodes of the cluster.
    pub hosts: Vec<(String, u16)>,
    pub login: Login,
    pub db: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisMode {
    Single,
    Sentinel {
        /// The name of the master in the configuration of the sentinels.
        master: String,
    },
    Cluster,
}

impl RedisEndpoint {
    /// Errors never contain secrets.
    pub fn parse(url: &str) -> Result<Self, String> {
        if url.contains(char::is_control) {
            return Err("it has a line end or another control character inside".to_owned());
        }
        let Some((scheme, remainder)) = url.split_once("://") else { return Err(SCHEMES.to_owned()) };
        let (remainder, is_sentinel, is_cluster) =
            (remainder.trim_end_matches('/'), scheme.ends_with("+sentinel"), scheme.ends_with("+cluster"));
        let is_tls = match scheme.split('+').next() {
            Some("redis") => false,
            Some("rediss") => true,
            _ => return Err(SCHEMES.to_owned()),
        };
        if scheme.contains('+') && !is_sentinel && !is_cluster || scheme.matches('+').count() > 1 {
            return Err(SCHEMES.to_owned());
        }
        let (login, remainder) =
            remainder.rsplit_once('@').map_or((None, remainder), |(login, remainder)| (Some(login), remainder));
        if remainder.contains(['?', '#']) {
            return Err("a query or fragment (? or #) is not supported: remove it".to_owned());
        }
        let (hosts, path) = remainder.split_once('/').unwrap_or((remainder, ""));
        let hosts = hosts.split(',').map(|host| host_and_port(host, if is_sentinel { SENTINEL_PORT } else { PORT }));
        let hosts: Vec<_> = hosts.collect::<Result<_, _>>()?;
        let (mode, db) = if is_sentinel {
            let (master, db) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return Err("the master's name is missing: redis+sentinel://host:26379/NAME".to_owned());
            }
            (RedisMode::Sentinel { master: master.to_owned() }, db)
        } else if is_cluster {
            (RedisMode::Cluster, path)
        } else {
            (RedisMode::Single, path)
        };
        if mode == RedisMode::Single && hosts.len() > 1 {
            return Err("more than one host: write redis+sentinel:// or redis+cluster://".to_owned());
        }
        let db = if db.is_empty() { Ok(0) } else { db.parse::<u32>().map(i64::from) };
        let db = db.map_err(|_| "the database after the last / is not a number".to_owned())?;
        if mode == RedisMode::Cluster && db != 0 {
            return Err("a cluster has only database 0".to_owned());
        }
        Ok(Self { mode, is_tls, hosts, login: login.map_or(Ok(Login::default()), parse_login)?, db })
    }
}

const SCHEMES: &str =
    "unknown scheme: allowed are redis:// and rediss://, and both with +sentinel or +cluster, as in redis+cluster://";

fn parse_login(text: &str) -> Result<Login, String> {
    let decode = |text: &str| {
        let text = percent_encoding::percent_decode_str(text).decode_utf8();
        text.map(|text| text.into_owned()).map_err(|_| "user and password are not UTF-8".to_owned())
    };
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let set = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Login {
        username: set(decode(username)?),
        password: set(decode(password)?).map(Secret::new).map(Password::Text),
    })
}

/// `host`, `host:port`, `v6`, `[v6]` or `[v6]:port`.
pub(super) fn host_and_port(text: &str, default: u16) -> Result<(String, u16), String> {
    if text.contains("://") {
        return Err(format!(
            "\"{}\" is a URL, not a host; a URL belongs in REDIS_URL (redis.url)",
            text.rsplit('@').next().unwrap_or_default()
        ));
    }
    if text.contains(|char: char| char.is_whitespace() || char.is_control() || matches!(char, '/' | '@' | '?' | '#')) {
        return Err(format!("\"{}\" is not a host", text.rsplit('@').next().unwrap_or_default().escape_debug()));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text.to_owned(), default));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|remainder| remainder.split_once(']')) {
        Some((host, remainder)) => (host, remainder.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("a host is missing".to_owned());
    }
    let port = match port.filter(|port| !port.is_empty()) {
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("\"{port}\" is not a port"))?,
        None => default,
    };
    Ok((host.to_owned(), port))
}

/// The URL without user and password.
impl fmt::Display for RedisEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.is_tls { "s" } else { "" };
        let (mode, path) = match &self.mode {
            RedisMode::Single => ("", format!("/{}", self.db)),
            RedisMode::Sentinel { master } => ("+sentinel", format!("/{master}/{}", self.db)),
            RedisMode::Cluster => ("+cluster", String::new()),
        };
        let host = |(host, port): &(String, u16)| {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        };
        let hosts: Vec<String> = self.hosts.iter().map(host).collect();
        write!(f, "redis{tls}{mode}://{}{path}", hosts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_its_url() {
        for (url, displayed) in [
            ("redis://h", "redis://h:6379/0"),
            ("redis://h:1/2", "redis://h:1/2"),
            ("redis://[::1]:7/", "redis://[::1]:7/0"),
            ("rediss://:p%40@h:1", "rediss://h:1/0"),
            ("redis+sentinel://u:p@a,b:1/mymaster", "redis+sentinel://a:26379,b:1/mymaster/0"),
            ("rediss+sentinel://a/mymaster/3", "rediss+sentinel://a:26379/mymaster/3"),
            ("redis+cluster://a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
            ("rediss+cluster://u:p@a/", "rediss+cluster://a:6379"),
        ] {
            assert_eq!(RedisEndpoint::parse(url).map(|it| it.to_string()).as_deref(), Ok(displayed), "{url}");
        }
        let login = RedisEndpoint::parse("redis://u%3A:p@ss%2Fw@h").unwrap().login;
        assert_eq!(
            (
                login.username.as_deref(),
                login.password.as_ref().map(|password| password.read().unwrap().reveal().to_owned())
            ),
            (Some("u:"), Some("p@ss/w".to_owned()))
        );
        let login = RedisEndpoint::parse("redis://only-a-user@h").unwrap().login;
        assert_eq!((login.username.as_deref(), login.password), (Some("only-a-user"), None));
    }

    #[test]
    fn errors_name_the_problem_without_secrets() {
        for (url, expected) in [
            ("http://u:secret@h", "unknown scheme"),
            ("redis", "unknown scheme"),
            ("redis+sentinels://h/m", "unknown scheme"),
            ("redis+tls+cluster://h", "unknown scheme"),
            ("redis+sentinel://u:secret@h", "master's name is missing"),
            ("redis://u:secret@h,i", "more than one host"),
            ("redis://u:secret@h:port", "is not a port"),
            ("redis://u:secret@", "a host is missing"),
            ("redis://h/one", "not a number"),
            ("redis+cluster://h/1", "only database 0"),
            ("redis://h?protocol=resp3", "is not supported"),
        ] {
            let error = RedisEndpoint::parse(url).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
