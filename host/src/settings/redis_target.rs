//! The address of Redis and its credentials: the URL or its parts, the TLS
//! files, and the login of the sentinels. The check reads the TLS files, so that
//! an unreadable file is reported together with all other errors.

use super::password::{self, Password};
use super::redis_url::{RedisEndpoint, RedisMode, host_and_port};
use super::sources::{Source, Sources};
use super::{label, parse, set};
use crate::capability::Secret;
use serde::Deserialize;

const DEFAULT_PORT: u16 = 6379;

/// The checked address and credentials of Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisTarget {
    pub endpoint: RedisEndpoint,
    /// CA certificates in PEM. None trusts the certificates of the system.
    pub tls_ca: Option<Vec<u8>>,
    pub tls_client: Option<ClientPem>,
    /// The sentinels may have other users than the servers.
    pub sentinel_login: Login,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    pub username: Option<String>,
    pub password: Option<Password>,
}

impl Login {
    /// The user and the password as they are now. A user without one gets the empty
    /// password: without any, the client would not log in at all, and so be another
    /// user. Redis accepts it from users that need none (`nopass`).
    pub fn credentials(&self) -> Result<(Option<&str>, Option<Secret>), String> {
        let username = self.username.as_deref();
        let password = self.password.as_ref().map(Password::read).transpose()?;
        Ok((username, password.or_else(|| username.map(|_| Secret::new(String::new())))))
    }
}

/// The client certificate for servers that require one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPem {
    pub cert: Vec<u8>,
    pub key: Secret,
}

impl RedisTarget {
    /// A target that consists only of a URL.
    pub fn at(url: &str) -> Result<Self, String> {
        RedisEndpoint::parse(url).map(Self::from)
    }

    /// The URL without user and password, for logs.
    pub fn redacted_url(&self) -> String {
        self.endpoint.to_string()
    }
}

impl From<RedisEndpoint> for RedisTarget {
    fn from(endpoint: RedisEndpoint) -> Self {
        Self { endpoint, tls_ca: None, tls_client: None, sentinel_login: Login::default() }
    }
}

/// The address and credentials of Redis as text.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawRedis {
    #[command(flatten)]
    pub sources: Sources,
    /// URL of Redis
    #[arg(
        long,
        env = "REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        help = "URL of Redis: redis://[user:password@]host:port[/db], rediss:// for TLS; redis+sentinel://host:port,.../master[/db]; redis+cluster://host:port,... [default: redis://localhost:6379]"
    )]
    pub redis_url: Option<String>,
    #[arg(long, env = "REDIS_HOST", value_name = "HOST", hide = true)]
    pub redis_host: Option<String>,
    #[arg(long, env = "REDIS_PORT", value_name = "PORT", hide = true)]
    pub redis_port: Option<String>,
    #[arg(long, env = "REDIS_USERNAME", value_name = "USER", hide = true)]
    pub redis_username: Option<String>,
    #[arg(long, env = "REDIS_PASSWORD", value_name = "PASSWORD", hide = true, hide_env_values = true)]
    pub redis_password: Option<String>,
    /// File with the password of Redis, read again for each login
    #[arg(long, env = "REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<String>,
    #[arg(long, env = "REDIS_DB", value_name = "N", hide = true)]
    pub redis_db: Option<String>,
    /// CA certificates for Redis, in PEM [default: those of the system]
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE")]
    pub redis_tls_ca: Option<String>,
    /// Client certificate for Redis, in PEM
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE")]
    pub redis_tls_cert: Option<String>,
    /// Private key of the client certificate, in PEM
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE")]
    pub redis_tls_key: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_USERNAME", value_name = "USER", hide = true)]
    pub redis_sentinel_username: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_PASSWORD", value_name = "PASSWORD", hide = true, hide_env_values = true)]
    pub redis_sentinel_password: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE", hide = true)]
    pub redis_sentinel_password_file: Option<String>,
}

/// The table `[redis]` of the settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileRedis {
    url: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<String>,
    db: Option<u32>,
    pub(super) connections: Option<usize>,
    tls_ca: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
    sentinel_password_file: Option<String>,
}

impl RawRedis {
    /// Whether neither the URL nor a part of it is set.
    pub fn is_unset(&self) -> bool {
        let parts = [
            &self.redis_url,
            &self.redis_host,
            &self.redis_port,
            &self.redis_username,
            &self.redis_password,
            &self.redis_db,
        ];
        parts.into_iter().all(|part| set(part).is_none())
    }

    /// The file's address counts only where flags and environment set no part of
    /// one, so that parts of two addresses are never mixed.
    pub(super) fn or_file(self, file: FileRedis) -> Self {
        let (is_set, text) = (!self.is_unset(), |port: Option<u16>| port.map(|port| port.to_string()));
        let part = |raw: Option<String>, file: Option<String>| if is_set { raw } else { file };
        Self {
            sources: self.sources,
            redis_url: part(self.redis_url, file.url),
            redis_host: part(self.redis_host, file.host),
            redis_port: part(self.redis_port, text(file.port)),
            redis_username: part(self.redis_username, file.username),
            redis_password: part(self.redis_password, file.password),
            redis_password_file: set(&self.redis_password_file).or(file.password_file),
            redis_db: part(self.redis_db, file.db.map(|db| db.to_string())),
            redis_tls_ca: set(&self.redis_tls_ca).or(file.tls_ca),
            redis_tls_cert: set(&self.redis_tls_cert).or(file.tls_cert),
            redis_tls_key: set(&self.redis_tls_key).or(file.tls_key),
            redis_sentinel_username: set(&self.redis_sentinel_username).or(file.sentinel_username),
            redis_sentinel_password: set(&self.redis_sentinel_password).or(file.sentinel_password),
            redis_sentinel_password_file: set(&self.redis_sentinel_password_file).or(file.sentinel_password_file),
        }
    }

    pub fn check(&self, errors: &mut Vec<String>) -> RedisTarget {
        let errors_before = errors.len();
        let endpoint = self.endpoint(errors);
        // What is weaker than the address belongs to another one, like the parts of it.
        let address = self.sources.of("redis_url").max(self.sources.of("redis_host"));
        let file = |field: &str, raw: &Option<String>| {
            set(raw).filter(|_| endpoint.is_tls || self.sources.of(field) >= address)
        };
        let ca_file = file("redis_tls_ca", &self.redis_tls_ca);
        let cert_file = file("redis_tls_cert", &self.redis_tls_cert);
        let key_file = file("redis_tls_key", &self.redis_tls_key);
        let tls_ca = pem("redis.tls_ca", &ca_file, "CERTIFICATE", errors);
        let cert = pem("redis.tls_cert", &cert_file, "CERTIFICATE", errors);
        let key = pem("redis.tls_key", &key_file, "PRIVATE KEY", errors);
        if cert_file.is_some() != key_file.is_some() {
            errors.push("redis.tls_cert and redis.tls_key: set both or neither".to_owned());
        }
        let is_valid = errors.len() == errors_before;
        if is_valid && !endpoint.is_tls && [ca_file, cert_file, key_file].iter().any(Option::is_some) {
            errors.push(format!(
                "redis.tls_ca, .tls_cert, .tls_key: {endpoint} does not use TLS; begin its scheme with rediss"
            ));
        }
        let has_sentinels = matches!(endpoint.mode, RedisMode::Sentinel { .. });
        let is_meant = |field: &str| has_sentinels || self.sources.of(field) >= address;
        let sentinel_login = self.sentinel_login(is_meant, errors);
        if is_valid && sentinel_login != Login::default() && !has_sentinels {
            errors.push(format!(
                "redis.sentinel_username, .sentinel_password, .sentinel_password_file: {endpoint} has no sentinels"
            ));
        }
        let tls_client = cert
            .zip(key)
            .map(|(cert, key)| ClientPem { cert, key: Secret::new(String::from_utf8_lossy(&key).into_owned()) });
        RedisTarget { endpoint, tls_ca, tls_client, sentinel_login }
    }

    /// The parts of the address with the names of their settings and fields.
    fn parts(&mut self) -> [(&'static str, &'static str, &mut Option<String>); 5] {
        [
            ("redis.host", "redis_host", &mut self.redis_host),
            ("redis.port", "redis_port", &mut self.redis_port),
            ("redis.username", "redis_username", &mut self.redis_username),
            ("redis.password", "redis_password", &mut self.redis_password),
            ("redis.db", "redis_db", &mut self.redis_db),
        ]
    }

    /// Without the parts whose source is weaker than the URL's: they belong to another
    /// address, and whether they are valid does not matter.
    fn without_weaker_parts(&self) -> Self {
        let mut parts = self.clone();
        let url_source = self.sources.of("redis_url");
        for (_, field, raw) in parts.parts() {
            if self.sources.of(field) < url_source {
                *raw = None;
            }
        }
        parts
    }

    /// The endpoint from the URL or from its parts, whichever comes from the stronger
    /// source. A login that the URL lacks may be in the parts.
    fn endpoint(&self, errors: &mut Vec<String>) -> RedisEndpoint {
        let host_is_stronger =
            set(&self.redis_host).is_some() && self.sources.of("redis_host") > self.sources.of("redis_url");
        let url = set(&self.redis_url).filter(|_| !host_is_stronger);
        let mut endpoint = match url.as_deref().map(|url| (url, RedisEndpoint::parse(url.trim()))) {
            None => self.single_server(errors),
            Some((_, Ok(mut endpoint))) => {
                let (parts, first) = (self.without_weaker_parts(), endpoint.hosts.first().cloned());
                let all = Self {
                    redis_host: set(&parts.redis_host).or_else(|| Some(first.as_ref()?.0.clone())),
                    redis_port: set(&parts.redis_port).or_else(|| Some(first.as_ref()?.1.to_string())),
                    ..parts.clone()
                };
                let other = all.single_server(errors);
                parts.compare(&endpoint, &other, errors);
                endpoint.login.username = endpoint.login.username.or(other.login.username);
                endpoint.login.password = endpoint.login.password.or(other.login.password);
                endpoint
            }
            // The part before the @ may contain the password.
            Some((url, Err(error))) => {
                let redacted = url.rsplit('@').next().unwrap_or_default();
                errors.push(format!("redis.url: \"{}\": {error}", redacted.escape_debug()));
                self.without_weaker_parts().single_server(errors)
            }
        };
        let has_part = set(&self.redis_password).is_some()
            && (url.is_none() || self.sources.of("redis_password") >= self.sources.of("redis_url"));
        let (setting, field) = if has_part { ("redis.password", "redis_password") } else { ("redis.url", "redis_url") };
        let found = endpoint.login.password.take();
        let found = found.map(|password| (setting, self.sources.of(field), password));
        let path = (&self.redis_password_file, "redis.password_file", "redis_password_file");
        endpoint.login.password = self.password(found, path, errors);
        endpoint
    }

    fn sentinel_login(&self, is_meant: impl Fn(&str) -> bool, errors: &mut Vec<String>) -> Login {
        let raw = |field: &str, raw: &Option<String>| set(raw).filter(|_| is_meant(field));
        let (setting, field) = ("redis.sentinel_password", "redis_sentinel_password");
        let found = password::text(setting, &raw(field, &self.redis_sentinel_password), errors);
        let found = found.map(|password| (setting, self.sources.of(field), password));
        let (setting, field) = ("redis.sentinel_password_file", "redis_sentinel_password_file");
        let path = raw(field, &self.redis_sentinel_password_file);
        let password = self.password(found, (&path, setting, field), errors);
        let username = raw("redis_sentinel_username", &self.redis_sentinel_username);
        Login { username: name("redis.sentinel_username", &username, errors), password }
    }

    /// The password from a text or from a file, whichever comes from the stronger source.
    fn password(
        &self,
        text: Option<(&'static str, Source, Password)>,
        (path, setting, field): (&Option<String>, &'static str, &str),
        errors: &mut Vec<String>,
    ) -> Option<Password> {
        let (file, file_source) = (set(path), self.sources.of(field));
        match (text, file) {
            (Some((_, source, password)), Some(_)) if source > file_source => Some(password),
            (Some((other, source, _)), Some(_)) if source == file_source => {
                let [one, other] = [setting, other].map(|setting| label(setting, &self.sources));
                errors.push(format!("{one} and {other} both have a password: set only one of them"));
                None
            }
            (_, Some(file)) => Some(password::file(setting, file, errors)),
            (text, None) => text.map(|(_, _, password)| password),
        }
    }

    /// Reports the parts that contradict the URL.
    fn compare(mut self, url: &RedisEndpoint, parts: &RedisEndpoint, errors: &mut Vec<String>) {
        let is_same = |name: &str| match name {
            "redis.host" => url.mode == RedisMode::Single && url.hosts[..] == parts.hosts[..],
            "redis.port" => url.hosts.iter().map(|(_, port)| port).eq(parts.hosts.iter().map(|(_, port)| port)),
            "redis.username" => url.login.username.is_none() || url.login.username == parts.login.username,
            "redis.password" => url.login.password.is_none() || url.login.password == parts.login.password,
            _ => url.db == parts.db,
        };
        let sources = self.sources.clone();
        for (setting, _, raw) in self.parts() {
            if set(raw).is_some() && !is_same(setting) {
                let [url_name, name] = ["redis.url", setting].map(|setting| label(setting, &sources));
                errors.push(format!("{url_name} is {url}, but {name} differs: set only one of them"));
            }
        }
    }

    fn single_server(&self, errors: &mut Vec<String>) -> RedisEndpoint {
        let host = set(&self.redis_host).unwrap_or_else(|| "localhost".to_owned());
        // Some deployments set the host to host:port.
        let (host, port) = host_and_port(host.trim(), DEFAULT_PORT).unwrap_or_else(|error| {
            errors.push(format!("redis.host: {error}"));
            (host, DEFAULT_PORT)
        });
        let port = parse("redis.port", &self.redis_port, port, "a port", errors);
        if port == 0 {
            errors.push("redis.port: got \"0\", allowed: a port".to_owned());
        }
        let db = i64::from(parse("redis.db", &self.redis_db, 0_u32, "a number", errors));
        let username = name("redis.username", &self.redis_username, errors);
        let login = Login { username, password: password::text("redis.password", &self.redis_password, errors) };
        RedisEndpoint { mode: RedisMode::Single, is_tls: false, hosts: vec![(host, port)], login, db }
    }
}

/// The name of a user.
fn name(setting: &str, raw: &Option<String>, errors: &mut Vec<String>) -> Option<String> {
    let name = set(raw)?;
    if name.contains(|char: char| char.is_whitespace() || char.is_control()) {
        errors.push(format!(
            "{setting}: \"{}\": no user of Redis has a space or a line end in its name",
            name.escape_debug()
        ));
    }
    Some(name)
}

/// Reads a PEM file that must contain a section of this kind.
pub(super) fn pem(name: &str, path: &Option<String>, kind: &str, errors: &mut Vec<String>) -> Option<Vec<u8>> {
    let path = set(path)?;
    let problem = match std::fs::read(&path) {
        Ok(bytes) if bytes.windows(kind.len()).any(|part| part == kind.as_bytes()) => return Some(bytes),
        Ok(_) => format!("not a PEM file with a section \"BEGIN {kind}\""),
        Err(error) => error.to_string(),
    };
    errors.push(format!("{name}: {path}: {problem}"));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_host_may_contain_its_port_and_a_url_has_precedence() {
        let mut redis = RawRedis { redis_host: some("cache:7000"), ..RawRedis::default() };
        assert_eq!(redis.check(&mut Vec::new()).redacted_url(), "redis://cache:7000/0");
        redis.redis_port = some("7001");
        assert_eq!(redis.check(&mut Vec::new()).redacted_url(), "redis://cache:7001/0");
        redis.sources = Sources::from(Source::CommandLine, &["redis_url"]);
        redis.redis_url = some("redis://elsewhere:1/3");
        let mut errors = Vec::new();
        assert_eq!(redis.check(&mut errors).redacted_url(), "redis://elsewhere:1/3");
        // A host from a flag has precedence over a URL from the environment.
        redis.sources = Sources::from(Source::CommandLine, &["redis_host"]);
        assert_eq!(redis.check(&mut errors).redacted_url(), "redis://cache:7001/0");
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn a_url_and_parts_from_one_source_must_agree() {
        let check = |change: &dyn Fn(&mut RawRedis)| {
            let mut redis = RawRedis { redis_url: some("redis://u:hidden@h:7/3"), ..RawRedis::default() };
            change(&mut redis);
            let mut errors = Vec::new();
            redis.check(&mut errors);
            assert!(!errors.concat().contains("hidden"), "{errors:?}");
            errors
        };
        assert!(check(&|_| {}).is_empty());
        assert!(
            check(&|redis| {
                redis.redis_host = some("h");
                redis.redis_port = some("7");
                redis.redis_username = some("u");
                redis.redis_password = some("hidden");
                redis.redis_db = some("3");
            })
            .is_empty()
        );
        assert!(check(&|redis| redis.redis_host = some("h:7")).is_empty());
        type Change<'a> = &'a dyn Fn(&mut RawRedis);
        let disagree: [(&str, Change<'_>); 6] = [
            ("redis.host", &|redis| redis.redis_host = some("other")),
            ("redis.port", &|redis| redis.redis_port = some("8")),
            ("redis.username", &|redis| redis.redis_username = some("v")),
            ("redis.password", &|redis| redis.redis_password = some("p")),
            ("redis.db", &|redis| redis.redis_db = some("4")),
            ("redis.host", &|redis| {
                redis.redis_url = some("redis+cluster://h:7,i:7");
                redis.redis_host = some("h");
            }),
        ];
        for (name, change) in disagree {
            let errors = check(change);
            assert!(errors.len() == 1 && errors[0].contains(&format!("but {name} differs")), "{name}: {errors:?}");
        }
    }

    #[test]
    fn what_is_weaker_than_the_address_does_not_contradict_it() {
        let redis = RawRedis {
            sources: Sources::from(Source::CommandLine, &["redis_url"]),
            redis_url: some("redis://h"),
            redis_host: some("a b"),
            redis_port: some("http"),
            redis_password: some("a\nb"),
            redis_tls_ca: some("/no/such"),
            redis_tls_key: some("/no/such"),
            redis_sentinel_username: some("u"),
            redis_sentinel_password_file: some("/no/such"),
            ..RawRedis::default()
        };
        let mut errors = Vec::new();
        let target = redis.check(&mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(target.sentinel_login, Login::default());
    }

    #[test]
    fn the_login_that_a_url_lacks_is_in_the_parts() {
        let login = |url: &str, change: &dyn Fn(&mut RawRedis)| {
            let mut redis = RawRedis { redis_url: some(url), ..RawRedis::default() };
            change(&mut redis);
            let mut errors = Vec::new();
            let login = redis.check(&mut errors).endpoint.login;
            assert!(errors.is_empty(), "{errors:?}");
            let (username, password) = login.credentials().unwrap();
            (username.map(str::to_owned), password.map(|password| password.reveal().to_owned()))
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from file\n").unwrap();
        let path = some(file.path().to_str().unwrap());
        let password = |redis: &mut RawRedis| redis.redis_password = some("p");
        let from_file = |redis: &mut RawRedis| redis.redis_password_file = path.clone();
        assert_eq!(login("redis://h", &|_| {}), (None, None));
        // Nobody else than this user.
        assert_eq!(login("redis://u@h", &|_| {}), (some("u"), some("")));
        assert_eq!(login("redis+cluster://u@h", &|_| {}), (some("u"), some("")));
        assert_eq!(login("redis://u@h", &password), (some("u"), some("p")));
        assert_eq!(login("redis://u@h", &from_file), (some("u"), some("from file")));
        assert_eq!(login("redis+sentinel://u@h/m", &from_file), (some("u"), some("from file")));
        assert_eq!(login("redis://h", &from_file), (None, some("from file")));
        let both = |source| {
            move |redis: &mut RawRedis| {
                redis.redis_password_file = some("/no/such");
                redis.sources = Sources::from(source, &["redis_url"]);
            }
        };
        assert_eq!(login("redis://u:p@h", &both(Source::CommandLine)), (some("u"), some("p")));
        let stronger = |redis: &mut RawRedis| {
            from_file(redis);
            redis.sources = Sources::from(Source::Environment, &["redis_password_file"]);
        };
        assert_eq!(login("redis://u:p@h", &stronger), (some("u"), some("from file")));
    }

    #[test]
    fn every_error_is_reported_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(dir.path().join(name).display().to_string());
        std::fs::write(dir.path().join("text"), "no certificate").unwrap();
        let mut errors = Vec::new();
        RawRedis {
            redis_url: some("redis+sentinel://u:hidden@h"),
            redis_tls_ca: path("missing"),
            redis_tls_cert: path("text"),
            ..RawRedis::default()
        }
        .check(&mut errors);
        for expected in ["redis.url: ", "redis.tls_ca: ", "redis.tls_cert: ", "set both or neither"] {
            assert!(errors.iter().any(|error| error.contains(expected)), "{expected}: {errors:#?}");
        }
        assert!(!errors.iter().any(|error| error.contains("hidden")), "{errors:#?}");
    }

    #[test]
    fn a_setting_that_does_not_apply_to_the_mode_of_redis_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----").unwrap();
        let mut errors = Vec::new();
        let mut redis = RawRedis {
            redis_url: some("redis://h"),
            redis_tls_ca: Some(ca.display().to_string()),
            redis_sentinel_password: some("hidden"),
            ..RawRedis::default()
        };
        let target = redis.check(&mut errors);
        assert_eq!(errors.len(), 2, "{errors:#?}");
        assert!(!format!("{target:?}").contains("hidden"));
        redis.redis_url = some("rediss+sentinel://h/m");
        errors.clear();
        redis.check(&mut errors);
        assert!(errors.is_empty(), "{errors:#?}");
    }
}
