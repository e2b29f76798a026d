-- Claims a batch of due legacy delayed messages, where the topic's stream is in
-- another slot.
-- KEYS 1: the legacy delayed set
-- ARGV 1: the most messages of the batch   2: the bytes after which it ends
--   3: the seconds for which no other worker may claim them
-- Returns the envelopes, in the order of their due times. Afterwards they are due
-- again when the claim expires. So no message is lost with the worker that has
-- claimed it, and no other worker publishes it meanwhile.
local second, due, bytes_left = math.floor(now_ms() / 1000), {}, tonumber(ARGV[2])
while #due < tonumber(ARGV[1]) and bytes_left > 0 do
  local envelope = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', second, 'LIMIT', 0, 1)[1]
  if not envelope then break end
  redis.call('ZADD', KEYS[1], second + tonumber(ARGV[3]), envelope)
  due[#due + 1], bytes_left = envelope, bytes_left - #envelope
end
return due
