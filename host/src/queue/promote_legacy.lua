-- Moves what is due of the original's delayed messages, which in the original
-- only a living publisher does.
-- KEYS 1-7: the topic's stream, state, work, later, later:body, high, low
--   8: the original's delayed set, where one script may use both
-- ARGV 1: how many at most   2: no more once they had so many bytes
-- Returns how many. Each inserts before it deletes.
local legacy, second = KEYS[8], math.floor(now_ms() / 1000)
local stream, moved, bytes_left = nil, 0, tonumber(ARGV[2])
while moved < tonumber(ARGV[1]) and bytes_left > 0 do
  -- Here the bodies are the members: one is read at a time.
  local envelope = redis.call('ZRANGEBYSCORE', legacy, '-inf', second, 'LIMIT', 0, 1)[1]
  if not envelope then break end
  stream = stream or target(topic_at(1), '')
  add(stream, { 'message', envelope })
  redis.call('ZREM', legacy, envelope)
  moved, bytes_left = moved + 1, bytes_left - #envelope
end
return moved
