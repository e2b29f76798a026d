//! Where Redis is and how it is entered: the URL or its parts, the files of
//! TLS, the login of the sentinels. Files that are named here are read here,
//! so that one which can't be read is told with all other faults.

use super::level::OnLine;
use super::redis_url::{RedisMode, RedisPlace};
use super::{parse, set};
use crate::capability::Secret;
use serde::Deserialize;

const DEFAULT_PORT: u16 = 6379;

/// Where Redis is, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisTarget {
    pub place: RedisPlace,
    /// Certificates in PEM; without them those of the system are trusted.
    pub tls_ca: Option<Vec<u8>>,
    pub tls_client: Option<ClientPem>,
    /// The sentinels have users of their own.
    pub sentinel_login: Login,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// What we show to the server that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPem {
    pub cert: Vec<u8>,
    pub key: Secret,
}

impl RedisTarget {
    /// A place that needs no more than its URL.
    pub fn at(url: &str) -> Result<Self, String> {
        RedisPlace::parse(url).map(Self::from)
    }

    /// The address without its secrets, for logs.
    pub fn shown(&self) -> String {
        self.place.to_string()
    }
}

impl From<RedisPlace> for RedisTarget {
    fn from(place: RedisPlace) -> Self {
        Self { place, tls_ca: None, tls_client: None, sentinel_login: Login::default() }
    }
}

/// Where Redis is.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TypedRedis {
    #[command(flatten)]
    pub on_line: OnLine,
    /// Where Redis is
    #[arg(
        long,
        env = "REDIS_URL",
        value_name = "URL",
        hide_env_values = true,
        help = "redis://[user:password@]host:port[/db], rediss:// for TLS; redis+sentinel://host:port,.../master[/db]; redis+cluster://host:port,... [default: redis://localhost:6379]"
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
    #[arg(long, env = "REDIS_DB", value_name = "N", hide = true)]
    pub redis_db: Option<String>,
    /// The certificates that Redis' own is signed by [default: those of the system]
    #[arg(long, env = "REDIS_TLS_CA", value_name = "FILE")]
    pub redis_tls_ca: Option<String>,
    /// The certificate that we show to Redis
    #[arg(long, env = "REDIS_TLS_CERT", value_name = "FILE")]
    pub redis_tls_cert: Option<String>,
    /// Its key
    #[arg(long, env = "REDIS_TLS_KEY", value_name = "FILE")]
    pub redis_tls_key: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_USERNAME", value_name = "USER", hide = true)]
    pub redis_sentinel_username: Option<String>,
    #[arg(long, env = "REDIS_SENTINEL_PASSWORD", value_name = "PASSWORD", hide = true, hide_env_values = true)]
    pub redis_sentinel_password: Option<String>,
}

/// The table `[redis]` of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileRedis {
    url: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    username: Option<String>,
    password: Option<String>,
    db: Option<u32>,
    tls_ca: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
}

impl TypedRedis {
    /// Whether nothing says where Redis is.
    pub fn is_unset(&self) -> bool {
        let all = [
            &self.redis_url,
            &self.redis_host,
            &self.redis_port,
            &self.redis_username,
            &self.redis_password,
            &self.redis_db,
        ];
        all.into_iter().all(|one| set(one).is_none())
    }

    /// A place that is named outright is not mixed with the parts of another.
    pub(super) fn or_file(self, file: FileRedis) -> Self {
        let (mine, text) = (!self.is_unset(), |port: Option<u16>| port.map(|port| port.to_string()));
        let place = |typed: Option<String>, file: Option<String>| if mine { typed } else { file };
        Self {
            on_line: self.on_line,
            redis_url: place(self.redis_url, file.url),
            redis_host: place(self.redis_host, file.host),
            redis_port: place(self.redis_port, text(file.port)),
            redis_username: place(self.redis_username, file.username),
            redis_password: place(self.redis_password, file.password),
            redis_db: place(self.redis_db, file.db.map(|db| db.to_string())),
            redis_tls_ca: set(&self.redis_tls_ca).or(file.tls_ca),
            redis_tls_cert: set(&self.redis_tls_cert).or(file.tls_cert),
            redis_tls_key: set(&self.redis_tls_key).or(file.tls_key),
            redis_sentinel_username: set(&self.redis_sentinel_username).or(file.sentinel_username),
            redis_sentinel_password: set(&self.redis_sentinel_password).or(file.sentinel_password),
        }
    }

    pub fn check(&self, faults: &mut Vec<String>) -> RedisTarget {
        let known = faults.len();
        let place = self.place(faults);
        let tls_ca = pem("redis.tls_ca", &self.redis_tls_ca, "CERTIFICATE", faults);
        let cert = pem("redis.tls_cert", &self.redis_tls_cert, "CERTIFICATE", faults);
        let key = pem("redis.tls_key", &self.redis_tls_key, "PRIVATE KEY", faults);
        if set(&self.redis_tls_cert).is_some() != set(&self.redis_tls_key).is_some() {
            faults.push("redis.tls_cert and redis.tls_key: one needs the other".to_owned());
        }
        let tls_files = [&self.redis_tls_ca, &self.redis_tls_cert, &self.redis_tls_key];
        let is_sound = faults.len() == known;
        if is_sound && !place.is_tls && tls_files.into_iter().any(|file| set(file).is_some()) {
            faults.push(format!("redis.tls_ca, .tls_cert, .tls_key: {place} is without TLS; write rediss"));
        }
        let password = set(&self.redis_sentinel_password).map(Secret::new);
        let sentinel_login = Login { username: set(&self.redis_sentinel_username), password };
        if is_sound && sentinel_login != Login::default() && !matches!(place.mode, RedisMode::Sentinel { .. }) {
            faults.push(format!("redis.sentinel_username, .sentinel_password: {place} has no sentinels"));
        }
        let tls_client = cert
            .zip(key)
            .map(|(cert, key)| ClientPem { cert, key: Secret::new(String::from_utf8_lossy(&key).into_owned()) });
        RedisTarget { place, tls_ca, tls_client, sentinel_login }
    }

    /// The parts, by their names in the file and their fields here.
    fn parts(&self) -> [(&'static str, &'static str, &Option<String>); 5] {
        [
            ("redis.host", "redis_host", &self.redis_host),
            ("redis.port", "redis_port", &self.redis_port),
            ("redis.username", "redis_username", &self.redis_username),
            ("redis.password", "redis_password", &self.redis_password),
            ("redis.db", "redis_db", &self.redis_db),
        ]
    }

    /// The URL, written outright or put together from its parts, whichever is
    /// named higher up.
    fn place(&self, faults: &mut Vec<String>) -> RedisPlace {
        let host_on_line = set(&self.redis_host).is_some() && self.on_line.has("redis_host");
        let url = set(&self.redis_url).filter(|_| !host_on_line || self.on_line.has("redis_url"));
        let Some(url) = url else { return self.put_together(faults) };
        match RedisPlace::parse(url.trim()) {
            Ok(place) => {
                let beside = Self {
                    redis_url: None,
                    redis_host: self.redis_host.clone().or_else(|| Some(place.hosts.first()?.0.clone())),
                    redis_port: self.redis_port.clone().or_else(|| Some(place.hosts.first()?.1.to_string())),
                    redis_username: self.redis_username.clone().or_else(|| place.login.username.clone()),
                    ..self.clone()
                };
                self.compare(&place, &beside.put_together(faults), faults);
                place
            }
            // What stands before the @ is nobody's business.
            Err(error) => {
                faults.push(format!("redis.url: \"{}\": {error}", url.rsplit('@').next().unwrap_or_default()));
                self.put_together(faults)
            }
        }
    }

    /// Tells the parts that are named beside a URL, at its level or above, and
    /// say something else.
    fn compare(&self, url: &RedisPlace, parts: &RedisPlace, faults: &mut Vec<String>) {
        let is_same = |name: &str| match name {
            "redis.host" => url.mode == RedisMode::Single && url.hosts[..] == parts.hosts[..],
            "redis.port" => url.hosts.iter().map(|(_, port)| port).eq(parts.hosts.iter().map(|(_, port)| port)),
            "redis.username" => url.login.username == parts.login.username,
            "redis.password" => url.login.password == parts.login.password,
            _ => url.db == parts.db,
        };
        for (name, field, typed) in self.parts() {
            let is_heard = self.on_line.has(field) || !self.on_line.has("redis_url");
            if set(typed).is_some() && is_heard && !is_same(name) {
                faults.push(format!("redis.url is {url}, and {name} says something else: name one of them"));
            }
        }
    }

    fn put_together(&self, faults: &mut Vec<String>) -> RedisPlace {
        let host = set(&self.redis_host).unwrap_or_else(|| "localhost".to_owned());
        // Some write host:port where only a host is asked for.
        let (host, port) = match host.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') && port.parse::<u16>().is_ok() => {
                (name.to_owned(), port.parse().ok())
            }
            _ => (host, None),
        };
        let port = parse("redis.port", &self.redis_port, port.unwrap_or(DEFAULT_PORT), "a port", faults);
        let db = i64::from(parse("redis.db", &self.redis_db, 0_u32, "a number", faults));
        let login = Login { username: set(&self.redis_username), password: set(&self.redis_password).map(Secret::new) };
        RedisPlace { mode: RedisMode::Single, is_tls: false, hosts: vec![(host, port)], login, db }
    }
}

/// The content of a file that is to hold a part of this kind.
pub(super) fn pem(name: &str, path: &Option<String>, kind: &str, faults: &mut Vec<String>) -> Option<Vec<u8>> {
    let path = set(path)?;
    let told = match std::fs::read(&path) {
        Ok(bytes) if bytes.windows(kind.len()).any(|part| part == kind.as_bytes()) => return Some(bytes),
        Ok(_) => format!("no \"BEGIN {kind}\" in it: it is to be a PEM file"),
        Err(error) => error.to_string(),
    };
    faults.push(format!("{name}: {path}: {told}"));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_host_may_carry_its_port_and_a_url_wins() {
        let mut redis = TypedRedis { redis_host: some("cache:7000"), ..TypedRedis::default() };
        assert_eq!(redis.check(&mut Vec::new()).shown(), "redis://cache:7000/0");
        redis.redis_port = some("7001");
        assert_eq!(redis.check(&mut Vec::new()).shown(), "redis://cache:7001/0");
        redis.on_line = OnLine::of(&["redis_url"]);
        redis.redis_url = some("redis://elsewhere:1/3");
        let mut faults = Vec::new();
        assert_eq!(redis.check(&mut faults).shown(), "redis://elsewhere:1/3");
        // As it wins over a URL of the environment.
        redis.on_line = OnLine::of(&["redis_host"]);
        assert_eq!(redis.check(&mut faults).shown(), "redis://cache:7001/0");
        assert!(faults.is_empty(), "{faults:?}");
    }

    #[test]
    fn a_url_and_parts_of_one_level_have_to_agree() {
        let check = |change: &dyn Fn(&mut TypedRedis)| {
            let mut redis = TypedRedis { redis_url: some("redis://u:hidden@h:7/3"), ..TypedRedis::default() };
            change(&mut redis);
            let mut faults = Vec::new();
            redis.check(&mut faults);
            assert!(!faults.concat().contains("hidden"), "{faults:?}");
            faults
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
        type Change<'a> = &'a dyn Fn(&mut TypedRedis);
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
            let faults = check(change);
            assert!(faults.len() == 1 && faults[0].contains(&format!("and {name} says")), "{name}: {faults:?}");
        }
    }

    #[test]
    fn every_fault_of_the_way_to_redis_is_told_with_its_setting() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name).display().to_string());
        std::fs::write(folder.path().join("text"), "no certificate").unwrap();
        let mut faults = Vec::new();
        TypedRedis {
            redis_url: some("redis+sentinel://u:hidden@h"),
            redis_tls_ca: path("missing"),
            redis_tls_cert: path("text"),
            ..TypedRedis::default()
        }
        .check(&mut faults);
        for told in ["redis.url: ", "redis.tls_ca: ", "redis.tls_cert: ", "one needs the other"] {
            assert!(faults.iter().any(|fault| fault.contains(told)), "{told}: {faults:#?}");
        }
        assert!(!faults.iter().any(|fault| fault.contains("hidden")), "{faults:#?}");
    }

    #[test]
    fn what_has_no_effect_where_redis_is_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----").unwrap();
        let mut faults = Vec::new();
        let mut redis = TypedRedis {
            redis_url: some("redis://h"),
            redis_tls_ca: Some(ca.display().to_string()),
            redis_sentinel_password: some("hidden"),
            ..TypedRedis::default()
        };
        let target = redis.check(&mut faults);
        assert_eq!(faults.len(), 2, "{faults:#?}");
        assert!(!format!("{target:?}").contains("hidden"));
        redis.redis_url = some("rediss+sentinel://h/m");
        faults.clear();
        redis.check(&mut faults);
        assert!(faults.is_empty(), "{faults:#?}");
    }
}
