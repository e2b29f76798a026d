-- Moves due messages to their streams: delayed ones and those that run again.
-- KEYS 1-7: the topic's stream, state, work, delayed, delayed:body, high, low
--   8: dead
-- ARGV 1: the most messages of the batch   2: the bytes after which it ends
-- Returns { how many were moved, ms until the next one is due or -1 }. Each is
-- added before it is deleted, so a refused write leaves it delayed.
local topic, dead, limit = topic_at(1), KEYS[8], ARGV[1]
local first = redis.call('ZRANGE', topic.delayed, 0, 0, 'WITHSCORES')
if not first[2] then return { 0, -1 } end
local now, moved, bytes_left = now_ms(), 0, tonumber(ARGV[2])
if tonumber(first[2]) <= now then
  -- The target of each class is determined once.
  local streams = setmetatable({}, { __index = function(known, class)
    local stream = target(topic, class)
    rawset(known, class, stream)
    return stream
  end })
  local due = redis.call('ZRANGEBYSCORE', topic.delayed, '-inf', integer(now), 'LIMIT', 0, limit)
  for _, name in ipairs(due) do
    if bytes_left <= 0 then break end
    local packed = redis.call('HGET', topic.body, name)
    if packed then
      bytes_left = bytes_left - #packed
      add(streams[class_of(name)], cmsgpack.unpack(packed))
    else
      redis.call('XADD', dead, '*', 'gw-reason', 'body-missing', 'gw-error', 'no body for ' .. name,
        'gw-died-at', integer(now))
    end
    redis.call('ZREM', topic.delayed, name)
    redis.call('HDEL', topic.body, name)
    moved = moved + 1
  end
  first = redis.call('ZRANGE', topic.delayed, 0, 0, 'WITHSCORES')
end
return { moved, first[2] and math.max(0, tonumber(first[2]) - now) or -1 }
