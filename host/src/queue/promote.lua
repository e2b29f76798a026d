-- Moves what is due into the stream: delayed and retrying messages, and the
-- delayed messages of the original's publishers, which in the original only a
-- living publisher moves.
-- KEYS 1-5: the topic's stream, state, work stream, later, later:body
--   6: dead   7: the original's delayed set
-- ARGV 1: how many at most of each   2: 1 to look at the original's set too
-- Returns { how many, ms until the next one is due or -1 }. Each inserts
-- before it deletes, so that a refused insert leaves the message where it was.
local topic = topic_at(1)
local dead, legacy, limit = KEYS[6], KEYS[7], ARGV[1]
local now, moved, stream = now_ms(), 0, nil

-- Looked up only when something is due.
local function destination()
  stream = stream or target(topic)
  return stream
end

local head = redis.call('ZRANGE', topic.later, 0, 0, 'WITHSCORES')
if head[2] and tonumber(head[2]) <= now then
  local due = redis.call('ZRANGEBYSCORE', topic.later, '-inf', string.format('%.0f', now), 'LIMIT', 0, limit)
  for _, token in ipairs(due) do
    local packed = redis.call('HGET', topic.body, token)
    if packed then
      add(destination(), cmsgpack.unpack(packed))
    else
      redis.call('XADD', dead, '*', 'gw-reason', 'orphan', 'gw-error', 'no body for ' .. token,
        'gw-died-at', string.format('%.0f', now))
    end
    redis.call('ZREM', topic.later, token)
    redis.call('HDEL', topic.body, token)
    moved = moved + 1
  end
  head = redis.call('ZRANGE', topic.later, 0, 0, 'WITHSCORES')
end

if ARGV[2] == '1' then
  local due = redis.call('ZRANGEBYSCORE', legacy, '-inf', math.floor(now / 1000), 'LIMIT', 0, limit)
  for _, envelope in ipairs(due) do
    add(destination(), { 'message', envelope })
    redis.call('ZREM', legacy, envelope)
    moved = moved + 1
  end
end

return { moved, head[2] and math.max(0, tonumber(head[2]) - now) or -1 }
