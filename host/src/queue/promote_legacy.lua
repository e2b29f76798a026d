-- Moves what is due of the original's delayed messages, which in the original
-- only a living publisher does.
-- KEYS 1-7: the topic's stream, state, work, later, later:body, high, low
--   8: the original's delayed set, where one script may use both
-- ARGV 1: how many at most
-- Returns how many. Each inserts before it deletes.
local due = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', math.floor(now_ms() / 1000), 'LIMIT', 0, ARGV[1])
if #due > 0 then
  local stream = target(topic_at(1), '')
  for _, envelope in ipairs(due) do
    add(stream, { 'message', envelope })
    redis.call('ZREM', KEYS[8], envelope)
  end
end
return #due
