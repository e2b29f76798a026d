//! Where every message is, found by looking at every key there is.

use super::site::Site;
use crate::support::Entry;
use redis::FromRedisValue;
use std::collections::BTreeMap;

/// The keys that hold messages on their way, and how many; also what is
/// pending and no longer there.
const STANDING: &str = r"
    local sizes = { stream = 'XLEN', list = 'LLEN', zset = 'ZCARD', hash = 'HLEN' }
    local apart = { ['mq:seen'] = true, ['mq::workers'] = true }
    local standing = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
      local kind = redis.call('TYPE', key).ok
      local is_apart = apart[key] or string.find(key, '}:dead$') or string.find(key, '}:state$')
        or string.find(key, '}:isolated$')
      if sizes[kind] and not is_apart then
        local count = redis.call(sizes[kind], key)
        if kind == 'stream' then
          for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do count = math.max(count, group[6]) end
        end
        if count > 0 then standing[#standing + 1] = key .. ' ' .. kind .. ' ' .. count end
      end
    end
    table.sort(standing)
    return standing";

/// Keys, their types and sizes, of what is neither done nor dead.
pub(super) async fn standing(site: &Site) -> Vec<String> {
    redis::cmd("EVAL").arg(STANDING).arg(0).query_async(&mut site.connection().await).await.unwrap()
}

/// Where the messages of one key are.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// How often a run of it was settled as done.
    pub(super) seen: usize,
    /// The reasons of its dead letters.
    pub(super) dead: Vec<String>,
    /// The Redis keys that have it still.
    pub(super) elsewhere: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) places: BTreeMap<String, Places>,
    /// What has no key.
    pub(super) nameless: Vec<String>,
}

impl Census {
    pub(super) async fn take(site: &Site) -> Self {
        let mut census = Self::default();
        for bytes in messages(site, "mq:seen", "stream").await {
            census.note(&bytes, "mq:seen", |places| places.seen += 1);
        }
        for key in site.run::<Vec<String>>("KEYS {mq:*}:dead").await {
            for fields in site.entries(&key).await {
                let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
                let reason = String::from_utf8(field("gw-reason").unwrap_or_default()).unwrap();
                census.note(&field("message").unwrap_or_default(), &format!("{key} {reason}"), |places| {
                    places.dead.push(reason.clone());
                });
            }
        }
        for line in standing(site).await {
            let [key, kind, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            // What is in `later` is in its bodies.
            if key.ends_with("}:delayed") {
                continue;
            }
            for bytes in messages(site, key, kind).await {
                census.note(&bytes, &line, |places| places.elsewhere.push(line.clone()));
            }
        }
        census
    }

    fn note(&mut self, bytes: &[u8], place: &str, note: impl FnOnce(&mut Places)) {
        match key(bytes) {
            Some(key) => note(self.places.entry(key).or_default()),
            None => self.nameless.push(format!("{place}: {}", String::from_utf8_lossy(bytes))),
        }
    }
}

/// The messages in a key of this type: whole values, or what entries have in
/// their field `message`.
async fn messages(site: &Site, key: &str, kind: &str) -> Vec<Vec<u8>> {
    let values: redis::Value = match kind {
        "stream" => {
            let message = |fields: Entry| fields.into_iter().find(|(name, _)| name == "message").unwrap_or_default().1;
            return site.entries(key).await.into_iter().map(message).collect();
        }
        "list" => site.run(&format!("LRANGE {key} 0 -1")).await,
        "hash" => site.run(&format!("HVALS {key}")).await,
        _ => site.run(&format!("ZRANGE {key} 0 -1")).await,
    };
    Vec::<Vec<u8>>::from_redis_value(values).unwrap()
}

/// The key that a message's data names, wherever it stands.
fn key(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let (_, rest) = text.split_once(r#""key":""#)?;
    Some(rest.split_once('"')?.0.to_owned())
}
