-- Takes a piece of what is due of the original's delayed messages, where their
-- stream is in another slot.
-- KEYS 1: the original's delayed set
-- ARGV 1: how many at most   2: no more once they had so many bytes   3: for how
--   many seconds they are nobody else's
-- Returns the envelopes, the first ones first. Afterwards they are due when that
-- time is over, for whoever comes then: so none is lost with who took it, and
-- others that look meanwhile do not publish it too.
local second, due, bytes_left = math.floor(now_ms() / 1000), {}, tonumber(ARGV[2])
while #due < tonumber(ARGV[1]) and bytes_left > 0 do
  local envelope = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', second, 'LIMIT', 0, 1)[1]
  if not envelope then break end
  redis.call('ZADD', KEYS[1], second + tonumber(ARGV[3]), envelope)
  due[#due + 1], bytes_left = envelope, bytes_left - #envelope
end
return due
