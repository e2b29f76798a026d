//! Finds the locations of all messages by reading every key.

use super::redis_setup::RedisSetup;
use crate::support::Entry;
use redis::FromRedisValue;
use std::collections::BTreeMap;

/// Lists the keys with unfinished messages and their number, including pending
/// entries that were deleted.
const UNFINISHED: &str = r"
    local sizes = { stream = 'XLEN', list = 'LLEN', zset = 'ZCARD', hash = 'HLEN' }
    local excluded = { ['mq:seen'] = true, ['mq::workers'] = true, ['mq::topics'] = true }
    local unfinished = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
      local kind = redis.call('TYPE', key).ok
      local is_excluded = excluded[key] or string.find(key, '}:dead$') or string.find(key, '}:state$')
        or string.find(key, '}:isolated$') or string.find(key, '}:deleted$') or string.find(key, '}:dedup:')
      if sizes[kind] and not is_excluded then
        local count = redis.call(sizes[kind], key)
        if kind == 'stream' then
          for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do count = math.max(count, group[6]) end
        end
        if count > 0 then unfinished[#unfinished + 1] = key .. ' ' .. kind .. ' ' .. count end
      end
    end
    table.sort(unfinished)
    return unfinished";

/// Key, type and size of everything that is neither done nor dead.
pub(super) async fn unfinished(redis: &RedisSetup) -> Vec<String> {
    redis::cmd("EVAL").arg(UNFINISHED).arg(0).query_async(&mut redis.connection().await).await.unwrap()
}

/// Where the messages of one key are.
#[derive(Debug, Clone, Default)]
pub(super) struct Locations {
    /// How often a run was settled as done.
    pub(super) seen: usize,
    /// The reasons of its dead letters.
    pub(super) dead: Vec<String>,
    /// The Redis keys that still contain it.
    pub(super) elsewhere: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) locations: BTreeMap<String, Locations>,
    /// Messages whose data has no key.
    pub(super) without_key: Vec<String>,
}

impl Census {
    pub(super) async fn take(redis: &RedisSetup) -> Self {
        let mut census = Self::default();
        for bytes in messages(redis, "mq:seen", "stream").await {
            census.note(&bytes, "mq:seen", |locations| locations.seen += 1);
        }
        for key in redis.run::<Vec<String>>("KEYS {mq:*}:dead").await {
            for fields in redis.entries(&key).await {
                let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
                let reason = String::from_utf8(field("gw-reason").unwrap_or_default()).unwrap();
                census.note(&field("message").unwrap_or_default(), &format!("{key} {reason}"), |locations| {
                    locations.dead.push(reason.clone());
                });
            }
        }
        for line in unfinished(redis).await {
            let [key, kind, _] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            // The members of this sorted set have their bodies in a hash.
            if key.ends_with("}:delayed") {
                continue;
            }
            for bytes in messages(redis, key, kind).await {
                census.note(&bytes, &line, |locations| locations.elsewhere.push(line.clone()));
            }
        }
        census
    }

    fn note(&mut self, bytes: &[u8], location: &str, note: impl FnOnce(&mut Locations)) {
        match key(bytes) {
            Some(key) => note(self.locations.entry(key).or_default()),
            None => self.without_key.push(format!("{location}: {}", String::from_utf8_lossy(bytes))),
        }
    }
}

/// The messages in a key of this type: whole values, or the field `message` of
/// entries.
async fn messages(redis: &RedisSetup, key: &str, kind: &str) -> Vec<Vec<u8>> {
    let values: redis::Value = match kind {
        "stream" => {
            let message = |fields: Entry| fields.into_iter().find(|(name, _)| name == "message").unwrap_or_default().1;
            return redis.entries(key).await.into_iter().map(message).collect();
        }
        "list" => redis.run(&format!("LRANGE {key} 0 -1")).await,
        "hash" => redis.run(&format!("HVALS {key}")).await,
        _ => redis.run(&format!("ZRANGE {key} 0 -1")).await,
    };
    Vec::<Vec<u8>>::from_redis_value(values).unwrap()
}

/// The first `key` in the data of a message.
pub(super) fn key(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let (_, rest) = text.split_once(r#""key":""#)?;
    Some(rest.split_once('"')?.0.to_owned())
}
