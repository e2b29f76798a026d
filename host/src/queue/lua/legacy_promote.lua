-- Moves due legacy delayed messages to the topic.
-- KEYS 1-7: the topic's stream, state, work, delayed, delayed:body, high, low
--   8: the legacy delayed set, if it is in the same slot
-- ARGV 1: the most messages of the batch   2: the bytes after which it ends
-- Returns how many were moved. Each is added before it is removed.
local legacy, second = KEYS[8], math.floor(now_ms() / 1000)
local stream, moved, bytes_left = nil, 0, tonumber(ARGV[2])
while moved < tonumber(ARGV[1]) and bytes_left > 0 do
  -- The members are whole messages, so one is read at a time.
  local envelope = redis.call('ZRANGEBYSCORE', legacy, '-inf', second, 'LIMIT', 0, 1)[1]
  if not envelope then break end
  stream = stream or target(topic_at(1), '')
  add(stream, { 'message', envelope })
  redis.call('ZREM', legacy, envelope)
  moved, bytes_left = moved + 1, bytes_left - #envelope
end
return moved
