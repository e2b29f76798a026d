-- Moves what is due into its stream: delayed and retrying messages.
-- KEYS 1-7: the topic's stream, state, work, later, later:body, high, low
--   8: dead
-- ARGV 1: how many at most   2: no more once they had so many bytes
-- Returns { how many, ms until the next one is due or -1 }. Each inserts before
-- it deletes, so that a refused insert leaves the message where it was.
local topic, dead, limit = topic_at(1), KEYS[8], ARGV[1]
local head = redis.call('ZRANGE', topic.later, 0, 0, 'WITHSCORES')
if not head[2] then return { 0, -1 } end
local now, moved, bytes_left = now_ms(), 0, tonumber(ARGV[2])
if tonumber(head[2]) <= now then
  -- Looked up once for each class.
  local streams = setmetatable({}, { __index = function(known, class)
    local stream = target(topic, class)
    rawset(known, class, stream)
    return stream
  end })
  local due = redis.call('ZRANGEBYSCORE', topic.later, '-inf', whole(now), 'LIMIT', 0, limit)
  for _, name in ipairs(due) do
    if bytes_left <= 0 then break end
    local packed = redis.call('HGET', topic.body, name)
    if packed then
      bytes_left = bytes_left - #packed
      add(streams[class_of(name)], cmsgpack.unpack(packed))
    else
      redis.call('XADD', dead, '*', 'gw-reason', 'orphan', 'gw-error', 'no body for ' .. name,
        'gw-died-at', whole(now))
    end
    redis.call('ZREM', topic.later, name)
    redis.call('HDEL', topic.body, name)
    moved = moved + 1
  end
  head = redis.call('ZRANGE', topic.later, 0, 0, 'WITHSCORES')
end
return { moved, head[2] and math.max(0, tonumber(head[2]) - now) or -1 }
